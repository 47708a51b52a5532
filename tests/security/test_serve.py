"""`license-expiry serve` is asked by anybody: it stays up, answers to its own names alone, and gives nothing away."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from hypothesis import given
from sqlalchemy import Engine
from support import http_fuzz
from support.eventually import eventually
from support.past_nights import lay_past
from support.processes import COMMAND, WORKER_SQLITE

from simulator.processes import Processes, free_port, listens

DESCRIPTORS = 128
SECRETS = ("a-broker-password", "an-oauth-secret")


@pytest.fixture
def serve(engine: Engine, environment: Any, processes: Processes) -> Callable[..., int]:
    """Starts a real one on nights of the past, with few descriptors; gives its port."""

    def start(*options: str, **more: str) -> int:
        lay_past(engine, 6, nights=2, trouble=0.5, live=1)
        secrets = {"BACKEND_SERVICE_EDX_OAUTH2_SECRET": SECRETS[1]}
        environment(CELERY_BROKER_URL=f"redis://:{SECRETS[0]}@127.0.0.1:1/0", **secrets, **more)
        port = free_port()
        limited = ["sh", "-c", f'ulimit -n {DESCRIPTORS}; exec "$@"', "sh"]
        processes.start("serve", [*limited, *COMMAND, "serve", "--port", str(port), *options], lambda: listens(port))
        return port

    return start


@pytest.fixture
def broker() -> str:
    """None: serve needs no broker."""
    return "redis://127.0.0.1:1/0"


def healthy(port: int) -> bool:
    return requests.get(f"http://127.0.0.1:{port}/healthz", timeout=5).text == "ok\n"


@pytest.fixture
def half() -> Iterator[list[socket.socket]]:
    """Connections that are closed at last."""
    made: list[socket.socket] = []
    yield made
    for connection in made:
        connection.close()


@WORKER_SQLITE
def test_half_requests_keep_nobody_out_and_fill_no_log(
    serve: Callable[..., int], processes: Processes, half: list[socket.socket]
) -> None:
    port = serve()
    for _ in range(3):
        half += http_fuzz.half_requests(port, 150)
        assert healthy(port)
    assert len(processes.log("serve").splitlines()) == 1, "that it serves"


@pytest.mark.long
@WORKER_SQLITE
def test_a_request_that_is_not_ended_is_given_up(serve: Callable[..., int], half: list[socket.socket]) -> None:
    half += http_fuzz.half_requests(serve(), 1)
    half[0].settimeout(30)
    assert half[0].recv(1) == b"", "closed, after 20 seconds"


@WORKER_SQLITE
def test_on_loopback_it_answers_to_its_own_names_alone(serve: Callable[..., int]) -> None:
    port = serve(SERVE_URL="https://nights.example.org/")

    def status(host: str, path: str = "/") -> int:
        return requests.get(f"http://127.0.0.1:{port}{path}", headers={"Host": host}, timeout=5).status_code

    for ours in ("127.0.0.1", f"localhost:{port}", "nights.example.org", "[::1]:8001", "10.1.2.3"):
        assert status(ours) == 200, ours
    for path in ("/", "/metrics", "/healthz", "/grid", "/nowhere", "/runs/x"):
        assert status(f"rebound.example:{port}", path) == 421
    for theirs in ("127.0.0.1.rebound.example", "nights.example.org.rebound.example", "localhost.rebound.example"):
        assert status(theirs) == 421, theirs
    said = requests.get(f"http://127.0.0.1:{port}/", headers={"Host": "rebound.example"}, timeout=5).text
    assert "set SERVE_URL" in said
    assert "rebound" not in said


@WORKER_SQLITE
def test_elsewhere_it_is_asked_by_any_name(serve: Callable[..., int]) -> None:
    port = serve("--address", "0.0.0.0")
    answer = requests.get(f"http://127.0.0.1:{port}/healthz", headers={"Host": "license-expiry-serve"}, timeout=5)
    assert answer.status_code == 200


PATHS = ("/", "/grid", "/metrics", "/healthz", "/nights/2026-01-31T020000Z", "/nights/x", "/runs/x", "/enterprises/x")
QUERIES = ("find", "sort", "every", "after")


@WORKER_SQLITE
@pytest.mark.timeout(3600)
def test_no_request_ends_it_or_hangs_it_or_gets_a_secret(serve: Callable[..., int], processes: Processes) -> None:
    port = serve()
    client = http_fuzz.Client(port)
    process: subprocess.Popen[bytes] = processes.running[-1][1]

    @http_fuzz.AS_MANY
    @given(http_fuzz.requests(PATHS, QUERIES, ("Basic b3BlcmF0b3I6cGFzc3dvcmQ=", "Bearer x")))
    def sent(odd: http_fuzz.Odd) -> None:
        answer = client.send(odd)
        assert process.poll() is None
        assert not http_fuzz.EMAIL.search(answer)
        assert not [secret for secret in SECRETS if secret.encode() in answer]
        assert b"Traceback" not in answer
        assert answer[9:12] not in (b"500", b"503")

    sent()
    assert eventually(lambda: healthy(port), 5)
    client.close()
    assert client.statuses.keys() >= {b"200", b"400", b"404"}
    log = processes.log("serve")
    assert not http_fuzz.EMAIL.search(log.encode())
    assert not [secret for secret in SECRETS if secret in log]
    assert len(log.splitlines()) == 1, "none of them is worth a line"
