"""The whole of an answer is bounded, in time and in size, whoever sends it how."""

import gzip
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain, repeat

import pytest
from support.lms_calls import Call, Customer, Slow, Wire, fails, http, nothing

from worker.errors import BatchRefused, ReasonedError, RunRefused, Unavailable
from worker.lms.answer import MOST_BYTES, MOST_BYTES_OF_LEARNERS
from worker.lms.client import LmsClient
from worker.lms.patience import Patience

ONCE = Patience(tries=1, tries_on_500=1)
SECONDS = 0.5
LONG = "y" * 400
MEGABYTE = b"x" * 1024 * 1024
ENDLESS = 400  # megabytes


def dripping(answer: bytes) -> Slow:
    """Each byte in time, and all of them in 20 times the time-out at least."""
    return Slow([bytes([each]) for each in answer], SECONDS / 10)


def endless(status: int, *headers: str) -> Slow:
    head = "\r\n".join([f"HTTP/1.1 {status} Whatever", *headers, "", ""]).encode()
    return Slow(chain([head], repeat(MEGABYTE, ENDLESS)))


def bomb(megabytes: int) -> bytes:
    body = gzip.compress(bytes(megabytes * 1024 * 1024))
    head = f"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.fixture
def client(wire: Wire, connect: Callable[..., LmsClient]) -> LmsClient:
    return connect(wire.url, patience=ONCE, downgrade_timeout=SECONDS, unlink_timeout=SECONDS)


@pytest.fixture
def patient(wire: Wire, connect: Callable[..., LmsClient]) -> LmsClient:
    return connect(wire.url, patience=ONCE)


@pytest.fixture
def peak() -> Iterator[Callable[[], int]]:
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


def asks(customer: Customer) -> Call:
    def ask(client: LmsClient) -> None:
        client.linked_learners(customer.enterprise, [1], nothing)

    return ask


# Time


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(dripping(http(200, "", f"X: {LONG}")), id="the headers"),
        pytest.param(Slow(repeat(b"HTTP/1.1 100 Continue\r\n\r\n"), SECONDS / 10), id="that it goes on"),
        pytest.param(Slow(chain([http(200)[:-2]], repeat(b"X: y\r\n")), SECONDS / 10), id="one header after another"),
        pytest.param(Slow([http(200, LONG)[:-400], *[b"y"] * 400], SECONDS / 10), id="the body"),
        pytest.param(Slow([http(422, LONG)[:-400], *[b"y"] * 400], SECONDS / 10), id="the body of a refusal"),
        pytest.param(
            Slow(chain([b"HTTP/1.1 200 OK\r\n\r\n"], repeat(b"y")), SECONDS / 10), id="a body of no known length"
        ),
        pytest.param(
            Slow(
                chain([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"], repeat(b"1\r\ny\r\n")), SECONDS / 10
            ),
            id="chunks",
        ),
        pytest.param(
            Slow(chain([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"], repeat(b"0")), SECONDS / 10),
            id="the size of a chunk",
        ),
        pytest.param(
            Slow([b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\ny"], 60),
            id="a body that is promised",
        ),
    ],
)
def test_an_answer_that_drips_takes_no_longer_than_the_time_out(
    wire: Wire, client: LmsClient, downgrade: Call, answer: Slow
) -> None:
    wire.says(answer)
    began = time.monotonic()
    error = fails(downgrade, client)
    assert (type(error), error.reason) == (Unavailable, "timeout")
    assert SECONDS * 0.9 <= time.monotonic() - began < SECONDS * 8


def test_a_call_after_one_that_was_too_slow_has_all_of_its_time(wire: Wire, client: LmsClient, downgrade: Call) -> None:
    nearly = [Slow([http(200)[:-1], http(200)[-1:]], SECONDS * 0.6) for _ in range(2)]
    wire.says(dripping(http(200, LONG)), *nearly, http(200))
    assert fails(downgrade, client).reason == "timeout"
    for _ in range(3):
        downgrade(client)
    assert wire.opened == 2


# Size


@pytest.mark.parametrize(
    ("status", "headers", "kind", "reason"),
    [
        pytest.param(200, (), RunRefused, "not_the_lms", id="until it hangs up"),
        pytest.param(200, ("Content-Length: 419430400",), RunRefused, "not_the_lms", id="as promised"),
        pytest.param(302, ("Location: /login",), RunRefused, "not_the_lms", id="a redirect"),
        pytest.param(422, (), BatchRefused, "http_422", id="a refusal"),
        pytest.param(503, (), Unavailable, "http_503", id="a gateway's"),
        pytest.param(200, ("Transfer-Encoding: chunked",), Unavailable, "connection_error", id="one line of a chunk"),
    ],
)
def test_no_more_of_an_answer_is_read_than_its_limit(
    wire: Wire,
    patient: LmsClient,
    downgrade: Call,
    peak: Callable[[], int],
    status: int,
    headers: tuple[str, ...],
    kind: type[ReasonedError],
    reason: str,
) -> None:
    sent = endless(status, *headers)
    wire.says(sent, http(200))  # the latter to the call that concerns nobody
    error = fails(downgrade, patient)
    assert (type(error), error.reason) == (kind, reason)
    assert sent.sent < 40, "it was read to its end"
    assert peak() < 100 * len(MEGABYTE)
    if status == 200 and kind is RunRefused:
        assert f"of more than {MOST_BYTES} bytes, which is not the LMS's answer: check LMS_URL" in str(error)


@pytest.mark.parametrize("asked", ["downgrade", "learners"])
def test_no_more_is_unpacked_than_the_limit(
    wire: Wire, patient: LmsClient, customer: Customer, downgrade: Call, peak: Callable[[], int], asked: str
) -> None:
    wire.says(bomb(100))
    before = peak()
    error = fails(downgrade if asked == "downgrade" else asks(customer), patient)
    assert (type(error), error.reason) == (RunRefused, "not_the_lms")
    assert f"of more than {MOST_BYTES if asked == 'downgrade' else MOST_BYTES_OF_LEARNERS} bytes" in error.what
    assert peak() - before < 5 * MOST_BYTES_OF_LEARNERS


def test_a_token_is_bounded_too_and_names_its_own_setting(
    wire: Wire, connect: Callable[..., LmsClient], downgrade: Call
) -> None:
    wire.token = endless(200)
    error = fails(downgrade, connect(wire.url, patience=ONCE))
    assert (type(error), error.reason) == (RunRefused, "not_the_lms")
    assert "check SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT" in error.remedy


def test_an_answer_of_the_limit_is_taken(wire: Wire, patient: LmsClient, customer: Customer) -> None:
    page = '{"results": [], "next": null%s}'
    wire.says(http(200, page % (" " * (MOST_BYTES_OF_LEARNERS - len(page) + 2))))
    assert patient.linked_learners(customer.enterprise, [1], nothing) == {}


# What is said of the length


@pytest.mark.parametrize("length", ["-1", "abc", "9" * 400])
def test_a_length_that_cannot_be_is_never_success_of_a_call(
    wire: Wire, client: LmsClient, downgrade: Call, length: str
) -> None:
    wire.says(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\nbody".encode())
    assert type(fails(downgrade, client)) in (Unavailable, RunRefused)


# Connections


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(http(200), id="empty"),
        pytest.param(http(422, LONG * 1000), id="a refusal with a body"),
        pytest.param(b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n", id="chunks"),
    ],
)
def test_a_connection_is_kept_after_an_answer_that_was_read(
    wire: Wire, patient: LmsClient, downgrade: Call, answer: bytes
) -> None:
    for _ in range(2):
        wire.says(answer, http(200))
        with suppress(BatchRefused, Unavailable):
            downgrade(patient)
    assert wire.opened == 1


def test_a_connection_is_closed_after_an_unfinished_answer(wire: Wire, patient: LmsClient, downgrade: Call) -> None:
    wire.says(endless(503), http(200))
    fails(downgrade, patient)
    downgrade(patient)
    with wire.changed:
        assert wire.changed.wait_for(lambda: (wire.opened, wire.still_open) == (2, 1), 30)
