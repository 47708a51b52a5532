"""The faults that the driver brings about itself, each a function that says whether it has struck."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from random import Random
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from chaos.broker import AWAY
from chaos.faults import Fault
from chaos.session import ChaosSession
from simulator.lms.faults import Fault as LmsFault
from worker.db.transactions import Database
from worker.errors import LicenseExpiryError
from worker.ledger import runs, waits
from worker.ledger.order import Phase

STEPS = ("downgrade_enrollments", "unlink_learners")
# A slow broker is stopped for so long, and runs for so long, in turn.
STOPPED_SECONDS, RUNNING_SECONDS = 0.4, 0.15
NEED_NO_SERVER = ("forget_tokens", "worker_term", "skewed_worker", "beat_kill", "two_beats")

Later = Callable[[float, Callable[[], None]], None]


class Inflict:
    """Does one fault at a time to a session; what must be undone is handed to `later`."""

    def __init__(self, session: ChaosSession, later: Later) -> None:
        self.session, self._later = session, later

    def do(self, fault: Fault) -> bool:
        """Bring a fault about; False when there is nothing for it to strike now."""
        up = self.session.broker.up and self.session.database.up
        if not up and fault.kind not in NEED_NO_SERVER:
            return False  # what is frozen or down is not asked for anything
        try:
            return bool(getattr(self, fault.kind)(**fault.detail))
        except (*AWAY, DBAPIError, LicenseExpiryError):
            return False  # what it needs is away by another fault: it is tried again

    def duplicate_message(self, times: int, pick: float) -> bool:
        return self.session.messages.duplicate(pick, times)

    def replay_message(self, times: int, pick: float) -> bool:
        return self.session.messages.replay(pick, times)

    def queue_long(self, times: int, pick: float) -> bool:
        """Messages that mean nothing, before all that come after them: of runs that nobody knows, some `reconcile`."""
        rng, enterprises = Random(pick), self.session.laid_data.enterprises
        calls: list[tuple[str, dict[str, str]]] = []
        for _ in range(times):
            task = rng.choice((*STEPS, *STEPS, "reconcile"))
            unknown = str(UUID(int=rng.getrandbits(128), version=4))
            about = {"enterprise_customer_uuid": str(rng.choice(enterprises)), "run_id": unknown}
            calls.append((task, about if task in STEPS else {}))
        self.session.messages.post(*calls)
        return True

    def queue_slow(self, seconds: float) -> bool:
        """Let the broker answer in short turns only."""
        self._slow_turn(time.monotonic() + seconds)
        return True

    def _slow_turn(self, until: float) -> None:
        if not self.session.broker.up:  # by another fault
            self._later(STOPPED_SECONDS, partial(self._slow_turn, until))
        elif time.monotonic() < until:
            self.session.broker.freeze()
            self._later(STOPPED_SECONDS, self.session.broker.thaw)
            self._later(STOPPED_SECONDS + RUNNING_SECONDS, partial(self._slow_turn, until))

    def broker_flush(self) -> bool:
        self.session.broker.flush()
        return True

    def broker_restart(self, seconds: float) -> bool:
        self.session.broker.kill()
        self._later(seconds, self._start_broker)
        return True

    def _start_broker(self) -> None:
        self.session.broker.launch()
        self._await_broker()

    def _await_broker(self) -> None:
        """Go on meanwhile: a RabbitMQ takes seconds to start."""
        if self.session.broker.ready():
            self.session.messages.reconnect()
        else:
            self._later(0.1, self._await_broker)

    def broker_freeze(self, seconds: float) -> bool:
        self.session.broker.freeze()
        self._later(seconds, self.session.broker.thaw)
        return True

    def broker_reset(self) -> bool:
        self.session.broker.reset()
        self.session.messages.reconnect()
        return True

    def database_restart(self, seconds: float) -> bool:
        self.session.database.kill()
        self.session.engine.dispose()
        self._later(seconds, self.session.database.start)
        return True

    def database_reset(self) -> bool:
        self.session.database.reset()
        self.session.engine.dispose()
        return True

    def worker_term(self, worker: int) -> bool:
        member = self.session.processes.workers[worker]
        if not member.up:
            return False
        member.end()
        return True

    def skewed_worker(self, worker: int, hours: int) -> bool:
        struck = self.worker_term(worker)
        if struck:
            self.session.processes.workers[worker].hours = hours
        return struck

    def beat_kill(self, seconds: float) -> bool:
        beat = self.session.processes.beat
        if not beat.up:
            return False
        beat.kill(seconds)
        self.session.processes.forget_schedule(beat)
        return True

    def two_beats(self) -> bool:
        self.session.processes.two_beats()
        return True

    def trigger_enterprise(self, times: int, pick: float) -> bool:
        enterprise = str(Random(pick).choice(self.session.laid_data.enterprises))
        return self._post("run_enterprise", times, enterprise_customer_uuid=enterprise)

    def trigger_night(self, times: int, pick: float) -> bool:
        return self._post("run_nightly", times)

    def trigger_reconcile(self, times: int, pick: float) -> bool:
        return self._post("reconcile", times)

    def trigger_step(self, step: str, times: int, pick: float) -> bool:
        runs = self.session.runs()
        if not runs:
            return False
        busy = [run for run in runs if run.phase == Phase.DOWNGRADING]
        run = Random(pick).choice(busy if busy and pick < 0.7 else runs)  # where an unlink must wait, above all
        return self._post(step, times, enterprise_customer_uuid=str(run.enterprise_customer_uuid), run_id=str(run.id))

    def forget_tokens(self) -> bool:
        self.session.lms.forget_tokens()
        return True

    def outage(self, seconds: float, status: int | None) -> bool:
        away = LmsFault(status=status, drop=None if status else "before")
        self.session.lms.lms.faults.insert(0, away)
        self._later(seconds, partial(self._be_back, away))
        return True

    def _be_back(self, away: LmsFault) -> None:
        with suppress(ValueError):  # the night is over
            self.session.lms.lms.faults.remove(away)

    def pause(self, seconds: float) -> bool:
        database = Database(self.session.engine)
        waits.pause(database, "an operator", "a fault of the plan")
        self._later(seconds, self._resume)
        return True

    def _resume(self) -> None:
        try:
            waits.resume(Database(self.session.engine))
        except LicenseExpiryError:  # the database is away just now
            self._later(0.5, self._resume)

    def stop(self, times: int, pick: float) -> bool:
        live = sorted(self.session.live())
        if not live:
            return False
        enterprise = Random(pick).choice(live)
        runs.stop_live_runs(Database(self.session.engine), enterprise, "an operator", "a fault of the plan")
        return True

    def _post(self, task: str, times: int, **kwargs: str) -> bool:
        self.session.messages.post(*[(task, kwargs)] * times)
        return True


class Agenda:
    """What is to be done later, in the one thread of the driver."""

    def __init__(self) -> None:
        self._items: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do this in so many seconds."""
        self._items.append((time.monotonic() + seconds, act))

    def run(self) -> None:
        """Do what is to be done by now."""
        now = time.monotonic()
        due = [item for item in self._items if item[0] <= now]
        self._items = [item for item in self._items if item[0] > now]
        for _, act in due:
            act()

    @property
    def empty(self) -> bool:
        """Is nothing left to be done?"""
        return not self._items
