"""What each outcome of an LMS call comes to and how long is waited, on a clock and a transport of the test's own."""

import json
import multiprocessing
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
import requests
import tenacity.nap

from worker import errors
from worker.errors import BatchRefused, LeaseLost, ReasonedError, RunRefused, Unavailable
from worker.lms import client as lms_client, patience, transport as lms
from worker.lms.client import NOBODYS_EMAIL, NOBODYS_LICENSE, RECENTLY, LmsClient
from worker.lms.outcomes import retry_after
from worker.lms.patience import Patience

LICENSE = UUID("378d5bf0-f67d-4bf7-8b2a-cbbc53d0f772")
ENTERPRISE = UUID("7f2c0b53-3b0c-4b0e-9d4e-0b8f3c7d2a11")
EMAIL = "learner@x.example"
PATIENCE = Patience()  # the one that production has: waiting costs nothing on this clock
ENDLESS = 2000


class Clock:
    """Stands in for the module `time` where the client and tenacity look: to sleep is to move it on."""

    def __init__(self) -> None:
        self.now = 100_000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if seconds:
            self.slept.append(seconds)


@dataclass
class Reply:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""


@dataclass
class Sent:
    url: str
    headers: dict[str, str]
    body: str
    timeout: Any
    at: float


def throttled(after: object = None) -> Reply:
    return Reply(429, {} if after is None else {"Retry-After": str(after)})


class Wire:
    """Stands in for the network below requests: answers calls by a script whose last line holds for ever."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.script: list[Reply | Exception] = [Reply()]
        self.tokens: list[Reply | Exception] = [Reply(body='{"access_token": "t", "expires_in": 3600}')]
        self.calls: list[Sent] = []
        self.token_calls: list[Sent] = []
        self.log: list[tuple[str, float]] = []

    def send(self, request: requests.PreparedRequest, timeout: Any) -> requests.Response:
        for_token = str(request.url).endswith(lms.TOKEN_PATH)
        script, sent = (self.tokens, self.token_calls) if for_token else (self.script, self.calls)
        text = str(request.body) if for_token else request.body.read().decode()  # type: ignore[union-attr]
        self.log.append(("token" if for_token else "send", self.clock.now))
        sent.append(Sent(str(request.url), dict(request.headers), text, timeout, self.clock.now))
        assert len(sent) < ENDLESS, "the client never gives up"
        told = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(told, Exception):
            raise told
        response = requests.Response()
        response.status_code, response.request, response.url = told.status, request, str(request.url)
        response.headers.update(told.headers)
        response._content, response._content_consumed = told.body.encode(), True  # type: ignore[attr-defined]
        return response

    def says(self, *script: Reply | Exception | int) -> None:
        self.script = [Reply(told) if isinstance(told, int) else told for told in script]

    def bodies(self) -> list[Any]:
        return [json.loads(call.body) for call in self.calls]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (lms, lms_client, patience, tenacity.nap):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def wire(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire(clock)
    monkeypatch.setattr(
        requests.adapters.HTTPAdapter, "send", lambda _, request, **how: wire.send(request, how["timeout"])
    )
    return wire


@pytest.fixture
def client(wire: Wire) -> Iterator[LmsClient]:
    client = LmsClient("https://lms.example", "https://auth.example", "key", "secret", patience=PATIENCE)
    yield client
    client.close()


def nothing() -> float:
    return inf


def downgrade(client: LmsClient) -> None:
    client.downgrade([LICENSE], None, nothing)


def unlink(client: LmsClient) -> None:
    client.unlink(ENTERPRISE, [EMAIL], nothing)


def fails(client: LmsClient) -> ReasonedError:
    with pytest.raises(ReasonedError) as caught:
        downgrade(client)
    return caught.value


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def as_header(value: str | int) -> str:
    """A header's text; a number stands for the HTTP date so many seconds from now, when the test runs."""
    return http_date(value) if isinstance(value, int) else value


# Retry-After


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        pytest.param("60", 60.0, id="seconds, as edx-enterprise sends them"),
        pytest.param("0", 0.0, id="at once"),
        pytest.param(" 7 ", 7.0, id="white space around it"),
        pytest.param(300, 300.0, id="an HTTP date"),
        pytest.param(-300, 0.0, id="a date that has passed is at once, never negative"),
        pytest.param(None, None, id="no header"),
        pytest.param("", None, id="an empty one"),
        pytest.param("soon", None, id="a word"),
        pytest.param("-1", None, id="a negative number is no delay"),
        pytest.param("1.5", None, id="a fraction is in neither form"),
        pytest.param("Wed, 31 Feb 2026 07:28:00 GMT", None, id="a day that does not exist"),
        pytest.param("\u00b2", None, id="a digit to str.isdigit, but not to float"),
        pytest.param("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None, id="a year beyond every integer type"),
    ],
)
def test_retry_after_is_read_in_both_its_forms(value: str | int | None, seconds: float | None) -> None:
    response = requests.Response()
    if value is not None:
        response.headers["Retry-After"] = as_header(value)
    found = retry_after(response.headers)
    assert found == (seconds if seconds is None else pytest.approx(seconds, abs=5.0))


def test_a_date_without_a_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    response = requests.Response()
    response.headers["Retry-After"] = http_date(300).removesuffix(" GMT")
    try:
        assert retry_after(response.headers) == pytest.approx(300.0, abs=5.0)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("header", "slept"),
    [
        pytest.param("7", 7.0, id="seconds"),
        pytest.param(40, 40.0, id="a date"),
        pytest.param("3600", 60.0, id="more seconds than the cap"),
        pytest.param(3600, 60.0, id="a date beyond the cap"),
    ],
)
@pytest.mark.parametrize("status", [503, 502, 504])
def test_a_retry_after_is_kept_up_to_the_cap(
    client: LmsClient, wire: Wire, clock: Clock, status: int, header: str | int, slept: float
) -> None:
    wire.says(Reply(status, {"Retry-After": as_header(header)}), 200)
    downgrade(client)
    assert clock.slept == [pytest.approx(slept, abs=5.0 if slept == 40 else 0.0)]


def test_the_caller_is_told_what_the_lms_asked_for_uncapped(client: LmsClient, wire: Wire) -> None:
    wire.says(Reply(503, {"Retry-After": "3600"}))
    assert fails(client).retry_after == 3600


def test_without_a_retry_after_the_waits_grow_with_jitter_up_to_the_cap(
    client: LmsClient, wire: Wire, clock: Clock
) -> None:
    wire.says(503)
    with pytest.raises(Unavailable):
        LmsClient("https://l", "https://l", "k", "s", patience=Patience(tries=10)).downgrade([LICENSE], None, nothing)
    assert len(clock.slept) == 9
    for number, slept in enumerate(clock.slept):
        assert min(60.0, 2.0**number) <= slept <= min(60.0, 2.0**number + 1.0)
    assert any(slept % 1 for slept in clock.slept), "no jitter"


# How often


@pytest.mark.parametrize("tries", [1, 3, 4])
def test_an_lms_that_stays_away_is_tried_as_often_as_patience_says(wire: Wire, tries: int) -> None:
    client = LmsClient("https://l", "https://l", "k", "s", patience=Patience(tries=tries))
    wire.says(503)
    error = fails(client)
    assert (type(error), error.reason, len(wire.calls)) == (Unavailable, "http_503", tries)


@pytest.mark.parametrize(
    ("script", "sends"),
    [
        pytest.param([503, 503, 503, 200], 4, id="the last try counts"),
        pytest.param([502, 504, 200], 3, id="a load balancer's answers"),
        pytest.param([408, 200], 2, id="a request time-out"),
        pytest.param([500, 200], 2, id="a 500 that does not stay"),
        pytest.param([500, 503, 200], 3, id="a 500, then a restart"),
        pytest.param([503, 500, 200], 3, id="a restart, then one 500: it does not stay either"),
        pytest.param([requests.ReadTimeout(), requests.ConnectionError(), 200], 3, id="the network"),
        pytest.param([429, 503, 429, 503, 429, 503, 429, 200], 8, id="a 429 uses up no try"),
    ],
)
def test_what_passes_is_tried_again_in_place(
    client: LmsClient, wire: Wire, script: list[int | Exception], sends: int
) -> None:
    wire.says(*script)
    downgrade(client)
    assert len(wire.calls) == sends


@pytest.mark.parametrize(
    ("status", "sends"),
    [
        pytest.param(400, 1, id="a 400 will not change"),
        pytest.param(422, 1, id="nor will a 422"),
        pytest.param(500, 2, id="a 500 may: once more, no oftener"),
    ],
)
def test_a_refused_batch_is_sent_as_often_as_its_status_deserves(
    client: LmsClient, wire: Wire, status: int, sends: int
) -> None:
    downgrade(client)
    wire.calls.clear()
    wire.says(*[status] * sends, 200)
    error = fails(client)
    assert (type(error), error.reason, len(wire.calls)) == (BatchRefused, f"http_{status}", sends)


@pytest.mark.parametrize("status", [302, 403, 404, 405, 413, 451])
def test_what_will_not_change_is_sent_once(client: LmsClient, wire: Wire, clock: Clock, status: int) -> None:
    wire.says(status)
    error = fails(client)
    assert (type(error), error.reason, len(wire.calls)) == (RunRefused, f"http_{status}", 1)
    assert clock.slept == []


@pytest.mark.parametrize(
    ("status", "words"),
    [
        pytest.param(401, ("BACKEND_SERVICE_EDX_OAUTH2_KEY", "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT"), id="token refused"),
        pytest.param(403, ("permission", "enterprise operator role"), id="no permission"),
        pytest.param(404, ("enterprise", "not active", "LMS_URL"), id="unknown enterprise"),
        pytest.param(413, ("LICENSE_EXPIRATION_BATCH_SIZE", "BULK_UNLINK_BATCH_SIZE"), id="too large"),
        pytest.param(405, ("LMS_URL",), id="not the API"),
        pytest.param(301, ("LMS_URL",), id="http for https, say"),
    ],
)
def test_a_run_that_is_refused_says_what_to_do(
    client: LmsClient, wire: Wire, status: int, words: tuple[str, ...]
) -> None:
    wire.says(status)
    message = str(fails(client))
    assert f"http_{status}" in message
    assert [word for word in words if word not in message] == []


def subclasses(of: type[Exception]) -> set[type[Exception]]:
    return {of}.union(*map(subclasses, of.__subclasses__()))


def failures_of_requests() -> list[type[Exception]]:
    every = {kind.__name__: kind for kind in subclasses(requests.RequestException)}
    del every["JSONDecodeError"]  # an answer's, not a call's; and made of more than a message
    return [every[name] for name in sorted(every)]


@pytest.mark.parametrize("kind", failures_of_requests())
def test_every_failure_that_requests_knows_is_unavailable(client: LmsClient, wire: Wire, kind: type[Exception]) -> None:
    wire.says(kind(f"about {EMAIL}"))
    error = fails(client)
    reason = "timeout" if issubclass(kind, requests.Timeout) else "connection_error"
    assert (type(error), error.reason, len(wire.calls)) == (Unavailable, reason, 4)
    assert EMAIL not in str(error)


# 429


def test_a_throttled_call_waits_as_told_and_goes_on(client: LmsClient, wire: Wire) -> None:
    wire.says(throttled(60), throttled(http_date(30)), throttled(), 200)
    downgrade(client)
    first, second, third, fourth = (call.at for call in wire.calls)
    assert 60.0 <= second - first <= 66.5
    assert 25.0 <= third - second <= 33.5, "the date's form"
    assert 1.0 <= fourth - third <= 1.5, "without a header, the first wait"


def test_throttling_is_unavailable_only_when_it_lasts_longer_than_the_cap(client: LmsClient, wire: Wire) -> None:
    wire.says(*[throttled(60)] * 9, 200)  # 600 s in all at the most, as each wait is jittered
    downgrade(client)
    assert len(wire.calls) == 10
    wire.calls.clear()
    wire.says(*[throttled(60)] * 12, 200)
    error = fails(client)
    assert (type(error), error.reason, error.retry_after) == (Unavailable, "throttled", 60.0)
    assert len(wire.calls) <= 11, "tried no more once it is spent"


def test_a_wait_beyond_the_cap_is_not_begun(client: LmsClient, wire: Wire, clock: Clock) -> None:
    wire.says(throttled(601))
    error = fails(client)
    assert (error.reason, error.retry_after, len(wire.calls), clock.slept) == ("throttled", 601.0, 1, [])


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(0, id="at once, says a rounded-down window"),
        pytest.param(http_date(-60), id="a date of a clock that is slow"),
    ],
)
def test_a_throttle_that_says_at_once_for_ever_is_given_up_too(client: LmsClient, wire: Wire, after: object) -> None:
    wire.says(throttled(after))
    error = fails(client)
    assert (type(error), error.reason) == (Unavailable, "throttled")


def test_a_child_process_shares_the_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = patience.Pause()
    assert pause.remaining() == 0.0
    child = multiprocessing.get_context("fork").Process(target=pause.extend, args=(600.0,))
    child.start()
    child.join(30)
    assert child.exitcode == 0
    assert pause.remaining() == pytest.approx(600.0, abs=60.0)


def test_a_short_pause_does_not_cut_a_longer_one() -> None:
    pause = patience.Pause()
    pause.extend(600.0)
    pause.extend(1.0)
    assert pause.remaining() > 500.0


# The probe


def test_a_refusal_is_believed_when_the_lms_takes_a_call_that_concerns_nobody(client: LmsClient, wire: Wire) -> None:
    wire.says(422, 200)
    assert type(fails(client)) is BatchRefused
    assert wire.bodies()[1] == {
        "expired_license_uuids": [str(NOBODYS_LICENSE)],
        "ignore_enrollments_modified_after": None,
    }


def test_the_probe_is_asked_of_the_same_enterprise(client: LmsClient, wire: Wire) -> None:
    wire.says(400, 200)
    with pytest.raises(BatchRefused):
        unlink(client)
    assert wire.bodies()[1] == {"user_emails": [NOBODYS_EMAIL], "is_relinkable": True}
    assert str(ENTERPRISE) in wire.calls[1].url


@pytest.mark.parametrize(
    ("since", "probes"),
    [
        pytest.param(0.0, 0, id="it has just answered"),
        pytest.param(RECENTLY - 1, 0, id="recently enough"),
        pytest.param(RECENTLY + 1, 1, id="too long ago to tell"),
    ],
)
def test_an_lms_that_answered_recently_is_not_probed(
    client: LmsClient, wire: Wire, clock: Clock, since: float, probes: int
) -> None:
    downgrade(client)
    clock.now += since
    wire.calls.clear()
    wire.says(422, 200)
    assert type(fails(client)) is BatchRefused
    assert len(wire.calls) == 1 + probes


def test_a_probe_that_was_answered_counts_as_an_answer(client: LmsClient, wire: Wire) -> None:
    for script, sends in (([422, 200], 2), ([422], 1)):
        wire.calls.clear()
        wire.says(*script)
        assert type(fails(client)) is BatchRefused
        assert len(wire.calls) == sends


def test_what_one_call_answered_says_nothing_about_the_other(client: LmsClient, wire: Wire) -> None:
    downgrade(client)
    wire.calls.clear()
    wire.says(400, 200)
    with pytest.raises(BatchRefused):
        unlink(client)
    assert len(wire.calls) == 2


@pytest.mark.parametrize(
    ("probe", "kind", "reason"),
    [
        pytest.param([422], Unavailable, "http_422", id="refused as well: the LMS is broken"),
        pytest.param([500], Unavailable, "http_500", id="failed as well"),
        pytest.param([503], Unavailable, "http_503", id="gone in between"),
        pytest.param([403], RunRefused, "http_403", id="the permission was taken away in between"),
    ],
)
def test_what_the_probe_meets_decides(
    client: LmsClient, wire: Wire, probe: list[int], kind: type[Exception], reason: str
) -> None:
    wire.says(422, *probe)
    error = fails(client)
    assert (type(error), error.reason) == (kind, reason)


def test_the_first_refusal_after_a_boot_is_probed(client: LmsClient, wire: Wire, clock: Clock) -> None:
    clock.now = 5.0  # a steady clock counts from the boot: "never answered" is not "answered at 0.0"
    wire.says(422)
    assert type(fails(client)) is Unavailable


# The order before each send


def test_before_each_send_come_the_pace_the_pause_and_last_the_guard(wire: Wire, clock: Clock) -> None:
    def pace() -> float:
        wire.log.append(("pace", clock.now))
        return 10.0

    client = LmsClient("https://l", "https://l", "k", "s", patience=PATIENCE, next_call_in=pace)
    downgrade(client)  # has its token
    wire.log.clear()
    wire.says(throttled(100), 503, 200)

    def guard() -> float:
        wire.log.append(("guard", clock.now))
        return inf

    client.downgrade([LICENSE], None, guard)
    log = [event for event, after in zip(wire.log, [*wire.log[1:], None], strict=True) if event != after]
    assert [name for name, _ in log] == ["pace", "guard", "send"] * 3
    moments = [moment for _, moment in log]
    for paced, guarded, sent in (moments[:3], moments[3:6], moments[6:]):
        assert guarded - paced >= 10.0
        assert guarded == sent, "no time passes between the guard and the send"
    assert moments[4] - moments[2] >= 100.0, "the guard is asked after the pause, not before it"


def test_a_token_is_paced_too(wire: Wire, clock: Clock) -> None:
    client = LmsClient("https://l", "https://l", "k", "s", patience=PATIENCE, next_call_in=lambda: 10.0)
    downgrade(client)
    assert clock.slept == [10.0, 10.0]


def test_the_lease_that_is_lost_during_a_pause_stops_the_call(client: LmsClient, wire: Wire, clock: Clock) -> None:
    start = clock.now

    def guard() -> float:
        if clock.now > start + 300:
            raise LeaseLost("taken over")
        return inf

    wire.says(throttled(400), 200)
    with pytest.raises(LeaseLost):
        client.downgrade([LICENSE], None, guard)
    assert len(wire.calls) == 1


def test_the_lease_that_is_lost_while_a_token_is_fetched_stops_the_call(
    client: LmsClient, wire: Wire, clock: Clock
) -> None:
    start = clock.now

    def guard() -> float:
        if clock.now > start + 300:
            raise LeaseLost("taken over")
        return inf

    wire.tokens.insert(0, throttled(400))  # the token is asked for within the call, and waits longer than a lease
    with pytest.raises(LeaseLost):
        client.downgrade([LICENSE], None, guard)
    assert wire.calls == []


# The token


@pytest.mark.parametrize(
    ("lifetime", "later", "fetched"),
    [
        pytest.param(3600, 3569, 1, id="still good"),
        pytest.param(3600, 3571, 2, id="a few seconds before it expires"),
        pytest.param(3600, 3601, 2, id="long expired"),
        pytest.param('"3600"', 3569, 1, id="a number in quotes"),
        pytest.param(20, 0, 2, id="too short-lived to keep, and used all the same"),
    ],
)
def test_a_token_is_kept_until_shortly_before_it_expires(
    client: LmsClient, wire: Wire, clock: Clock, lifetime: object, later: float, fetched: int
) -> None:
    wire.tokens = [Reply(body=f'{{"access_token": "t{n}", "expires_in": {lifetime}}}') for n in (1, 2)]
    downgrade(client)
    clock.now += later
    downgrade(client)
    assert len(wire.token_calls) == fetched
    assert [call.headers["Authorization"] for call in wire.calls] == ["JWT t1", f"JWT t{fetched}"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("", id="nothing"),
        pytest.param("<html>Sign in</html>", id="a page"),
        pytest.param("null", id="null"),
        pytest.param("[]", id="a list"),
        pytest.param("{}", id="an empty object"),
        pytest.param('{"access_token": "t"}', id="no lifetime"),
        pytest.param('{"access_token": "t", "expires_in": null}', id="a null lifetime"),
        pytest.param('{"access_token": "t", "expires_in": "soon"}', id="a word for a lifetime"),
        pytest.param('{"access_token": null, "expires_in": 3600}', id="a null token"),
    ],
)
def test_what_is_not_a_token_is_never_taken_for_one(client: LmsClient, wire: Wire, body: str) -> None:
    wire.tokens = [Reply(body=body)]
    error = fails(client)
    assert (type(error), error.reason, wire.calls) == (RunRefused, "bad_token", [])
    assert "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT" in str(error)


def test_the_token_endpoint_is_waited_for_like_the_lms(client: LmsClient, wire: Wire) -> None:
    wire.tokens = [throttled(60), Reply(503), requests.ReadTimeout(), *wire.tokens]
    downgrade(client)
    assert (len(wire.token_calls), len(wire.calls)) == (4, 1)


@pytest.mark.parametrize(
    ("told", "reason", "asked"),
    [
        pytest.param(Reply(503), "http_503", 4, id="503"),
        pytest.param(Reply(500), "http_500", 4, id="500"),
        pytest.param(requests.ConnectionError(), "connection_error", 4, id="no connection"),
        pytest.param(requests.ReadTimeout(), "timeout", 4, id="no answer"),
        pytest.param(throttled(601), "throttled", 1, id="throttled for too long"),
    ],
)
def test_without_a_token_nothing_is_sent(
    client: LmsClient, wire: Wire, told: Reply | Exception, reason: str, asked: int
) -> None:
    wire.tokens = [told]
    error = fails(client)
    assert type(error) is Unavailable
    assert error.reason.endswith(reason)
    assert (len(wire.token_calls), wire.calls) == (asked, [])


@pytest.mark.parametrize("status", [400, 401, 403, 422, 500])
def test_no_license_is_blamed_for_what_the_token_endpoint_says(client: LmsClient, wire: Wire, status: int) -> None:
    downgrade(client)  # the LMS has answered just now, so that no probe would tell
    wire.says(401, 200)
    wire.tokens = [Reply(status)]
    assert type(fails(client)) is not BatchRefused


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 405, 413])
def test_a_refused_token_names_the_settings_to_check(client: LmsClient, wire: Wire, status: int) -> None:
    wire.tokens = [Reply(status)]
    error = fails(client)
    assert type(error) is RunRefused
    assert "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT" in str(error)
    assert "BATCH_SIZE" not in str(error)
    assert "enterprise" not in str(error)


def test_a_netrc_file_is_not_asked_for_credentials(
    client: LmsClient, wire: Wire, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    downgrade(client)
    assert "Authorization" not in wire.token_calls[0].headers
    assert wire.calls[0].headers["Authorization"] == "JWT t"


# How long for an answer


def test_each_kind_of_call_has_its_own_time_out(wire: Wire) -> None:
    client = LmsClient("https://l", "https://a", "k", "s", downgrade_timeout=11, unlink_timeout=22)
    downgrade(client)
    unlink(client)
    assert [call.timeout for call in wire.calls] == [(10.0, 11), (10.0, 22)]
    assert [call.timeout for call in wire.token_calls] == [(10.0, 10.0)]


# The errors themselves


@pytest.mark.parametrize("kind", [Unavailable, BatchRefused, RunRefused])
def test_an_error_survives_the_ways_that_celery_carries_it(kind: type[ReasonedError]) -> None:
    error = kind("http_503", "the LMS answered 503", retry_after=7.0)
    for carried in (pickle.loads(pickle.dumps(error)), kind(*error.args), kind(*json.loads(json.dumps(error.args)))):
        assert type(carried) is kind
        assert (carried.reason, carried.what, carried.retry_after) == ("http_503", "the LMS answered 503", 7.0)
        assert str(carried) == "the LMS answered 503 [http_503]"


def test_the_tree_is_as_its_docstring_draws_it() -> None:
    drawn = {line.split("── ")[1].split()[0] for line in str(errors.__doc__).splitlines() if "── " in line}
    assert drawn == {kind.__name__ for kind in subclasses(errors.LicenseExpiryError) - {errors.LicenseExpiryError}}


def test_the_client_shows_no_secret() -> None:
    client = LmsClient("https://l", "https://l", "k", "not-to-be-seen")
    assert "not-to-be-seen" not in repr(client)
    assert "not-to-be-seen" not in repr(SimpleNamespace(client=client))
