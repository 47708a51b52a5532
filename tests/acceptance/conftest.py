"""Real processes: a Redis of the test's own, worker, beat and Flower, and the simulated LMS beside them."""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from services import missing
from sqlalchemy import Engine

from simulator.data import Data
from simulator.lms import Simulator
from simulator.processes import Processes, free_port, listens

ROOT = Path(__file__).parents[2]
CELERY = [sys.executable, "-m", "celery", "-A", "worker"]


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts processes in the project's root, logs in tmp_path; none survives the test."""
    with Processes(tmp_path, ROOT) as started:
        yield started


@pytest.fixture
def broker(processes: Processes, tmp_path: Path) -> redis.Redis:
    """A Redis of the test's own."""
    server = shutil.which("redis-server")
    if server is None:
        missing("redis-server", "install redis")
    port = free_port()
    command = [server, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(tmp_path)]
    processes.start("redis", command, lambda: listens(port))
    return redis.Redis(port=port)


@pytest.fixture
def environment(
    monkeypatch: pytest.MonkeyPatch, database_url: str, lms: Simulator, broker: redis.Redis
) -> Callable[..., None]:
    """Sets the settings of all processes that are started from now on; more by name."""

    def set_environment(**more: Any) -> None:
        port = broker.connection_pool.connection_kwargs["port"]
        given = {
            "DATABASE_URL": database_url,
            "CELERY_BROKER_URL": f"redis://127.0.0.1:{port}/0",
            "LMS_URL": lms.url,
            "BACKEND_SERVICE_EDX_OAUTH2_KEY": lms.client_id,
            "BACKEND_SERVICE_EDX_OAUTH2_SECRET": lms.client_secret,
            "FLOWER_BASIC_AUTH": "operator:secret",
        }
        for name, value in (given | more).items():
            monkeypatch.setenv(name, str(value))

    return set_environment


@pytest.fixture
def worker(processes: Processes) -> Callable[..., Any]:
    """Starts a real prefork worker and comes back when it is ready; give the concurrency."""

    def start(concurrency: int = 2, name: str = "worker") -> Any:
        command = [*CELERY, "worker", "--loglevel=INFO", f"--concurrency={concurrency}", f"--hostname={name}@%h"]
        return processes.start(name, command, lambda: " ready." in processes.log(name))

    return start


@pytest.fixture
def data(engine: Engine) -> Data:
    """Rows for this test's database."""
    return Data(engine)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests with real processes more time than others."""
    for item in items:
        if "acceptance" in Path(item.path).parts:
            item.add_marker(pytest.mark.timeout(300))
