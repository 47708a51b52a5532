"""Real processes: a broker of the test's own, worker, beat and Flower, and the simulated LMS beside them."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from sqlalchemy import Engine

from simulator.data.rows import Data
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port, listens
from support.eventually import eventually
from support.processes import BOTH_QUEUES, CELERY, OPERATOR, ROOT, kill_all_of
from support.runs import rows
from support.services import create_vhost, delete_vhost, missing
from worker.db.ledger_tables import Heartbeat


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts processes in the project's root, logs in tmp_path; none survives the test."""
    with Processes(tmp_path, ROOT) as started:
        yield started
        for _, process in started.running:  # asked to, each would take its seconds; test_shutdown.py sees how they end
            kill_all_of(process)


@pytest.fixture
def redis_server(processes: Processes, tmp_path: Path) -> redis.Redis:
    """A Redis of the test's own."""
    server = shutil.which("redis-server")
    if server is None:
        missing("redis-server", "install redis")
    port = free_port()
    command = [server, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    processes.start("redis", command, lambda: listens(port))
    return redis.Redis(port=port)


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a broker of the test's own: a Redis, or with the parameter "rabbitmq" a vhost of a RabbitMQ."""
    if getattr(request, "param", "redis") == "rabbitmq":
        url = create_vhost()
        yield url
        delete_vhost(url)
    else:
        client: redis.Redis = request.getfixturevalue("redis_server")
        yield f"redis://127.0.0.1:{client.connection_pool.connection_kwargs['port']}/0"


@pytest.fixture
def environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database_url: str, lms: Simulator, broker: str
) -> Callable[..., None]:
    """Sets the settings of all processes that are started from now on; more by name."""

    def set_environment(**more: Any) -> None:
        given = {
            "DATABASE_URL": database_url,
            "CELERY_BROKER_URL": broker,
            "LMS_URL": lms.url,
            "BACKEND_SERVICE_EDX_OAUTH2_KEY": lms.client_id,
            "BACKEND_SERVICE_EDX_OAUTH2_SECRET": lms.client_secret,
            "FLOWER_BASIC_AUTH": ":".join(OPERATOR),
            "PYTHONPATH": f"{tmp_path}:{ROOT}/tests",  # where a test's own app is
        }
        for name, value in (given | more).items():
            monkeypatch.setenv(name, str(value))

    return set_environment


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def worker(processes: Processes) -> Start:
    """Starts a real prefork worker and comes back when it is ready; give the concurrency, a name, another app.

    It serves both queues, without the process that it would start for the second; with `plain` it is as operators
    start it.
    """

    def start(
        concurrency: int = 2, name: str = "worker", app: str = "worker", plain: bool = False
    ) -> subprocess.Popen[bytes]:
        command = [*CELERY, app, "worker", "--loglevel=INFO", f"--concurrency={concurrency}", f"--hostname={name}@%h"]
        if not plain:
            command += BOTH_QUEUES
        return processes.start(name, command, lambda: re.search(rf"{name}@\S+ ready\.", processes.log(name)))

    return start


@pytest.fixture
def beat(processes: Processes, tmp_path: Path) -> Start:
    """Starts a real beat whose schedule file does not exist yet, and which reconciles twice a second."""

    def start(name: str = "beat", app: str = "support.fast_app") -> subprocess.Popen[bytes]:
        command = [*CELERY, app, "beat", "--loglevel=INFO", f"--schedule={tmp_path}/{name}"]
        return processes.start(name, command, lambda: "beat: Starting" in processes.log(name))

    return start


@pytest.fixture
def flower(processes: Processes, environment: Callable[..., None]) -> str:
    """A real Flower with a password; its address."""
    environment()
    port = free_port()
    start = [*CELERY, "worker", "flower", "--address=127.0.0.1", f"--port={port}", "--enable-events"]
    processes.start("flower", start, lambda: listens(port))
    return f"http://127.0.0.1:{port}"


@pytest.fixture
def data(engine: Engine) -> Data:
    """Rows for this test's database."""
    return Data(engine)


@pytest.fixture
def reconciled(engine: Engine) -> Callable[[], None]:
    """Comes back when `reconcile` has been run so often more, from beginning to end."""

    def last() -> datetime | None:
        [row] = rows(engine, Heartbeat)
        return cast("datetime | None", row["reconciled_at"])

    def wait(more: int = 3) -> None:
        for _ in range(more):
            before = last()
            eventually(lambda: last() != before, what="reconcile")  # noqa: B023, run at once

    return wait
