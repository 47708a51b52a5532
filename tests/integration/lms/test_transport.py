"""How calls reach a simulated LMS: token, network, throttling, connections."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.lms_calls import PAGE, PATIENCE, Call, Wire, fails, http, statuses

from simulator.lms.faults import Fault
from simulator.lms.journal import Kind
from simulator.lms.server import Simulator
from worker.errors import RunRefused, Unavailable
from worker.lms.client import LmsClient
from worker.lms.patience import Patience


def all_at_once(count: int, act: Callable[[], None]) -> None:
    """Do it in so many threads, which begin together; raise what any of them raises."""
    begin = threading.Barrier(count)

    def one() -> None:
        begin.wait(30)
        act()

    with ThreadPoolExecutor(count) as threads:
        for done in [threads.submit(one) for _ in range(count)]:
            done.result(60)


# The token


def test_a_token_is_fetched_once_and_kept(lms: Simulator, client: LmsClient, downgrade: Call, unlink: Call) -> None:
    for call in (downgrade, unlink, downgrade):
        call(client)
    assert len(lms.calls("token")) == 1
    assert statuses(lms.calls("downgrade")) == [200, 200]


def test_no_token_is_fetched_before_it_is_needed(lms: Simulator, client: LmsClient) -> None:
    assert lms.calls() == []


def test_eight_first_calls_at_once_fetch_one_token(lms: Simulator, client: LmsClient, downgrade: Call) -> None:
    lms.faults(Fault("token", delay=0.1))  # long enough for all to have found none
    all_at_once(8, lambda: downgrade(client))
    assert len(lms.calls("token")) == 1
    assert statuses(lms.calls("downgrade")) == [200] * 8


def test_eight_calls_whose_token_is_forgotten_fetch_one_new_token(
    lms: Simulator, client: LmsClient, downgrade: Call
) -> None:
    downgrade(client)
    lms.forget_tokens()
    all_at_once(8, lambda: downgrade(client))
    assert len(lms.calls("token")) == 2
    assert statuses(lms.calls("downgrade")).count(200) == 9


def test_a_token_is_replaced_before_it_expires(lms: Simulator, client: LmsClient, downgrade: Call) -> None:
    lms.lms.token_seconds = 10  # nearer to its end than a call may take
    downgrade(client)
    downgrade(client)
    assert len(lms.calls("token")) == 2
    assert statuses(lms.calls("downgrade")) == [200, 200]


def test_a_forgotten_token_costs_one_new_token_and_one_repeat(
    lms: Simulator, client: LmsClient, call: Call, kind: Kind
) -> None:
    call(client)
    lms.forget_tokens()
    lms.journal.clear()
    call(client)
    assert [entry.kind for entry in lms.calls()] == [kind, "token", kind]
    assert statuses(lms.calls(kind)) == [401, 200]


def test_a_token_refused_twice_fails_the_run(lms: Simulator, client: LmsClient, call: Call, kind: Kind) -> None:
    lms.faults(Fault(kind, status=401))
    error = fails(call, client)
    assert (type(error), error.reason) == (RunRefused, "http_401")
    assert "BACKEND_SERVICE_EDX_OAUTH2_KEY" in str(error)
    assert [entry.kind for entry in lms.calls()] == ["token", kind, "token", kind]


@pytest.mark.parametrize("wrong", [{"secret": "x"}, {"secret": ""}])
def test_wrong_credentials_fail_the_run_and_name_the_settings(
    lms: Simulator, connect: Callable[..., LmsClient], call: Call, wrong: dict[str, str]
) -> None:
    error = fails(call, connect(lms.url, **wrong))
    assert (type(error), error.reason) == (RunRefused, "token_http_401")
    for name in (
        "BACKEND_SERVICE_EDX_OAUTH2_KEY",
        "BACKEND_SERVICE_EDX_OAUTH2_SECRET",
        "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT",
    ):
        assert name in str(error)
    assert [entry.kind for entry in lms.calls()] == ["token"]


def test_tokens_come_from_the_oauth_root_and_calls_go_to_the_lms(
    lms: Simulator, wire: Wire, connect: Callable[..., LmsClient], downgrade: Call
) -> None:
    downgrade(connect(wire.url, oauth_url=lms.url))
    assert [entry.kind for entry in lms.calls()] == ["token"]
    assert len(wire.requests) == 1
    assert wire.requests[0].headers["Authorization"].removeprefix("JWT ") in lms.lms.tokens


@pytest.mark.parametrize("status", [302, 404, 422, 500, 502, 503])
def test_a_token_that_is_not_given_is_asked_for_again_by_the_next_call(
    lms: Simulator, client: LmsClient, downgrade: Call, status: int
) -> None:
    lms.faults(Fault("token", status=status, headers={"Location": "/login"}))
    fails(downgrade, client)
    assert lms.calls("downgrade") == []
    lms.faults()
    downgrade(client)
    assert lms.calls("other") == []


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("a\\nb", id="with a line break"),
        pytest.param("\\u65e5", id="beyond Latin-1"),
    ],
)
def test_a_token_that_no_header_can_hold_is_an_error_of_the_tree(
    lms: Simulator, client: LmsClient, downgrade: Call, token: str
) -> None:
    lms.faults(Fault("token", status=200, body=f'{{"access_token": "{token}", "expires_in": 3600}}'))
    error = fails(downgrade, client)
    assert (type(error), error.reason) == (RunRefused, "bad_token")


# The network


def test_a_refused_connection_is_unavailable_after_so_many_tries(
    lms: Simulator, connect: Callable[..., LmsClient], call: Call
) -> None:
    paced: list[float] = []

    def pace(kind: str, within: float) -> float:
        paced.append(within)
        return 0.0

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port meanwhile
        error = fails(call, connect(f"http://127.0.0.1:{taken.getsockname()[1]}", oauth_url=lms.url, next_call_in=pace))
    assert (type(error), error.reason) == (Unavailable, "connection_error")
    assert "LMS_URL" in str(error)
    assert len(paced) == PATIENCE.tries


def test_a_refused_connection_for_the_token_is_unavailable(connect: Callable[..., LmsClient], call: Call) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = fails(call, connect(f"http://127.0.0.1:{taken.getsockname()[1]}"))
    assert (type(error), error.reason) == (Unavailable, "connection_error")


@pytest.mark.parametrize(
    ("fault", "reason", "worked"),
    [
        pytest.param({"drop": "before"}, "connection_error", False, id="dropped before the work"),
        pytest.param({"drop": "after"}, "connection_error", True, id="dropped after it"),
        pytest.param({"truncate": True}, "connection_error", True, id="cut short"),
        pytest.param({"status": 502, "after_work": True, "body": PAGE}, "http_502", True, id="a gateway, after it"),
        pytest.param({"status": 503}, "http_503", False, id="down for maintenance"),
        pytest.param({"status": 504, "after_work": True, "body": PAGE}, "http_504", True, id="a gateway's time-out"),
    ],
)
@pytest.mark.parametrize("tries", [3, 1])
def test_what_stays_unreachable_is_unavailable_after_so_many_tries(
    lms: Simulator,
    connect: Callable[..., LmsClient],
    kind: Kind,
    call: Call,
    fault: dict[str, Any],
    reason: str,
    worked: bool,
    tries: int,
) -> None:
    patience = Patience(tries=tries, first_wait=0.001)
    lms.faults(Fault(kind, **fault))
    error = fails(call, connect(lms.url, patience=patience))
    assert (type(error), error.reason) == (Unavailable, reason)
    assert [entry.worked for entry in lms.calls(kind)] == [worked] * tries


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"drop": "before"}, id="dropped before the work"),
        pytest.param({"drop": "after"}, id="dropped after it"),
        pytest.param({"truncate": True}, id="cut short"),
        pytest.param({"status": 502, "body": PAGE}, id="502"),
        pytest.param({"status": 503}, id="503"),
        pytest.param({"status": 504, "body": PAGE, "after_work": True}, id="504"),
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_what_passes_ends_in_success(
    lms: Simulator, client: LmsClient, kind: Kind, call: Call, fault: dict[str, Any], times: int
) -> None:
    lms.faults(Fault(kind, times=times, **fault))
    call(client)
    assert len(lms.calls(kind)) == times + 1
    assert len(lms.calls("token")) == 1


def test_an_answer_that_does_not_come_is_a_timeout_by_its_own_setting(
    lms: Simulator, connect: Callable[..., LmsClient], kind: Kind, call: Call
) -> None:
    client = connect(lms.url, **{f"{kind}_timeout": 0.05})
    lms.faults(Fault(kind, delay=60))
    began = time.monotonic()
    error = fails(call, client)
    assert isinstance(error, Unavailable)
    assert (error.reason, len(lms.calls(kind))) == ("timeout", PATIENCE.tries)
    assert 0.15 <= error.lasted <= time.monotonic() - began < 20
    lms.release()


def test_a_time_out_that_took_longer_than_in_place_is_not_tried_again_in_place(
    lms: Simulator, connect: Callable[..., LmsClient], kind: Kind, call: Call
) -> None:
    client = connect(lms.url, patience=Patience(first_wait=0.001, in_place=0.2), **{f"{kind}_timeout": 0.3})
    lms.faults(Fault(kind, delay=60))
    error = fails(call, client)
    assert isinstance(error, Unavailable)
    assert (error.reason, len(lms.calls(kind))) == ("timeout", 1)
    assert error.lasted >= 0.3
    lms.release()


def test_the_time_out_of_one_call_is_not_the_others(
    lms: Simulator, connect: Callable[..., LmsClient], kind: Kind, call: Call
) -> None:
    other = "unlink" if kind == "downgrade" else "downgrade"
    client = connect(lms.url, **{f"{other}_timeout": 0.02})
    lms.faults(Fault(kind, delay=0.1))
    call(client)
    assert len(lms.calls(kind)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing at all"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="not HTTP"),
        pytest.param(b"HTTP/1.1 2\xff0 OK\r\n\r\n", id="not a status"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n", id="a bad chunk"
        ),
        pytest.param(http(200, "plain", "Content-Encoding: gzip"), id="not gzip"),
        pytest.param(http(200, "", *(f"X-{number}: y" for number in range(101))), id="too many headers"),
        pytest.param(http(200, "", "X: " + "y" * 70_000), id="too long a header"),
    ],
)
def test_what_is_not_an_answer_is_unavailable_and_never_success(
    wire: Wire, connect: Callable[..., LmsClient], downgrade: Call, answer: bytes
) -> None:
    wire.says(answer)
    error = fails(downgrade, connect(wire.url))
    assert (type(error), error.reason) == (Unavailable, "connection_error")
    assert len(wire.calls()) == PATIENCE.tries


# Retry-After and throttling, in real time


def test_a_short_throttle_is_waited_out_in_place(lms: Simulator, client: LmsClient, downgrade: Call) -> None:
    lms.throttle(3, 0.5)
    all_at_once(5, lambda: downgrade(client))
    answers = statuses(lms.calls("downgrade"))
    assert answers.count(200) == 5
    assert 1 <= answers.count(429) <= 4, "those who had to wait did not knock again and again"


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("asked", ["5", "3600"])
def test_a_retry_after_of_in_place_or_more_is_the_callers_to_wait_for(
    lms: Simulator, client: LmsClient, kind: Kind, call: Call, status: int, asked: str
) -> None:
    lms.faults(Fault(kind, status=status, headers={"Retry-After": asked}))
    began = time.monotonic()
    error = fails(call, client)
    assert isinstance(error, Unavailable)
    assert (error.reason, error.retry_after) == ("throttled" if status == 429 else "http_503", float(asked))
    assert len(lms.calls(kind)) == 1
    assert error.lasted <= time.monotonic() - began < 5


# Connections


def test_a_thread_keeps_one_connection_for_all_it_sends(
    wire: Wire, connect: Callable[..., LmsClient], downgrade: Call, unlink: Call
) -> None:
    client = connect(wire.url)
    wire.says(http(503, PAGE), http(401), http(200), http(422, PAGE), http(200))
    downgrade(client)
    fails(unlink, client)
    downgrade(client)
    assert len(wire.requests) == 8
    assert (wire.opened, wire.still_open) == (1, 1)


def test_each_thread_has_a_session_of_its_own(wire: Wire, connect: Callable[..., LmsClient], downgrade: Call) -> None:
    client = connect(wire.url)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for thread in (one, other, one, other, one):  # one after another: a shared session would have one connection
            thread.submit(downgrade, client).result(30)
    assert [call.connection for call in wire.calls()] == [1, 2, 1, 2, 1]
    assert wire.opened == 2


def test_parallel_calls_open_one_connection_a_thread(
    wire: Wire, connect: Callable[..., LmsClient], downgrade: Call
) -> None:
    client = connect(wire.url)

    def five_times() -> None:
        for _ in range(5):
            downgrade(client)

    all_at_once(4, five_times)
    assert len(wire.calls()) == 20
    assert wire.opened == 4


def test_close_closes_the_connections_of_all_threads(
    wire: Wire, connect: Callable[..., LmsClient], downgrade: Call
) -> None:
    client = connect(wire.url)
    all_at_once(3, lambda: downgrade(client))
    assert wire.still_open == 3
    client.close()
    with wire.changed:
        assert wire.changed.wait_for(lambda: wire.still_open == 0, 30)
