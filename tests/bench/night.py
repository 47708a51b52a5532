"""One night on real processes, and what it has used."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from sqlalchemy import Engine, func, make_url, select
from support.databases import with_tables
from support.processes import BOTH_QUEUES
from support.services import SERVERS, database_on

from bench.data import lay_down
from bench.meters import Used, of_group, of_server
from bench.profile import profiled
from simulator.processes import Processes, free_port, listens
from worker.db.ledger_tables import LmsCall, Run
from worker.ledger.order import ENDED

ROOT = Path(__file__).parents[2]
SERVER = {"postgresql": "postgres", "mariadb": "mariadbd", "mysql": "mysqld"}
BARE_CALLS = 400
TASK = "license_expiry.run_nightly"


@dataclass(frozen=True)
class Asked:
    """How large a night, and against what LMS."""

    kind: str
    enterprises: int
    licenses: int
    latency: float
    concurrency: int
    in_flight: int
    large: int = 0
    profile: bool = False


def measure(asked: Asked, folder: Path) -> dict[str, Any]:
    """Carry a night through and give its figures and ratios; the logs are in this folder."""
    with license_manager(asked.kind, folder) as (engine, url):
        customers = lay_down(engine, asked.enterprises, asked.licenses, large=asked.large)
        with Processes(folder, ROOT) as processes, settings_of(folder, url, customers, asked.in_flight):
            return _measured(asked, folder, engine, processes)


@contextmanager
def license_manager(kind: str, folder: Path) -> Iterator[tuple[Engine, str]]:
    """An empty database with license-manager's tables and the ledger's, its URL; and an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with database_on(SERVERS[kind]) as url, with_tables(url) as engine:
        yield engine, url


@contextmanager
def settings_of(folder: Path, url: str, customers: list[Any], in_flight: int = 8) -> Iterator[int]:
    """The settings of the processes that are started meanwhile, in the environment; gives the port for Redis."""
    lms, redis = free_port(), free_port()
    given = {
        "DATABASE_URL": url,
        "CELERY_BROKER_URL": f"redis://127.0.0.1:{redis}/0",
        "LMS_URL": f"http://127.0.0.1:{lms}",
        "BACKEND_SERVICE_EDX_OAUTH2_KEY": "license-expiry",
        "BACKEND_SERVICE_EDX_OAUTH2_SECRET": "not-a-secret",
        "LICENSE_EXPIRY_CFG": str(folder / "settings.yml"),
        "UNLINK_LIMIT": "0",
        "LMS_PARALLEL_REQUESTS": str(in_flight),
        "LMS_PARALLEL_REQUESTS_PER_HOST": str(in_flight),
        "BENCH_FOLDER": str(folder),
        "PYTHONPATH": f"{ROOT}/tests:{ROOT}",
    }
    listed = json.dumps({"CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED": [str(each) for each in customers]})
    (folder / "settings.yml").write_text(listed)  # too long for the environment
    before = dict(os.environ)
    os.environ.update(given)
    try:
        yield redis
    finally:
        os.environ.clear()
        os.environ.update(before)


def _measured(asked: Asked, folder: Path, engine: Engine, processes: Processes) -> dict[str, Any]:
    redis, lms = (make_url(os.environ[name]).port or 0 for name in ("CELERY_BROKER_URL", "LMS_URL"))
    processes.start("redis", ["redis-server", "--port", str(redis), "--save", ""], lambda: listens(redis))
    url = os.environ["DATABASE_URL"]
    serve = [sys.executable, "-m", "simulator", "serve", "--port", str(lms), "--database", url]
    simulator = processes.start("lms", [*serve, "--latency", str(asked.latency)], lambda: listens(lms), 600)
    command = [sys.executable, "-m", "celery", "-A", "bench.app", "worker", "--loglevel=INFO"]
    command += [f"--concurrency={asked.concurrency}", *BOTH_QUEUES]
    worker = processes.start("worker", command, lambda: " ready." in processes.log("worker"))
    server, others = of_server(SERVER[asked.kind]), of_group(simulator.pid)
    idle = of_group(worker.pid)
    with profiled(worker.pid, folder / "stacks.txt") if asked.profile else nullcontext():
        subprocess.run([sys.executable, "-m", "celery", "-A", "worker", "call", TASK], check=True, cwd=ROOT)
        wall = _until_all_have_ended(engine, asked.enterprises, worker)
    used = {
        "worker": of_group(worker.pid).since(idle),
        "database": of_server(SERVER[asked.kind]).since(server),
        "lms": of_group(simulator.pid).since(others),
    }
    counts = requests.get(f"{os.environ['LMS_URL']}/_simulator/counts", timeout=60).json()
    statements = sum(int.from_bytes(path.read_bytes()) for path in folder.glob("*.statements"))
    return _figures(asked, engine, wall, used, counts, statements) | {"bare_ms_per_call": _bare(asked)}


def _until_all_have_ended(engine: Engine, enterprises: int, worker: subprocess.Popen[bytes]) -> float:
    """Seconds from the moment that the night is judged by, before its runs are opened, to the end of the last one."""
    ended = select(func.count(), func.min(Run.as_of), func.max(Run.ended_at)).where(Run.phase.in_(ENDED))
    while True:
        with engine.connect() as connection:
            count, as_of, ended_at = connection.execute(ended).one()
        if ended_at and count == enterprises:
            return float((ended_at - as_of).total_seconds())
        if worker.poll() is not None:
            raise SystemExit("The worker has ended: see worker.log")
        time.sleep(0.2)


def _figures(
    asked: Asked, engine: Engine, wall: float, used: dict[str, Used], counts: Any, statements: int
) -> dict[str, Any]:
    calls = counts["requests"]["downgrade"] + counts["requests"]["unlink"]
    ideal = calls * asked.latency / asked.in_flight
    took = func.sum(LmsCall.seconds) / func.sum(LmsCall.calls)
    with engine.connect() as connection:
        done = connection.execute(select(func.sum(Run.licenses_downgraded), func.sum(Run.learners_unlinked))).one()
        small = Run.licenses_downgraded <= asked.licenses
        ended_at, as_of = connection.execute(select(func.max(Run.ended_at), func.min(Run.as_of)).where(small)).one()
        of_call = connection.execute(select(took).where(LmsCall.step != "token")).scalar_one()
    return {
        "database": asked.kind,
        "licenses": asked.enterprises * asked.licenses + max(0, asked.large - asked.licenses),
        "enterprises": asked.enterprises,
        "downgraded": int(done[0]),
        "unlinked": int(done[1]),
        "wall_seconds": round(wall, 1),
        **(
            {"small_ones_done_after": round((ended_at - as_of).total_seconds(), 1)}
            if asked.large and ended_at and as_of
            else {}
        ),
        "ideal_seconds": round(ideal, 1),
        "efficiency": round(ideal / wall, 2),
        "lms_calls": calls,
        "most_in_flight": counts["most_in_flight"],
        "ms_of_a_call": round(1000 * float(of_call), 1),
        "statements_per_call": round(statements / calls, 1),
        "worker_ms_per_call": round(1000 * used["worker"].seconds / calls, 1),
        **{f"{name}_seconds": round(each.seconds, 1) for name, each in used.items()},
        **{f"{name}_peak_mib": round(each.mebibytes) for name, each in used.items()},
    }


def _bare(asked: Asked) -> float:
    requests.post(f"{os.environ['LMS_URL']}/_simulator/latency", json={"seconds": 0}, timeout=10)
    command = [sys.executable, "-m", "bench.bare", os.environ["LMS_URL"], str(BARE_CALLS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    return round(1000 * float(done.stdout) / BARE_CALLS, 1)
