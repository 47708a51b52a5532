"""What a night needs around it: a database with data, Redis, the simulated LMS, and workers."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import redis
import requests
from sqlalchemy import Engine, make_url
from support.databases import with_tables
from support.processes import BOTH_QUEUES
from support.services import database_on

from bench.meters import Used, of_group, of_server
from simulator.processes import Processes, free_port

ROOT = Path(__file__).parents[2]
PROGRAMS = {"postgresql": "postgres", "mariadb": "mariadbd", "mysql": "mysqld"}
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Pace:
    """Seconds that the LMS takes for a call, the calls in flight over all workers, and a worker's processes."""

    latency: float
    in_flight: int
    processes: int

    def __str__(self) -> str:
        """As --night takes it."""
        return f"{self.latency:g}/{self.in_flight}/{self.processes}"


# An LMS takes seconds for 100 licenses: what nights are like. The stress shows what the worker costs beside the LMS.
REALISTIC, STRESS = Pace(1.0, 16, 20), Pace(0.05, 8, 8)


@contextmanager
def license_manager(server: str, folder: Path) -> Iterator[tuple[Engine, str]]:
    """Give the engine and the URL of an empty database with every table on this server; empty the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with database_on(server) as url, with_tables(url) as engine:
        yield engine, url


@dataclass
class Stand:
    """Redis and the simulated LMS, running; the environment has the settings of what is started beside them."""

    folder: Path
    kind: str
    engine: Engine
    host: str
    processes: Processes
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start both, on ports of their own."""
        port, lms = (int(make_url(os.environ[name]).port or 0) for name in ("CELERY_BROKER_URL", "LMS_URL"))
        serve = ["redis-server", "--port", str(port), "--bind", self.host, "--protected-mode", "no", "--save", ""]
        self.redis = self.processes.start("redis", serve, lambda: reachable(self.host, port))
        self.broker = redis.Redis(self.host, port)
        url = self.engine.url.render_as_string(hide_password=False)
        serve = [sys.executable, "-m", "simulator", "serve", "--host", self.host, "--port", str(lms), "--database", url]
        self.lms = self.processes.start("lms", serve, lambda: reachable(self.host, lms), 600)

    def start_worker(self, name: str, processes: int, on: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Start a worker of so many processes, by words like those of `ip netns exec`; return it once it is ready."""
        command = [*on, sys.executable, "-m", "celery", "-A", "bench.app", "worker", "--loglevel=INFO"]
        command += [f"--hostname=bench@{name}", f"--concurrency={processes}", *BOTH_QUEUES]
        worker = self.processes.start(name, command, lambda: " ready." in self.processes.log(name))
        self.workers.append(worker)
        return worker

    def call(self, task: str) -> None:
        """Post one of our tasks, as beat and operators do."""
        command = [sys.executable, "-m", "celery", "-A", "worker", "call", f"license_expiry.{task}"]
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)

    def used(self) -> dict[str, Used]:
        """What the workers, the database, the simulated LMS and the broker have used so far."""
        workers = [of_group(worker.pid) for worker in self.workers]
        largest = max((each.mebibytes for each in workers), default=0.0)
        return {
            "worker": Used(sum(each.seconds for each in workers), largest),
            "database": of_server(PROGRAMS[self.kind], self.engine.url.port or 0),
            "lms": of_group(self.lms.pid),
            "broker": of_group(self.redis.pid),
        }

    def commands(self) -> tuple[int, int]:
        """Tasks' messages that were put into Redis so far, and all its commands."""
        stats: Any = self.broker.info("commandstats")
        return stats.get("cmdstat_lpush", {}).get("calls", 0), sum(each["calls"] for each in stats.values())

    def statements(self) -> int:
        """SQL statements of all workers so far."""
        return sum(int.from_bytes(path.read_bytes()) for path in self.folder.glob("*.statements"))

    def ask(self, what: str) -> Any:
        """Ask the simulated LMS for its counts, its journal or its state."""
        return requests.get(f"{os.environ['LMS_URL']}/_simulator/{what}", timeout=60).json()

    def take(self, seconds: float) -> None:
        """Let the simulated LMS take so long for each call."""
        url = f"{os.environ['LMS_URL']}/_simulator/latency"
        requests.post(url, json={"seconds": seconds}, timeout=10).raise_for_status()


@contextmanager
def settings_of(folder: Path, url: str, customers: Sequence[UUID], host: str = LOOPBACK, **more: str) -> Iterator[None]:
    """Put the settings of what is started meanwhile into the environment; `more` are settings besides."""
    given = {
        "DATABASE_URL": url,
        "CELERY_BROKER_URL": f"redis://{host}:{free_port()}/0",
        "LMS_URL": f"http://{host}:{free_port()}",
        "ALLOW_HTTP": "true",
        "BACKEND_SERVICE_EDX_OAUTH2_KEY": "license-expiry",
        "BACKEND_SERVICE_EDX_OAUTH2_SECRET": "not-a-secret",
        "LICENSE_EXPIRY_CFG": str(folder / "settings.yml"),
        "UNLINK_LIMIT": "0",
        "BENCH_FOLDER": str(folder),
        "PYTHONPATH": f"{ROOT}/tests:{ROOT}",
    }
    listed = json.dumps({"CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED": [str(each) for each in customers]})
    (folder / "settings.yml").write_text(listed)  # too long for the environment
    before = dict(os.environ)
    os.environ.update(given | more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def stand(
    kind: str, engine: Engine, customers: list[UUID], pace: Pace, folder: Path, host: str = LOOPBACK, **more: str
) -> Iterator[Stand]:
    """Start Redis and the simulated LMS on this address, and give them; `more` are settings besides."""
    url = engine.url.render_as_string(hide_password=False)
    more |= {"LMS_PARALLEL_REQUESTS": str(pace.in_flight)}
    with settings_of(folder, url, customers, host, **more), Processes(folder, ROOT) as processes:
        made = Stand(folder, kind, engine, host, processes)
        made.take(pace.latency)
        yield made


def reachable(host: str, port: int) -> bool:
    """Tell whether anybody listens on a port of this address."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0
