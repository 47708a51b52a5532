"""What each outcome of an LMS call comes to and how long is waited, on a clock and a transport of the test's own."""

from contextlib import nullcontext, suppress

import pytest
import requests
from hypothesis import HealthCheck, example, given, settings, strategies as st
from support.wire import (
    EMAIL,
    ENTERPRISE,
    PATIENCE,
    Clock,
    Reply,
    Wire,
    downgrade,
    fails,
    http_date,
    nothing,
    subclasses,
    throttled,
    unlink,
)

from worker.errors import BatchRefused, ReasonedError, RunRefused, Unavailable
from worker.lms.client import NOBODYS_EMAIL, NOBODYS_LICENSE, RECENTLY, LmsClient
from worker.lms.patience import Patience

# How often


@pytest.mark.parametrize(
    ("patience", "tries"),
    [
        pytest.param(Patience(), 3, id="as production has it"),
        pytest.param(Patience(tries=1), 1, id="never again"),
        pytest.param(Patience(tries=4, in_place=900), 4, id="all tries, where there is time for them"),
        pytest.param(Patience(tries=9), 3, id="where there is not, no more than begin within in_place"),
        pytest.param(Patience(in_place=0), 1, id="none begins within no time at all"),
    ],
)
def test_an_lms_that_stays_unreachable_is_tried_as_often_as_patience_says(
    wire: Wire, patience: Patience, tries: int
) -> None:
    client = LmsClient("https://l", "https://l", "k", "s", patience=patience)
    wire.says(503)
    error = fails(client)
    assert (type(error), error.reason, len(wire.calls)) == (Unavailable, "http_503", tries)


@pytest.mark.parametrize(
    ("script", "sends"),
    [
        pytest.param([503, 503, 200], 3, id="the last try counts"),
        pytest.param([502, 504, 200], 3, id="a load balancer's answers"),
        pytest.param([408, 200], 2, id="a request time-out"),
        pytest.param([500, 200], 2, id="a 500 that does not stay"),
        pytest.param([500, 503, 200], 3, id="a 500, then a restart"),
        pytest.param([503, 500, 200], 3, id="a restart, then one 500: it does not stay either"),
        pytest.param([503, 503, 500, 200], 4, id="a 500 in the last try: it has its second one too"),
        pytest.param([Reply(500, takes=100.0), 200], 2, id="and has it though the answer took long"),
        pytest.param([requests.ConnectionError(), requests.ConnectionError(), 200], 3, id="the network"),
        pytest.param([throttled(4), 200], 2, id="a throttle that is over within in_place"),
        pytest.param([throttled(1), throttled(0), 200], 3, id="and one that says so twice"),
        pytest.param([throttled(), 200], 2, id="and one that does not say how long it lasts"),
        pytest.param([Reply(503, {"Retry-After": "4"}), 200], 2, id="a restart that says how long it takes"),
    ],
)
def test_what_passes_is_tried_again_in_place(
    client: LmsClient, wire: Wire, script: list[int | Reply | Exception], sends: int
) -> None:
    wire.says(*script)
    downgrade(client)
    assert len(wire.calls) == sends


@pytest.mark.parametrize(
    ("script", "reason", "sends", "after"),
    [
        pytest.param([throttled(5)], "throttled", 1, 5, id="a throttle as long as in_place"),
        pytest.param([throttled(3600)], "throttled", 1, 3600, id="of an hour"),
        pytest.param([throttled(http_date(36_000))], "throttled", 1, 36_000, id="of ten hours, as a date"),
        pytest.param([throttled(0)], "throttled", 3, 0, id="of no time, for ever: a window that is rounded down"),
        pytest.param([throttled(http_date(-60))], "throttled", 3, 0, id="until a date of a clock that is slow"),
        pytest.param([throttled()], "throttled", 3, None, id="that does not say how long"),
        pytest.param([throttled("soon")], "throttled", 3, None, id="nor so that it can be read"),
        pytest.param(
            [throttled(2), throttled(2), throttled(2)], "throttled", 3, 2, id="of a little, as often as tries"
        ),
        pytest.param([throttled(3), throttled(3)], "throttled", 2, 3, id="of a little more than fits twice"),
        pytest.param([503, throttled(4)], "throttled", 2, 4, id="of what would fit, had nothing come before"),
        pytest.param([throttled(1), throttled(60)], "throttled", 2, 60, id="of a little, and then of more"),
        pytest.param([Reply(503, {"Retry-After": "5"})], "http_503", 1, 5, id="a restart that takes as long"),
        pytest.param([Reply(502, {"Retry-After": http_date(36_000)})], "http_502", 1, 36_000, id="a date, of another"),
        pytest.param([504], "http_504", 3, None, id="a gateway that does not say"),
        pytest.param([Reply(503, takes=4.0)], "http_503", 1, None, id="one that takes its time to say no"),
        pytest.param([Reply(504, takes=60.0)], "http_504", 1, None, id="one that waited for a minute itself"),
        pytest.param([requests.ReadTimeout()], "timeout", 1, None, id="a time-out that took two minutes"),
        pytest.param([requests.ConnectTimeout()], "timeout", 1, None, id="no connection in ten seconds"),
        pytest.param([requests.ConnectionError()], "connection_error", 3, None, id="no connection, at once"),
        pytest.param([500, requests.ReadTimeout()], "timeout", 2, None, id="a 500, then a time-out"),
    ],
)
def test_what_lasts_is_left_to_the_caller(
    client: LmsClient,
    wire: Wire,
    clock: Clock,
    script: list[int | Reply | Exception],
    reason: str,
    sends: int,
    after: float | None,
) -> None:
    """It is told how long the LMS asks it to stay away, and how long the tries took."""
    wire.says(*script)
    began = clock.now
    error = fails(client)
    assert isinstance(error, Unavailable)
    assert (error.reason, len(wire.calls)) == (reason, sends)
    assert error.retry_after == (
        after if after is None else pytest.approx(after, abs=after / 4)
    )  # dates were made early
    assert error.lasted == clock.now - began
    assert sum(clock.slept) < PATIENCE.in_place


def test_the_waits_in_place_grow_with_jitter(wire: Wire, clock: Clock) -> None:
    patience = Patience(tries=9, first_wait=2.0, in_place=9999)
    wire.says(503)
    fails(LmsClient("https://l", "https://l", "k", "s", patience=patience))
    assert len(clock.slept) == 8
    for number, slept in enumerate(clock.slept):
        assert 2.0 * 2**number <= slept <= 2.0 * 2**number + 2.0
    assert any(slept % 1 for slept in clock.slept), "no jitter"


AFTER = st.none() | st.integers(0, 7) | st.sampled_from(["soon", "3600", "9" * 400, http_date(-9), http_date(86_400)])
SOON = st.sampled_from([0.0, 0.01, 0.5, 2.0])
TAKES = SOON | st.sampled_from([4.9, 5.0, 30.0, 119.0])
FAILURES = st.sampled_from([requests.ReadTimeout, requests.ConnectTimeout, requests.ConnectionError])


def replies(statuses: list[int], takes: st.SearchStrategy[float]) -> st.SearchStrategy[Reply]:
    headers = AFTER.map(lambda after: {} if after is None else {"Retry-After": str(after)})
    return st.builds(Reply, st.sampled_from(statuses), headers, takes=takes)


AWAY = replies([408, 429, 502, 503, 504, 599], TAKES) | FAILURES.map(lambda kind: kind())
ANSWERS = AWAY | replies([200, 400, 403, 500], TAKES) | replies([401], st.just(0.0))
TOKEN = Reply(body='{"access_token": "t", "expires_in": 3600}')


@given(
    script=st.lists(ANSWERS, min_size=1, max_size=6),
    tokens=st.lists(st.just(TOKEN) | replies([429, 500, 503], SOON), max_size=4),
    patience=st.sampled_from([PATIENCE, Patience(tries=9), Patience(tries=5, first_wait=0.1, in_place=2.0)]),
)
@example(script=[Reply(503), Reply(503), Reply(500)], tokens=[], patience=PATIENCE)
@example(script=[Reply(503), Reply(500)], tokens=[throttled(1), Reply(503)], patience=Patience(tries=9))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_call_waits_in_place_for_longer_than_in_place_whatever_the_lms_answers(
    wire: Wire, clock: Clock, script: list[Reply | Exception], tokens: list[Reply | Exception], patience: Patience
) -> None:
    """And no try begins after it, but the second one of a 500 whose answer took so long."""
    woke: list[float] = []
    began = clock.now

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        woke.append(clock.now - began)

    wire.script, wire.tokens = list(script), [*tokens, TOKEN]
    wire.calls.clear()
    clock.slept.clear()
    client = LmsClient("https://l", "https://l", "k", "s", patience=patience, sleep=sleep)
    with suppress(ReasonedError):
        client.check_downgrades(nothing)
    assert sum(clock.slept) <= patience.in_place + 1e-6
    late = {moment for moment in woke if moment >= patience.in_place}
    assert len(late) <= any(isinstance(told, Reply) and told.status == 500 for told in script)


@pytest.mark.parametrize(
    ("script", "kind", "sends"),
    [
        pytest.param([200], None, 1, id="it is there"),
        pytest.param([503, 200], Unavailable, 1, id="it is away"),
        pytest.param([500, 200], Unavailable, 1, id="it fails"),
        pytest.param([throttled(0), 200], Unavailable, 1, id="it throttles"),
        pytest.param([requests.ConnectionError(), 200], Unavailable, 1, id="it cannot be reached"),
        pytest.param([422, 200], Unavailable, 1, id="it refuses"),
        pytest.param([403, 200], RunRefused, 1, id="and will go on to refuse"),
        pytest.param([401, 200], None, 2, id="a token that it has forgotten is no try"),
    ],
)
def test_a_check_in_one_try_sends_one_call(
    client: LmsClient,
    wire: Wire,
    clock: Clock,
    script: list[int | Reply | Exception],
    kind: type[ReasonedError] | None,
    sends: int,
) -> None:
    wire.says(*script)
    with pytest.raises(kind) if kind else nullcontext():
        client.check_downgrades(nothing, tries=1)
    assert (len(wire.calls), clock.slept) == (sends, [])


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


@pytest.mark.parametrize(
    ("status", "sends"),
    [
        pytest.param(302, 1, id="a redirect is no refusal of a batch"),
        *(pytest.param(status, 2, id=f"{status}, and then for nobody") for status in (403, 404, 405, 413, 451)),
    ],
)
def test_what_will_not_change_is_not_sent_again(
    client: LmsClient, wire: Wire, clock: Clock, status: int, sends: int
) -> None:
    wire.says(status)
    error = fails(client)
    assert (type(error), error.reason, len(wire.calls)) == (RunRefused, f"http_{status}", sends)
    assert clock.slept == []


@pytest.mark.parametrize(
    ("status", "words"),
    [
        pytest.param(401, ("BACKEND_SERVICE_EDX_OAUTH2_KEY", "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT"), id="token refused"),
        pytest.param(403, ("permission", "enterprise operator role"), id="no permission"),
        pytest.param(404, ("enterprise", "not active", '"is staff"', "LMS_URL"), id="unknown enterprise, or not staff"),
        pytest.param(413, ("even the smallest request", "raise the limit"), id="too large"),
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


def failures_of_requests() -> list[type[Exception]]:
    every = {kind.__name__: kind for kind in subclasses(requests.RequestException)}
    del every["JSONDecodeError"]  # an answer's, not a call's; and made of more than a message
    return [every[name] for name in sorted(every)]


@pytest.mark.parametrize("kind", failures_of_requests())
def test_every_failure_that_requests_knows_is_unavailable(client: LmsClient, wire: Wire, kind: type[Exception]) -> None:
    wire.says(kind(f"about {EMAIL}"))
    error = fails(client)
    reason = "timeout" if issubclass(kind, requests.Timeout) else "connection_error"
    sends = 1 if reason == "timeout" else PATIENCE.tries  # a time-out lasts longer than in_place
    assert (type(error), error.reason, len(wire.calls)) == (Unavailable, reason, sends)
    assert EMAIL not in str(error)


# The probe

HTML = {"Content-Type": "text/html"}
PAGE_400, PAGE_403 = (Reply(status, HTML, "<html>Blocked</html>") for status in (400, 403))


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


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(Reply(403), id="the role may have been taken away just now"),
        pytest.param(Reply(404), id="or the enterprise"),
        pytest.param(Reply(413), id="or a limit been set"),
        pytest.param(PAGE_400, id="or a firewall"),
        pytest.param(PAGE_403, id="which may answer 403"),
    ],
)
def test_a_refusal_that_may_be_of_every_call_is_probed_though_the_lms_answered_recently(
    client: LmsClient, wire: Wire, refusal: Reply
) -> None:
    """Else all licenses of some seconds were held, one by one."""
    downgrade(client)
    wire.calls.clear()
    wire.says(refusal)
    assert type(fails(client)) is RunRefused
    assert len(wire.calls) == 2
    wire.says(refusal, 200)
    assert type(fails(client)) is BatchRefused, "and it is the batch's when the probe is taken"


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
        pytest.param([404], RunRefused, "http_404", id="it does not know the enterprise"),
        pytest.param([418], RunRefused, "http_418", id="nothing known"),
        pytest.param([PAGE_400], RunRefused, "not_the_lms", id="a firewall that refuses everything"),
        pytest.param([PAGE_403], RunRefused, "not_the_lms", id="a sign-in page"),
        pytest.param([Reply(500, HTML, "<html>")], Unavailable, "http_500", id="the LMS's own page of a 500"),
    ],
)
def test_what_the_probe_meets_decides(
    client: LmsClient, wire: Wire, probe: list[int | Reply], kind: type[Exception], reason: str
) -> None:
    wire.says(422, *probe)
    error = fails(client)
    assert (type(error), error.reason) == (kind, reason)


def test_the_first_refusal_after_a_boot_is_probed(client: LmsClient, wire: Wire, clock: Clock) -> None:
    clock.now = 5.0  # a steady clock counts from the boot: "never answered" is not "answered at 0.0"
    wire.says(422)
    assert type(fails(client)) is Unavailable
