"""The worker seen from outside: its command, its ledger, its processes, and what is posted to it."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import requests
from sqlalchemy import Engine, insert, select
from sqlalchemy.orm import Session

from simulator.data.rows import DAY, Data
from simulator.lms.server import Simulator
from support.runs import assert_order, times_sent
from worker.db.ledger_tables import Night, Run
from worker.ledger.order import ENDED, Phase

ROOT = Path(__file__).parents[2]
CELERY = [sys.executable, "-m", "celery", "-A"]
COMMAND = [sys.executable, "-c", "from worker.cli.main import main; main()"]
# A worker that starts no process for the second: hundreds are started here.
BOTH_QUEUES = ["-Q", "license_expiry,license_expiry.control"]
OPERATOR = ("operator", "secret")
WORKER_SQLITE = pytest.mark.parametrize("engine_kind", ["sqlite"], indirect=True)
BOTH_BROKERS = pytest.mark.parametrize("broker", ["redis", "rabbitmq"], indirect=True)
# celeryconfig's own way of posting, in one process for any number of calls.
_POST = """
import json, sys
from worker.celery import app
calls, wait = json.load(sys.stdin)
sent = [app.send_task("license_expiry." + task, kwargs=names) for task, names in calls]
print(json.dumps([each.get(timeout=100) for each in sent] if wait else []))
"""


def command(*arguments: str, fast: bool = False) -> tuple[int, dict[str, Any]]:
    """Run license-expiry with --json, `fast` with the short waits of fast_app; give its exit status and its output."""
    start = [*COMMAND[:-1], f"import support.fast_app; {COMMAND[-1]}"] if fast else COMMAND
    done = subprocess.run(
        [*start, *arguments, "--json"], capture_output=True, text=True, timeout=120, check=False, cwd=ROOT
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def post(*calls: tuple[str, dict[str, Any]], wait: bool = False) -> list[Any]:
    """Post tasks by hand, each by its name and arguments; give their results when these are waited for."""
    given = json.dumps([calls, wait])
    done = subprocess.run(
        [sys.executable, "-c", _POST], input=given, capture_output=True, text=True, timeout=120, check=True, cwd=ROOT
    )
    results: list[Any] = json.loads(done.stdout)
    return results


def read(address: str) -> Any:
    """What Flower's API answers to its operator; nothing when it does not know of it yet."""
    answer = requests.get(address, auth=OPERATOR, timeout=10)
    return answer.json() if answer.ok else {}


def runs(engine: Engine, *phases: Phase) -> list[Run]:
    """The runs in these phases (all when none is named), in order of opening."""
    query = select(Run).order_by(Run.opened_at)
    with Session(engine) as session:
        return list(session.scalars(query.where(Run.phase.in_(phases)) if phases else query))


def ended(engine: Engine) -> bool:
    """Has every run ended?"""
    return all(run.phase in ENDED for run in runs(engine))


def lay(data: Data, lms: Simulator, enterprises: int = 1, licenses: int = 6, days: float = 100) -> list[UUID]:
    """Enterprises with one plan each that expired so many days ago; give their UUIDs."""
    made = []
    for _ in range(enterprises):
        agreement = data.agreement()
        plan = data.plan(agreement, expires=data.now - days * DAY)
        for _ in range(licenses):
            data.license(plan)
        made.append(agreement.enterprise_customer_uuid)
    data.flush()
    lms.seed()
    return made


def listed(*enterprises: UUID) -> dict[str, str]:
    """The setting that has these enterprises' learners unlinked."""
    return {"CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED": ",".join(map(str, enterprises))}


def a_minute_ago() -> datetime:
    """The whole minute before this one."""
    return datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=1)


def at(moment: datetime) -> dict[str, str]:
    """The setting that has the night begin at this time of the day."""
    return {"NIGHTLY_SCHEDULE": f"{moment.minute} {moment.hour} * * *"}


def note_an_older_night(engine: Engine, moment: datetime) -> datetime:
    """A night that was opened to its end, so that the ledger is not a new one."""
    with engine.begin() as connection:
        connection.execute(insert(Night).values(scheduled_for=moment, opened_at=moment, tries=1))
    return moment


def leases_of(seconds: int) -> dict[str, int]:
    """The settings for so short a lease, at least 3 s; for fast_app, which takes a second for a connection."""
    calls = ("BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS", "BULK_UNLINK_REQUEST_TIMEOUT_SECONDS")
    return {"LEASE_SECONDS": seconds, **dict.fromkeys(calls, seconds - 2)}


def assert_all_done(engine: Engine, lms: Simulator, enterprises: int, licenses: int, status: int | None = None) -> None:
    """One finished run for each enterprise, in order, and every license sent once in each step.

    With `status`, only the calls that were answered so are counted.
    """
    assert [(run.phase, run.error) for run in runs(engine)] == [(Phase.FINISHED, None)] * enterprises
    assert len({run.enterprise_customer_uuid for run in runs(engine)}) == enterprises
    assert_order(lms.journal)
    for kind in ("downgrade", "unlink"):
        times = times_sent(lms, kind, status)
        assert {name: count for name, count in times.items() if count > 1} == {}, f"sent twice, {kind}"
        assert len(times) == licenses * enterprises


def seconds_to_end(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> float:
    """Ask a process to end, wait until it has, and give how long that took."""
    asked = time.monotonic()
    process.send_signal(how)
    process.wait(60)
    return time.monotonic() - asked


def children(process: subprocess.Popen[bytes]) -> list[int]:
    """The process ids of a worker's children."""
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    return [int(each) for each in found.stdout.split()]


def kill_all_of(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL, to a process and its children, those that are left."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def played(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Play nights by a module of the tests, `chaos` or `soak`; give its status and what it has said."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/tests:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
