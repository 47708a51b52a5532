"""The ledger: runs, claims on them, held licenses. It, and not Celery, decides who may do what.

A step claims its run by a compare-and-set on the phase. The claim has a lease, by the database's clock, and a
fencing number; `Claim.guard` checks and renews it before each LMS call, and every write of the claim is made on
condition that the fencing number is still its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from worker import records
from worker.calls import Calls
from worker.columns import DatabaseNow
from worker.database import Database
from worker.errors import BadArgument, LeaseLost, NotClaimed, Unavailable
from worker.models import ENDED, Phase, Run, Throttle
from worker.records import changed
from worker.waits import steady

# How long a published chain may lie in the broker before it is published again; doubles each time.
QUEUED_SECONDS = 600
MAX_PUBLICATIONS = 6


class Step(StrEnum):
    """The two steps of a run, in their order."""

    DOWNGRADE = "downgrade"
    UNLINK = "unlink"


_BEGAN = {Step.DOWNGRADE: Run.downgrade_began_at, Step.UNLINK: Run.unlink_began_at}
_PHASES = {
    Step.DOWNGRADE: (Phase.QUEUED, Phase.DOWNGRADING, Phase.DOWNGRADED),
    Step.UNLINK: (Phase.DOWNGRADED, Phase.UNLINKING, Phase.FINISHED),
}


@dataclass(frozen=True)
class Opened:
    """What became of opening a run: the id of the enterprise's live run, and whether it is a new one."""

    run_id: UUID
    new: bool


def open_run(database: Database, enterprise: UUID, as_of: datetime, **request: Any) -> Opened:
    """Open a run, or learn which live one the enterprise has already; the unique key decides between rivals.

    `request` holds the columns of Run that say what is asked for (dry_run, force, reason, plan_uuids, ...).
    """
    run_id = uuid4()
    row: dict[str, Any] = {"force": False, "dry_run": False, **request}
    row |= {"id": run_id, "enterprise_customer_uuid": enterprise, "live": enterprise, "as_of": as_of}
    row |= {"phase": Phase.QUEUED, "opened_at": DatabaseNow(), "lease_until": DatabaseNow(QUEUED_SECONDS)}
    query = select(Run.id).where(or_(Run.live == enterprise, Run.id == run_id))
    for rest in range(5, -1, -1):
        try:
            database.transact(lambda session: session.execute(insert(Run).values(row)))
            return Opened(run_id, new=True)
        except IntegrityError:  # a rival has it; or had it, when it is gone by now
            found = database.transact(lambda session: session.scalar(query))
            if found:  # our own, when only the answer to the commit was lost
                return Opened(found, new=found == run_id)
            if not rest:
                raise
    raise AssertionError("unreachable")


def record_refusal(
    database: Database, enterprise: UUID, as_of: datetime, error: str, scheduled_for: datetime | None = None
) -> UUID:
    """Keep a run that could not even begin, with the reason; return its id."""
    run_id = uuid4()
    row: dict[str, Any] = {"id": run_id, "enterprise_customer_uuid": enterprise, "as_of": as_of}
    row["scheduled_for"] = scheduled_for
    row |= {"phase": Phase.FAILED, "error": error}
    row |= {"dry_run": False, "force": False, "opened_at": DatabaseNow(), "ended_at": DatabaseNow()}
    database.transact(lambda session: session.execute(insert(Run).values(row)))
    return run_id


class Claim:
    """One worker's hold on one run for one step. Its methods raise LeaseLost once it is not the newest claim."""

    def __init__(self, database: Database, run: Run, step: Step, lease_seconds: int, calls: Calls | None) -> None:
        self.run = run
        self.step = step
        self._calls = calls or Calls()
        self._calls.drain()  # what a claim that was lost has left
        self._database = database
        self._lease_seconds = lease_seconds
        self._recorded = run.recorded
        self._doing, self._done = _PHASES[step][1:]

    def guard(self) -> float:
        """Check that the run is still ours and renew the lease: to be called right before each LMS call.

        Returns until when (on waits.steady) the lease surely lasts: a call that may not have ended by then must not
        begin, though its process was frozen since.
        """
        asked = steady()
        self._database.transact(lambda session: self._set(session))
        return asked + self._lease_seconds

    def record(self, write: Callable[[Session], None] | None = None, **counts: int) -> None:
        """Record an outcome: add to the run's counts and `write` what it changes, all or nothing.

        The compare-and-set on `recorded` makes it harmless when a commit went through and only its answer was lost.
        """
        added: dict[str, Any] = {name: getattr(Run, name) + count for name, count in counts.items()}

        def work(session: Session) -> None:
            fresh = Run.recorded == self._recorded
            if self._update(session, fresh, recorded=self._recorded + 1, publications=0, **added):
                if write is not None:
                    write(session)
            else:
                self._set(session)

        self._database.transact(work)
        self._recorded += 1

    def advance(self, **values: Any) -> None:
        """End the step: the run moves on to the next phase. `values` are last columns to set."""
        values |= {"phase": self._done, "owner": None, "error": None}
        values["lease_until"] = DatabaseNow(QUEUED_SECONDS)
        if self._done in ENDED:
            values |= {"live": None, "lease_until": None, "ended_at": DatabaseNow()}
        else:
            values["downgraded_at"] = DatabaseNow()
        calls = self._calls.drain()

        def work(session: Session) -> None:
            self._set(session, **values)
            records.keep_calls(session, self.run, calls)
            if self._done in ENDED and not self.run.dry_run:
                records.drop_confirmations(session, self.run.enterprise_customer_uuid)
                records.drop_holds(session, self.run)

        self._database.transact(work)

    def fail(self, error: str) -> None:
        """End the run as failed, with one sentence."""
        ended = {"phase": Phase.FAILED, "live": None, "owner": None, "lease_until": None, "ended_at": DatabaseNow()}
        calls = self._calls.drain()

        def work(session: Session) -> None:
            self._set(session, **ended, error=error[:500])
            records.keep_calls(session, self.run, calls)
            records.drop_confirmations(session, self.run.enterprise_customer_uuid)

        self._database.transact(work)

    def release(self, seconds: int = 0, error: Unavailable | None = None) -> None:
        """Give the run back: the step is to be taken up again in so many seconds, because of `error` if any."""
        given: dict[str, Any] = {"owner": None, "lease_until": DatabaseNow(seconds + QUEUED_SECONDS)}
        if error:
            given |= {"retries": self.run.retries + 1, "error": str(error)[:500]}
        calls = self._calls.drain()

        def work(session: Session) -> None:
            self._set(session, **given)
            records.keep_calls(session, self.run, calls)
            if error:
                records.keep_retry(session, self.run, self.step, error.reason, seconds)

        self._database.transact(work)

    def _set(self, session: Session, **values: Any) -> None:
        if not self._update(session, **values):
            raise LeaseLost(f"run {self.run.id} was taken over from us during its {self.step}")

    def _update(self, session: Session, *conditions: Any, **values: Any) -> bool:
        values.setdefault("lease_until", DatabaseNow(self._lease_seconds))
        return changed(
            session,
            update(Run)
            .where(Run.id == self.run.id, Run.fence == self.run.fence, Run.phase == self._doing, *conditions)
            .values(**values),
        )


def claim(
    database: Database,
    run_id: UUID,
    enterprise: UUID,
    step: Step,
    owner: str,
    lease_seconds: int,
    calls: Calls | None = None,
) -> Claim:
    """Claim a run for a step, or raise NotClaimed with the reason; BadArgument when there is no such run.

    `owner` is shown to people (a worker's name). A run whose owner let its lease lapse can be claimed anew. What
    `calls` has counted is kept when the step ends.
    """
    ready, doing, _ = _PHASES[step]
    began = {_BEGAN[step].key: func.coalesce(_BEGAN[step], DatabaseNow())}
    owner = f"{owner} ({uuid4().hex[:8]})"  # our own, when only the answer to the commit was lost

    def work(session: Session) -> tuple[bool, Run | None]:
        free = or_(Run.owner.is_(None), Run.owner == owner, Run.lease_until < DatabaseNow())
        claimed = changed(
            session,
            update(Run)
            .where(Run.id == run_id, Run.enterprise_customer_uuid == enterprise)
            .where(or_(Run.phase == ready, (Run.phase == doing) & free))
            .values(phase=doing, owner=owner, fence=Run.fence + 1, lease_until=DatabaseNow(lease_seconds), **began),
        )
        return claimed, session.get(Run, run_id)

    claimed, run = database.transact(work)
    if run is None or run.enterprise_customer_uuid != enterprise:
        raise BadArgument(f"There is no run {run_id} of enterprise {enterprise}: license-expiry status lists them")
    if not claimed:
        has = f"{run.owner} has it until {run.lease_until}" if run.owner else "it is not ready for this step"
        raise NotClaimed(f"run {run_id} is {run.phase}" + ("" if run.phase in ENDED else f": {has}"))
    return Claim(database, run, step, lease_seconds, calls)


def take_up_stalled(database: Database) -> tuple[list[Run], list[UUID]]:
    """Find live runs that were let down; return those to be published again, and the ids of those given up.

    The fencing number rises, so that a worker that wakes too late is shut out at once. Each run has a transaction of
    its own: one that a frozen process keeps locked holds up no other.
    """
    stalled = select(Run).where(Run.live.is_not(None), Run.lease_until < DatabaseNow()).order_by(Run.opened_at)
    found = database.transact(lambda session: session.scalars(stalled).all())
    taken = [run for run in found if database.transact(partial(_take_up, run=run))]
    again = [run for run in taken if run.publications < MAX_PUBLICATIONS]
    return again, [run.id for run in taken if run.publications >= MAX_PUBLICATIONS]


def _take_up(session: Session, run: Run) -> bool:
    values: dict[str, Any] = {"owner": None, "fence": run.fence + 1}
    if run.publications < MAX_PUBLICATIONS:
        values["publications"] = run.publications + 1
        values["lease_until"] = DatabaseNow(QUEUED_SECONDS * 2**run.publications)
    else:
        why = f"given up while {run.phase}: taken up {run.publications} times without getting further"
        error = why if run.error is None else f"{why}; last: {run.error}"
        values |= {"phase": Phase.ABANDONED, "live": None, "lease_until": None, "error": error[:500]}
        values |= {"ended_at": DatabaseNow()}
    unchanged = (Run.fence == run.fence, Run.phase == run.phase, Run.publications == run.publications)
    lapsed = update(Run).where(Run.id == run.id, Run.lease_until < DatabaseNow(), *unchanged)
    taken = changed(session, lapsed.values(values))
    if taken and "ended_at" in values:
        records.drop_confirmations(session, run.enterprise_customer_uuid)
    return taken


def seconds_to_next_call(database: Database, per_minute: float | None) -> float:
    """Book the next LMS call under LMS_REQUESTS_PER_MINUTE, over all workers; return the seconds to wait for it."""
    if not per_minute:
        return 0.0

    def work(session: Session) -> float:
        booked, now = session.execute(
            select(Throttle.next_call_at, DatabaseNow()).where(Throttle.id == 1).with_for_update()
        ).one()
        slot = max(booked, now)
        following = update(Throttle).where(Throttle.id == 1)
        session.execute(following.values(next_call_at=slot + timedelta(minutes=1 / per_minute)))
        return float((slot - now).total_seconds())

    return database.transact(work)
