"""What a night leaves behind: memory, connections, files, threads, rows, and how long fixed queries take."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import redis
import requests
from bench.meters import group
from sqlalchemy import Engine, func, inspect, select, table, text
from support.processes import COMMAND, ROOT

CONNECTIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
    "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE()",
}
Figures = dict[str, float]


def of_processes(name: str, leader: int) -> Figures:
    """The memory in MiB (PSS), files and threads of a leader's process group."""
    found = {"MiB": 0.0, "files": 0.0, "threads": 0.0}
    for pid in group(leader):
        folder = Path(f"/proc/{pid}")
        try:
            [pss] = [line for line in (folder / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:")]
            found["MiB"] += int(pss.split()[1]) / 1024
            found["files"] += len(list((folder / "fd").iterdir()))
            found["threads"] += len(list((folder / "task").iterdir()))
        except OSError:  # it has ended meanwhile
            continue
    return {f"{name} {what}": round(value, 1) for what, value in found.items()}


def of_servers(engine: Engine, broker: redis.Redis) -> Figures:
    """Connections to the database and to Redis, and what Redis holds."""
    with engine.connect() as connection:
        connections = connection.scalar(text(CONNECTIONS[engine.dialect.name.replace("mariadb", "mysql")]))
    known = broker.info()
    assert isinstance(known, dict)
    return {
        "database connections": float(connections or 0),
        "Redis connections": float(known["connected_clients"]),
        "Redis keys": float(len(broker.keys("*"))),
    }


def of_ledger(engine: Engine) -> Figures:
    """The rows of each of the ledger's tables."""
    names = [name for name in inspect(engine).get_table_names() if name.startswith("license_expiry_")]
    with engine.connect() as connection:
        counted = {name: connection.scalar(select(func.count()).select_from(table(name))) for name in names}
    few = ("alembic_version", "heartbeat", "ledger", "lms", "throttle", "wait")
    return {
        f"rows {short}": float(counted[name] or 0)
        for name in names
        if (short := name.removeprefix("license_expiry_")) not in few
    }


def of_queries(serve: str) -> Figures:
    """Milliseconds of the front page, of /metrics, and of `license-expiry status`."""
    return {
        "front page ms": _took(lambda: requests.get(serve, timeout=60).raise_for_status()),
        "/metrics ms": _took(lambda: requests.get(f"{serve}/metrics", timeout=60).raise_for_status()),
        "status ms": _took(
            lambda: subprocess.run([*COMMAND, "status", "--json"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        ),
    }


def _took(ask: Callable[[], object]) -> float:
    """The least of three: another process may have had the processor."""
    took = []
    for _ in range(3):
        begun = time.perf_counter()
        ask()
        took.append(time.perf_counter() - begun)
    return round(1000 * min(took), 1)
