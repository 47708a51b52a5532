"""Nights in a row: days pass, plans expire, the LMS has its faults, and a worker is ended in the middle of each."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import redis
from bench.stand import ROOT, license_manager, settings_of
from sqlalchemy import ColumnElement, Engine, false, func, make_url, select
from sqlalchemy.orm import Session
from support.eventually import eventually
from support.processes import BOTH_QUEUES, CELERY, COMMAND, leases_of
from support.services import SERVERS

from simulator.data.rows import DAY
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port, listens
from soak import meters
from soak.days import STEP, Customers, let_days_pass
from soak.meters import Figures
from worker.db.ledger_tables import Run
from worker.db.transactions import Database
from worker.ledger import past, waits
from worker.ledger.order import ENDED, Phase
from worker.lms.client import NOBODYS_LICENSE

APP = [*CELERY, "support.fast_app"]
LONGEST = 300  # seconds of a night
KEEP = 32
FAULTS = (
    Fault(kind="downgrade", every=9, times=4, status=500),
    Fault(every=11, times=3, status=429, headers={"Retry-After": "1"}),
    Fault(every=13, times=4, delay=1.0),
    Fault(kind="unlink", every=7, times=4, drop="before"),
    Fault(kind="downgrade", every=8, times=4, drop="after"),
    Fault(kind="unlink", every=6, times=4, truncate=True),
)
_SEND = "from worker.celery import app; app.send_task('license_expiry.run_nightly', headers={'scheduled': True})"


class Soak:
    """All that runs: the services, a worker that is never restarted, another that is in each night, beat and serve."""

    def __init__(self, engine: Engine, customers: Customers, lms: Simulator, processes: Processes) -> None:
        self._engine, self._customers, self._lms, self._processes = engine, customers, lms, processes
        port, self._serve = make_url(os.environ["CELERY_BROKER_URL"]).port or 0, free_port()
        processes.start("redis", ["redis-server", "--port", str(port), "--save", ""], lambda: listens(port))
        self._broker = redis.Redis(port=port)
        self._database = Database(engine)
        self._lasting, self._restarted = self._worker("lasting"), self._worker("restarted")
        schedule = f"--schedule={processes.folder}/schedule"
        beat = [*APP, "beat", "--loglevel=INFO", schedule, "--pidfile="]
        self._beat = processes.start("beat", beat, lambda: "beat: Starting" in processes.log("beat"))
        serve = [*COMMAND, "serve", "--port", str(self._serve)]
        self._pages = processes.start("serve", serve, lambda: listens(self._serve))
        self.broken: list[str] = []
        self._counted: dict[tuple[str, ...], float] = {}

    def night(self, number: int) -> Figures:
        """Carry one night through; give what was measured after it. What was promised and not kept is in `broken`."""
        waits.pause(self._database, "soak", "days pass")  # nobody is to begin it before its data is there
        with self._engine.begin() as connection:
            let_days_pass(connection)
            downgrades, unlinks = self._customers.expire(connection, number * STEP)
        self._let_results_expire()
        self._lms.seed()
        self._lms.journal.clear()
        self._lms.faults(replace(FAULTS[number % len(FAULTS)]))
        waits.resume(self._database)
        begun = time.monotonic()
        subprocess.run([*CELERY[:1], "-c", _SEND], check=True, cwd=ROOT)
        every = len(self._customers.enterprises)
        eventually(lambda: self._ended() >= every // 3, LONGEST, what="a third of the night")
        self._restart(signal.SIGTERM if number % 2 else signal.SIGKILL)
        eventually(lambda: self._ended() >= every and not self._live(), LONGEST, what="the night")
        took = time.monotonic() - begun
        self._judge(number, downgrades, unlinks)
        eventually(lambda: not self._to_prune(), LONGEST, what="the pruning")
        return {"night": number + 1, "seconds": round(took, 1), **self._measure()}

    def _measure(self) -> Figures:
        found: Figures = {}
        for name, process in (("worker", self._lasting), ("beat", self._beat), ("serve", self._pages)):
            found |= meters.of_processes(name, process.pid)
        found |= meters.of_servers(self._engine, self._broker) | meters.of_ledger(self._engine)
        return found | meters.of_queries(f"http://127.0.0.1:{self._serve}")

    def _judge(self, number: int, downgrades: set[UUID], unlinks: set[UUID]) -> None:
        """All that was due was done, in order, and nobody else was touched."""
        told, calls = f"night {number + 1}:", self._lms.calls()
        sent = {name for entry in calls if entry.kind == "downgrade" for name in map(str, entry.licenses)}
        state = self._lms.state
        if undone := [each for each in downgrades if any(one.mode != "audit" for one in state.enrollments(each))]:
            self.broken.append(f"{told} {len(undone)} licenses that were due are not downgraded")
        if more := sent - set(map(str, downgrades)) - {str(NOBODYS_LICENSE)}:
            self.broken.append(f"{told} {len(more)} licenses that were not due were sent")
        with self._engine.connect() as connection:
            tonight = Run.opened_at > self._database.now() - DAY
            done = connection.execute(
                select(func.sum(Run.licenses_downgraded), func.sum(Run.learners_unlinked), func.count()).where(tonight)
            ).one()
            bad = connection.scalar(select(func.count()).where(tonight, Run.phase != Phase.FINISHED))
        wanted = (len(downgrades), len(unlinks), len(self._customers.enterprises))
        if tuple(map(int, done)) != wanted or bad:
            self.broken.append(f"{told} downgraded, unlinked, runs: {done}, wanted {wanted}; {bad} did not finish")
        for enterprise in map(str, self._customers.enterprises):
            of = [entry for entry in calls if enterprise in map(str, entry.enterprises)]
            first = min((entry.start for entry in of if entry.kind == "unlink"), default=None)
            if first and any((entry.end or first) >= first for entry in of if entry.kind == "downgrade"):
                self.broken.append(f"{told} enterprise {enterprise}: a downgrade had not ended as an unlink began")
        self._count(told)

    def _count(self, told: str) -> None:
        """The sums, those of pruned runs included, never fall."""
        with Session(self._engine) as session:
            now, _ = past.sums_of_all(session, lambda _: false())
        if fallen := [key for key, value in self._counted.items() if now.get(key, 0) < value - 1e-6]:
            self.broken.append(f"{told} these counters have fallen: {fallen}")
        self._counted = dict(now)

    def _to_prune(self) -> int:
        with Session(self._engine) as session:
            return len(session.scalars(past.old_runs(self._database.now() - KEEP * DAY)).all())

    def _let_results_expire(self) -> None:
        """Let the days pass in Redis too, where the results of tasks are kept for seven."""
        for key in self._broker.scan_iter():
            if (left := int(self._broker.ttl(key))) > 0:
                self._broker.expire(key, max(0, left - STEP // timedelta(seconds=1)))

    def _ended(self) -> int:
        return self._number(Run.opened_at > self._database.now() - DAY, Run.phase.in_(ENDED))

    def _live(self) -> int:
        return self._number(Run.live.is_not(None))

    def _number(self, *which: ColumnElement[bool]) -> int:
        with self._engine.connect() as connection:
            return connection.scalar(select(func.count()).where(*which)) or 0

    def _worker(self, name: str) -> subprocess.Popen[bytes]:
        command = [*APP, "worker", "--loglevel=INFO", "--concurrency=2", f"--hostname={name}@soak", "--without-mingle"]
        ready = f"{name}@soak ready."
        return self._processes.start(name, [*command, *BOTH_QUEUES], lambda: ready in self._processes.log(name))

    def _restart(self, how: signal.Signals) -> None:
        if how == signal.SIGKILL:
            os.killpg(self._restarted.pid, how)
        Processes.stop(self._restarted, 60)
        self._restarted = self._worker("restarted")


def play(kind: str, nights: int, enterprises: int, folder: Path) -> tuple[list[Figures], list[str]]:
    """Play so many nights; give the figures of each, and the promises that were broken. Logs are in this folder."""
    figures: list[Figures] = []
    with license_manager(SERVERS[kind], folder) as (engine, url):
        customers = Customers(engine, enterprises)
        with (
            _settings(folder, url, customers) as port,
            Simulator(engine, port) as lms,
            Processes(folder, ROOT) as processes,
        ):
            soak = Soak(engine, customers, lms, processes)
            for number in range(nights):
                figures.append(soak.night(number))
                print(f"night {number + 1}: {figures[-1]['seconds']:g} s", file=sys.stderr)  # noqa: T201
            return figures, soak.broken


@contextmanager
def _settings(folder: Path, url: str, customers: Customers) -> Iterator[int]:
    more = {"LEDGER_KEEP_DAYS": KEEP, "TASK_RETRY_SECONDS": 1, "TASK_MAX_RETRIES": 50, **leases_of(8)}
    with settings_of(folder, url, customers.enterprises, **{name: str(value) for name, value in more.items()}):
        yield make_url(os.environ["LMS_URL"]).port or 0
