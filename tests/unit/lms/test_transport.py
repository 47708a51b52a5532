"""The order before each send, how fresh what is sent is, the token, time-outs."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from uuid import uuid4

import pytest
import requests
from support.wire import ENTERPRISE, LICENSE, PATIENCE, Clock, Reply, Wire, downgrade, fails, throttled, unlink

from worker.errors import BatchRefused, LeaseLost, Postponed, RunRefused, Unavailable
from worker.lms.client import NOBODYS_EMAIL, NOBODYS_LICENSE, LmsClient, Selection
from worker.lms.patience import Patience
from worker.lms.transport import TimedBody

LONG = Patience(tries=9, in_place=900.0)  # so that a test may draw every kind of wait in one call

# The order before each send


def test_before_each_send_come_the_waits_the_selection_and_last_the_guard(wire: Wire, clock: Clock) -> None:
    def pace(kind: str, within: float) -> float:
        wire.log.append(("pace", clock.now))
        return 10.0

    client = LmsClient("https://l", "https://l", "k", "s", patience=LONG, next_call_in=pace)
    downgrade(client)  # has its token
    wire.log.clear()
    wire.says(throttled(100), 503, 200)

    def guard() -> float:
        wire.log.append(("guard", clock.now))
        return inf

    def select() -> Selection:
        wire.log.append(("select", clock.now))
        return Selection([LICENSE])

    client.downgrade(select, guard)
    log = [event for event, after in zip(wire.log, [*wire.log[1:], None], strict=True) if event != after]
    assert [name for name, _ in log] == ["pace", "select", "guard", "send"] * 3
    moments = [moment for _, moment in log]
    for paced, selected, guarded, sent in (moments[:4], moments[4:8], moments[8:]):
        assert selected - paced >= 10.0
        assert selected == guarded == sent, "no time passes between the selection and the send"
    assert moments[5] - moments[3] >= 100.0, "the selection is made after the wait, not before it"


def test_each_call_is_paced_by_its_kind_and_a_token_is_not(wire: Wire, clock: Clock) -> None:
    def pace(kind: str, within: float) -> float:
        return {"downgrade": 3.0, "unlink": 4.0, "learners": 4.5}[kind]

    client = LmsClient("https://l", "https://l", "k", "s", patience=PATIENCE, next_call_in=pace)
    downgrade(client)
    client.unlink(ENTERPRISE, lambda: Selection(["learner@x.example"]), lambda: inf)
    assert clock.slept == [3.0, 4.0]


@pytest.mark.parametrize(
    ("free", "sent"),
    [
        pytest.param(0, [], id="the call itself has no slot soon enough"),
        pytest.param(1, ["token", "call"], id="a repeat with a new token has not"),
    ],
)
def test_what_is_booked_for_later_than_in_place_ends_the_call_at_once(
    wire: Wire, clock: Clock, free: int, sent: list[str]
) -> None:
    """The caller is told when to come again. Nothing is selected, and no try in place asks for another slot."""
    booked, asked = Postponed("booked", "others call first", "", 7.0), list[tuple[str, float]]()
    select = Selector(clock)

    def pace(kind: str, within: float) -> float:
        asked.append((kind, within))
        if len(asked) > free:
            raise booked
        return 0.0

    client = LmsClient("https://l", "https://l", "k", "s", patience=PATIENCE, next_call_in=pace)
    wire.says(401, 200)
    with pytest.raises(Postponed) as caught:
        client.downgrade(select, lambda: inf)
    assert (caught.value, caught.value.retry_after, clock.slept) == (booked, 7.0, [])
    assert asked == [("downgrade", PATIENCE.in_place)] * (free + 1)
    assert ["token"] * len(wire.token_calls) + ["call"] * len(wire.calls) == sent
    assert len(select.made) == len(wire.calls)


def test_the_lease_that_is_lost_during_a_wait_stops_the_call(client: LmsClient, wire: Wire, clock: Clock) -> None:
    start = clock.now

    def guard() -> float:
        if clock.now > start + 3:
            raise LeaseLost("taken over")
        return inf

    wire.says(throttled(4), 200)
    with pytest.raises(LeaseLost):
        client.downgrade(lambda: Selection([LICENSE]), guard)
    assert len(wire.calls) == 1


def test_the_lease_that_is_lost_while_a_token_is_fetched_stops_the_call(
    client: LmsClient, wire: Wire, clock: Clock
) -> None:
    start = clock.now

    def guard() -> float:
        if clock.now > start + 300:
            raise LeaseLost("taken over")
        return inf

    token = wire.tokens[0]
    assert isinstance(token, Reply)
    token.takes = 400.0  # the token is fetched within the call, and may take longer than what is left of a lease
    with pytest.raises(LeaseLost):
        client.downgrade(lambda: Selection([LICENSE]), guard)
    assert wire.calls == []


# How fresh what is sent is


class Selector:
    """Selects a license of its own each time, which stays fresh for two seconds."""

    def __init__(self, clock: Clock, takes: Sequence[float] = ()) -> None:
        self.made: list[tuple[str, float]] = []
        self._clock, self._takes = clock, list(takes)

    def __call__(self) -> Selection:
        license, now = uuid4(), self._clock.now
        self.made.append((str(license), now))
        self._clock.now += self._takes.pop(0) if self._takes else 0.0
        return Selection([license], now + 2.0)


@pytest.mark.parametrize(
    ("script", "tokens", "pace", "asked"),
    [
        pytest.param([200], [], 0.0, 1, id="the first try"),
        pytest.param([200], [], 30.0, 1, id="a booked rate"),
        pytest.param([throttled(60), throttled(60), 200], [], 0.0, 3, id="a throttle, twice"),
        pytest.param([503, 200], [], 0.0, 2, id="the wait between tries"),
        pytest.param([Reply(503, {"Retry-After": "60"}), 200], [], 0.0, 2, id="and the one that the LMS asks for"),
        pytest.param([requests.ReadTimeout(), 200], [], 0.0, 2, id="no answer"),
        pytest.param([500, 200], [], 0.0, 2, id="a 500 once more"),
        pytest.param([200], [throttled(60)], 0.0, 1, id="a token that takes its time"),
        pytest.param([401, 200], [throttled(60)], 0.0, 2, id="the repeat with a new token"),
        pytest.param([throttled(60), 401, 503, 401, 200], [throttled(9)], 5.0, 5, id="all of them"),
    ],
)
def test_after_each_wait_the_selection_is_made_anew_and_nothing_older_leaves(
    wire: Wire,
    clock: Clock,
    script: list[int | Reply | Exception],
    tokens: list[Reply],
    pace: float,
    asked: int,
) -> None:
    client = LmsClient("https://l", "https://l", "k", "s", patience=LONG, next_call_in=lambda kind, within: pace)
    wire.says(*script)
    wire.tokens = [*tokens, *wire.tokens]
    select = Selector(clock)
    client.downgrade(select, lambda: inf)
    sent = [(body["expired_license_uuids"], call.at) for body, call in zip(wire.bodies(), wire.calls, strict=True)]
    assert sent == [([license], at) for license, at in select.made]
    assert len(sent) == asked


def test_a_selection_that_grew_old_before_its_first_byte_is_made_anew(
    client: LmsClient, wire: Wire, clock: Clock
) -> None:
    """Connecting took long, say: the tries in place take it up."""
    select = Selector(clock, takes=[2.0])
    client.downgrade(select, lambda: inf)
    assert [body["expired_license_uuids"] for body in wire.bodies()] == [[select.made[1][0]]]
    select = Selector(clock, takes=[1.9])
    client.downgrade(select, lambda: inf)
    assert len(select.made) == 1


@pytest.mark.parametrize(
    ("takes", "tries"),
    [
        pytest.param(2.0, 2, id="each connection is slow: no third try fits in place"),
        pytest.param(3600.0, 1, id="the process was frozen for an hour: its caller goes on from there"),
    ],
)
def test_a_selection_that_is_never_fresh_is_never_sent(
    client: LmsClient, wire: Wire, clock: Clock, takes: float, tries: int
) -> None:
    select = Selector(clock, takes=[takes] * 9)
    with pytest.raises(Unavailable, match="nothing was sent") as caught:
        client.downgrade(select, lambda: inf)
    assert (caught.value.reason, wire.calls, len(select.made)) == ("too_late", [], tries)


def test_a_lease_that_is_short_comes_before_a_selection_that_is_old(client: LmsClient, clock: Clock) -> None:
    with pytest.raises(LeaseLost):
        client.downgrade(Selector(clock, takes=[2.0] * 9), lambda: clock.now + 1)


def test_only_the_first_byte_must_be_fresh(clock: Clock) -> None:
    """A body of which half has left is not taken back: the LMS may have it all."""
    body = TimedBody(b"ab", inf, clock.now + 2)
    assert body.read(1) == b"a"
    clock.now += 60
    assert body.read(1) == b"b"


def test_an_empty_selection_sends_nothing_and_confirms_nothing(client: LmsClient, wire: Wire) -> None:
    client.downgrade(lambda: Selection([]), lambda: inf)
    client.unlink(ENTERPRISE, lambda: Selection([]), lambda: inf)
    assert (wire.calls, client.confirmed_at) == ([], {})


@pytest.mark.parametrize("error", [Unavailable("database", "away"), RunRefused("x", "x", "x"), LeaseLost("gone")])
def test_what_the_selection_raises_ends_the_call(client: LmsClient, wire: Wire, error: Exception) -> None:
    asked: list[None] = []

    def select() -> Selection:
        asked.append(None)
        raise error

    with pytest.raises(type(error)):
        client.unlink(ENTERPRISE, select, lambda: inf)
    assert (len(asked), wire.calls) == (1, [])


def test_the_call_for_nobody_needs_no_selection(client: LmsClient, wire: Wire, clock: Clock) -> None:
    wire.says(403, 200)
    select = Selector(clock)
    with pytest.raises(BatchRefused):
        client.downgrade(select, lambda: inf)
    assert (len(select.made), len(wire.calls)) == (1, 2)


# The calls that concern nobody, and the clock


@pytest.mark.parametrize(
    ("before", "recently", "sends"),
    [
        pytest.param(None, None, 1, id="asked for plainly"),
        pytest.param(0.0, None, 1, id="though one was just taken"),
        pytest.param(None, 60.0, 1, id="none was taken so far"),
        pytest.param(None, inf, 1, id="none ever"),
        pytest.param(59.0, 60.0, 0, id="recently enough"),
        pytest.param(61.0, 60.0, 1, id="too long ago"),
        pytest.param(9e9, inf, 0, id="once in this process"),
    ],
)
def test_a_check_of_unlinks_is_left_out_where_one_was_taken_recently(
    client: LmsClient, wire: Wire, clock: Clock, before: float | None, recently: float | None, sends: int
) -> None:
    if before is not None:
        client.check_unlinks(ENTERPRISE, lambda: inf)
        clock.now += before
        wire.calls.clear()
    client.check_unlinks(ENTERPRISE, lambda: inf, recently)
    assert len(wire.calls) == sends
    client.check_unlinks(uuid4(), lambda: inf, recently)
    assert len(wire.calls) == sends + 1, "of another enterprise nothing is known"


def test_checks_say_what_is_refused(client: LmsClient, wire: Wire) -> None:
    wire.says(404)
    for check in (client.check_downgrades, lambda guard: client.check_unlinks(ENTERPRISE, guard)):
        with pytest.raises(RunRefused, match="is staff"):
            check(lambda: inf)
    assert wire.bodies() == [
        {"expired_license_uuids": [str(NOBODYS_LICENSE)], "ignore_enrollments_modified_after": None},
        {"user_emails": [NOBODYS_EMAIL], "is_relinkable": True},
    ]


def test_the_lms_clock_goes_on_from_its_last_token(client: LmsClient, wire: Wire, clock: Clock) -> None:
    token = wire.tokens[0]
    assert isinstance(token, Reply)
    token.headers["Date"] = "Wed, 21 Oct 2026 07:28:00 GMT"
    began = datetime(2026, 10, 21, 7, 28, tzinfo=UTC)
    assert client.lms_now() == began
    clock.now += 600
    assert client.lms_now() == began + timedelta(seconds=600)
    assert len(wire.token_calls) == 1
    clock.now += 3600
    assert client.lms_now() == began, "the clock of a new token counts from it"
    assert len(wire.token_calls) == 2


def test_an_lms_that_tells_no_date_has_no_clock(client: LmsClient, wire: Wire) -> None:
    assert client.lms_now() is None
    assert len(wire.token_calls) == 1


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
    wire.tokens = [throttled(1), Reply(503), *wire.tokens]
    downgrade(client)
    assert (len(wire.token_calls), len(wire.calls)) == (3, 1)


@pytest.mark.parametrize(
    ("told", "reason", "asked"),
    [
        pytest.param(Reply(503), "http_503", 3, id="503"),
        pytest.param(Reply(500), "http_500", 3, id="500"),
        pytest.param(requests.ConnectionError(), "connection_error", 3, id="no connection"),
        pytest.param(requests.ReadTimeout(), "timeout", 1, id="no answer: its time-out is longer than in_place"),
        pytest.param(throttled(5), "throttled", 1, id="throttled for as long as in_place"),
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


@pytest.mark.parametrize("status", [200, 203, 302, 400, 401, 403, 404, 503])
def test_a_web_page_in_place_of_a_token_is_not_the_lms_and_blames_no_credentials(
    client: LmsClient, wire: Wire, status: int
) -> None:
    wire.tokens = [Reply(status, {"Content-Type": "text/html", "Server": "a proxy"}, "<html>Sign in</html>")]
    error = fails(client)
    if status == 503:
        assert error.reason == "token_http_503", "a gateway's page, for a while"
        return
    assert (type(error), error.reason) == (RunRefused, "not_the_lms")
    assert "Server: a proxy" in error.what
    assert "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT" in error.remedy
    assert "SECRET" not in str(error)


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
    assert [call.seconds for call in wire.calls] == [11, 22]
    assert [call.seconds for call in wire.token_calls] == [10]
