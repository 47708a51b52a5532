"""A real Flower is attacked: logins are tried, pages framed and odd requests sent."""

import re
import subprocess
from base64 import b64encode
from typing import Any

import pytest
import redis
import requests
from flower.urls import handlers  # type: ignore[import-untyped]
from hypothesis import given
from sqlalchemy import Engine
from support import http_fuzz
from support.eventually import eventually
from support.processes import CELERY, OPERATOR, ROOT, WORKER_SQLITE, lay, runs

from simulator.data.rows import Data
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port, listens
from worker.flower.pages import HANDLERS
from worker.settings import CONTROL_QUEUE, STEPS_QUEUE

SECRETS = ("a-long-flower-password", "an-oauth-secret")
LOGIN = (OPERATOR[0], SECRETS[0])


def basic(user: str, password: str) -> str:
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"


@pytest.fixture
def flower(processes: Processes, environment: Any, data: Data, lms: Simulator) -> int:
    """The port of a real one behind a proxy, on a database with an enterprise that is due."""
    lay(data, lms)
    environment(FLOWER_BASIC_AUTH=":".join(LOGIN))
    port = free_port()
    start = [*CELERY, "worker", "flower", f"--port={port}", "--xheaders=true"]
    processes.start("flower", start, lambda: listens(port))
    return port


@pytest.mark.long
@WORKER_SQLITE
@pytest.mark.parametrize(
    "given", ["operator:password", "auditor:s3,operator:password"], ids=["the example", "one of them"]
)
def test_flower_does_not_start_with_a_password_from_an_example(given: str, environment: Any) -> None:
    environment(FLOWER_BASIC_AUTH=given)
    start = [*CELERY, "worker", "flower", f"--port={free_port()}"]
    for more in ([], [f"--basic_auth={given}"]):
        done = subprocess.run([*start, *more], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert re.fullmatch("FLOWER_BASIC_AUTH has the password of an example.*openssl rand.*\n", done.stderr)


@WORKER_SQLITE
def test_failed_logins_are_logged_and_slowed(flower: int, processes: Processes) -> None:
    def status(user: str, password: str, address: str) -> int:
        headers = {"Authorization": basic(user, password), "X-Real-Ip": address}
        return requests.get(f"http://127.0.0.1:{flower}/api/tasks", headers=headers, timeout=10).status_code

    assert status(*LOGIN, "10.0.0.1") == 200
    assert requests.get(f"http://127.0.0.1:{flower}/tasks", timeout=10).status_code == 401, "no login yet, none failed"
    told = [status("mallory\x1b[2J\n", f"guess-{number}", "10.0.0.1") for number in range(20)]
    assert told[0] == 401
    assert told.count(429) >= 17, "one guess, then one a second, one in two"
    assert status(*LOGIN, "10.0.0.1") == 200, "who was let in before is not kept out"
    assert status("mallory", "guess", "10.0.0.2") == 401, "another address has tries of its own"
    assert status("mallory", "guess", "10.0.0.2") == 429
    eventually(lambda: status(OPERATOR[0], SECRETS[0] + "x", "10.0.0.2") == 401, 10, "the end of the wait")
    assert status("operatör", "not ASCII", "10.0.0.3") == 401
    log = processes.log("flower")
    assert "\x1b" not in log
    lines = [line for line in log.splitlines() if "login failed" in line]
    assert len(lines) <= 8, "none for those that were not looked at"
    assert "10.0.0.1" in lines[0]
    assert "mallory[2J" in lines[0]
    assert "guess" not in log
    assert SECRETS[0] not in log


@WORKER_SQLITE
def test_no_answer_may_be_framed(flower: int) -> None:
    paths = {"/", "/nowhere", "/static/css/flower.css", "/static/nowhere", "/task/x", "/worker/x", "/metrics"}
    for handler in [*HANDLERS, *handlers]:
        pattern = handler.regex.pattern.rstrip("$") if hasattr(handler, "regex") else handler[0]
        paths.add(re.sub(r"/\?$", "", re.sub(r"\([^)]*\)", "0", pattern)))
    for path in sorted(paths - {".*"}):
        for login in (None, LOGIN):
            answer = requests.get(f"http://127.0.0.1:{flower}{path}", auth=login, timeout=10, allow_redirects=False)
            assert answer.headers.get("X-Frame-Options") == "DENY", (path, answer.status_code)


STARTS = "/api/task/async-apply/license_expiry.run_nightly"
PATHS = (
    *("/", "/tasks", "/tasks/datatable", "/broker", "/worker/x", "/task/x", "/metrics", "/healthcheck", "/login"),
    *("/license-expiry", "/license-expiry/start", "/license-expiry/stop", "/license-expiry/pause", "/static/js/x.js"),
    *("/api/workers", "/api/tasks", "/api/task/types", "/api/queues/length", "/api/task/info/x", "/api/task/result/x"),
    *(STARTS, "/api/task/send-task/license_expiry.reconcile", "/api/task/apply/license_expiry.run_nightly"),
    *("/api/worker/shutdown/x", "/api/task/revoke/x", "/api/worker/queue/cancel-consumer/x"),
)
QUERIES = ("enterprise", "run", "find", "limit", "offset", "sort_by", "state", "draw", "length", "reason", "again")
WRONG = (
    basic("operator", "password"),
    basic("operatör", "x"),
    "Basic",
    "Basic ====",
    "Basic Og==",
    "Bearer x",
    "Basic \xff",
)


@WORKER_SQLITE
@pytest.mark.timeout(3600)
def test_no_request_ends_it_or_hangs_it_or_gets_a_secret_or_starts_a_task(
    engine: Engine, flower: int, processes: Processes, redis_server: redis.Redis
) -> None:
    client = http_fuzz.Client(flower)
    process = processes.running[-1][1]

    @http_fuzz.AS_MANY
    @given(http_fuzz.requests(PATHS, QUERIES, WRONG, basic(*LOGIN)))
    def sent(odd: http_fuzz.Odd) -> None:
        answer = client.send(odd)
        assert process.poll() is None
        assert not http_fuzz.EMAIL.search(answer)
        assert not [secret for secret in SECRETS if secret.encode() in answer]
        if not odd.authorized:
            assert b"Traceback" not in answer
            assert answer[9:12] != b"500"

    sent()
    healthcheck = f"http://127.0.0.1:{flower}/healthcheck"
    assert requests.get(healthcheck, timeout=5).text == "OK"
    client.close()
    assert client.statuses.keys() >= {b"400", b"401", b"404"}
    log = processes.log("flower")
    assert not http_fuzz.EMAIL.search(log.encode())
    assert not [secret for secret in SECRETS if secret in log]
    assert [redis_server.llen(f"license_expiry:{queue}") for queue in (STEPS_QUEUE, CONTROL_QUEUE)] == [0, 0]
    assert runs(engine) == []
