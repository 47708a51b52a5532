"""The order before each send, the token, time-outs."""

from math import inf
from pathlib import Path

import pytest
import requests
from support.wire import LICENSE, PATIENCE, Clock, Reply, Wire, downgrade, fails, throttled, unlink

from worker.errors import BatchRefused, LeaseLost, RunRefused, Unavailable
from worker.lms.client import LmsClient, Selection

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

    client.downgrade(lambda: Selection([LICENSE]), guard)
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

    wire.tokens.insert(0, throttled(400))  # the token is asked for within the call, and waits longer than a lease
    with pytest.raises(LeaseLost):
        client.downgrade(lambda: Selection([LICENSE]), guard)
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
    assert [call.timeout for call in wire.calls] == [(10.0, 11), (10.0, 22)]
    assert [call.timeout for call in wire.token_calls] == [(10.0, 10.0)]
