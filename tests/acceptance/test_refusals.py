"""What refuses a worker is told before it starts, in one sentence; what is merely away is waited for."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, make_url
from support.database_account import SECURITY
from support.eventually import eventually
from support.processes import BOTH_QUEUES, CELERY, ROOT, WORKER_SQLITE, command, lay, listed, read
from support.services import POSTGRES_URL

from simulator.data.rows import Data
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port, listens

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, environment: Callable[..., None], tmp_path: Path) -> Start:
    """Starts a worker, or with "beat" a beat, under these settings."""

    def start(part: str = "worker", **settings: str) -> subprocess.Popen[str]:
        environment(**settings)
        options = ["--schedule", str(tmp_path / "schedule")] if part == "beat" else ["--concurrency=1"]
        start = [*CELERY, "worker", part, *options]
        return subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    return start


def sentence_of(process: subprocess.Popen[str]) -> str:
    """The last line of a process that did not start."""
    told, _ = process.communicate(timeout=200)
    assert process.returncode == 2, told
    assert "Traceback" not in told
    assert " ready." not in told
    return told.strip().splitlines()[-1]


@WORKER_SQLITE
def test_a_broker_that_refuses_is_reported_before_the_start(
    starts: Start, broker: str, redis_server: redis.Redis, database_url: str
) -> None:
    redis_server.execute_command(*["ACL", "SETUSER", "few", "on", ">secret", "~*", "resetchannels", "+@all"])  # type: ignore[no-untyped-call]
    few = starts(CELERY_BROKER_URL=broker.replace("//", "//few:secret@"))
    unknown = starts(CELERY_BROKER_URL=broker.replace("//", "//nobody:secret@"))
    assert "docs/how-to/accounts.md" in sentence_of(few)
    assert "correct the user and the password in CELERY_BROKER_URL" in sentence_of(unknown)
    redis_server.replicaof("127.0.0.1", 1)
    replica, beat = starts(CELERY_BROKER_URL=broker), starts("beat", CELERY_BROKER_URL=broker)
    for process in (replica, beat):
        assert "not to a replica" in sentence_of(process)
    redis_server.replicaof("NO", "ONE")
    redis_server.config_set("maxmemory", 1)
    assert "raise maxmemory in redis.conf" in sentence_of(starts(CELERY_BROKER_URL=broker))


@WORKER_SQLITE
def test_a_database_that_refuses_is_reported_before_the_start(starts: Start, database_url: str) -> None:
    server = make_url(POSTGRES_URL)
    unknown = server.set(username="nobody", password="secret").render_as_string(hide_password=False)
    nowhere = server.set(database="nowhere").render_as_string(hide_password=False)
    processes = [starts(DATABASE_URL=unknown.replace("+psycopg", "")), starts(DATABASE_URL=nowhere)]
    account, name = map(sentence_of, processes)
    assert account.endswith(
        "correct the user and the password in DATABASE_URL, or let this account connect from this host"
    )
    assert name.endswith("correct the database's name in DATABASE_URL, or grant its account access to it")
    assert "secret" not in account


@WORKER_SQLITE
def test_a_database_and_a_broker_that_are_unreachable_are_waited_for(
    environment: Any, processes: Processes, tmp_path: Path, database_url: str
) -> None:
    port = free_port()
    away = f"postgresql://nobody:secret@127.0.0.1:{free_port()}/postgres"
    environment(CELERY_BROKER_URL=f"redis://127.0.0.1:{port}/0", DATABASE_URL=away)
    worker = processes.start(
        "worker", [*CELERY, "worker", "worker", "--loglevel=INFO", "--concurrency=1", *BOTH_QUEUES]
    )
    eventually(lambda: "Cannot connect to redis" in processes.log("worker"), seconds=60, what="its first try")
    options = ["--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    processes.start("redis", [str(shutil.which("redis-server")), *options], lambda: listens(port))
    eventually(lambda: " ready." in processes.log("worker"), seconds=60, what="the worker")
    assert worker.poll() is None
    [warning] = [line for line in processes.log("worker").splitlines() if "the database does not answer" in line]
    assert "level=warning" in warning
    assert "secret" not in warning


@pytest.mark.long
@WORKER_SQLITE
def test_the_documented_rights_are_enough_for_a_night_seen_in_flower(
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    worker: Any,
    beat: Any,
    processes: Processes,
    broker: str,
    redis_server: redis.Redis,
) -> None:
    [documented] = [line for line in SECURITY.read_text().splitlines() if line.startswith("ACL SETUSER")]
    redis_server.execute_command(*documented.replace("a-password", "secret").replace("/5.", "/0.").split())  # type: ignore[no-untyped-call]
    (enterprise,) = lay(data, lms)
    environment(CELERY_BROKER_URL=broker.replace("//", "//license_expiry:secret@"), **listed(enterprise))
    worker()
    beat()
    port = free_port()
    flower = [*CELERY, "worker", "flower", f"--port={port}"]
    processes.start("flower", flower, lambda: listens(port))
    status, night = command("run")
    assert (status, [run["phase"] for run in night["runs"]]) == (0, ["finished"])
    tasks = f"http://127.0.0.1:{port}/api/tasks?state=SUCCESS"
    eventually(lambda: read(tasks), what="Flower's having heard of it")
    logs = "".join(processes.log(name) for name in ("worker", "beat", "flower"))
    assert "permissions" not in logs
