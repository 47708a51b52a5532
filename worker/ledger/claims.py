"""The ledger: runs, claims on them, held licenses. It, and not Celery, decides who may do what.

A step claims its run by a compare-and-set on the phase. The claim has a lease, by the database's clock, and a
fencing number; `Claim.guard` checks and renews it before each LMS call, and every write of the claim is made on
condition that the fencing number is still its own.
"""

from collections.abc import Callable
from enum import StrEnum
from functools import cache, partial
from itertools import chain, repeat
from typing import Any, cast
from uuid import UUID, uuid4

from sqlalchemy import Integer, Table, Update, bindparam, func, or_, select, update
from sqlalchemy.orm import Session

from worker.db.ledger_tables import ENDED, Phase, Run
from worker.db.transactions import Database
from worker.db.types import DatabaseNow
from worker.errors import BadArgument, LeaseLost, NotClaimed, Unavailable
from worker.ledger import confirmations
from worker.ledger.confirmations import changed
from worker.ledger.lms_calls import Calls
from worker.shutdown import steady

# How long a published chain may lie in the broker before it is published again; doubles each time.
QUEUED_SECONDS = 600
MAX_PUBLICATIONS = 6
CHECKED_SECONDS = 0.5


class Step(StrEnum):
    """The two steps of a run, in their order."""

    DOWNGRADE = "downgrade"
    UNLINK = "unlink"


_BEGAN = {Step.DOWNGRADE: Run.downgrade_began_at, Step.UNLINK: Run.unlink_began_at}
_PHASES = {
    Step.DOWNGRADE: (Phase.QUEUED, Phase.DOWNGRADING, Phase.DOWNGRADED),
    Step.UNLINK: (Phase.DOWNGRADED, Phase.UNLINKING, Phase.FINISHED),
}


class Claim:
    """One worker's hold on one run for one step. Its methods raise LeaseLost once it is not the newest claim."""

    def __init__(
        self, database: Database, run: Run, step: Step, lease_seconds: int, calls: Calls | None, asked: float
    ) -> None:
        self.run = run
        self.step = step
        self._calls = calls or Calls()
        self._calls.drain()  # what a claim that was lost has left
        self._database = database
        self._lease_seconds = lease_seconds
        self._recorded = run.recorded
        self._asked, self._until = asked, asked + lease_seconds
        self.held = 0
        self._doing, self._done = _PHASES[step][1:]
        self._ours = {"of_id": run.id, "of_fence": run.fence, "of_phase": self._doing}

    def guard(self, known_for: float = 0.0) -> float:
        """Check that the run is still ours and renew the lease, unless that was done in the last `known_for` seconds.

        Returns until when (on waits.steady) the lease surely lasts: nobody takes the run over before, and a call that
        may not have ended by then must not begin, though its process was frozen since.
        """
        if steady() >= self._asked + known_for:
            self._transact(self._renew)
        return self._until

    def guard_of_batch(self) -> Callable[[], float]:
        """`guard` for the calls of one batch.

        Before the first, the database is asked only when it was not within CHECKED_SECONDS: the lease surely lasts.
        """
        known_for = chain([CHECKED_SECONDS], repeat(0.0))
        return lambda: self.guard(next(known_for))

    def record(self, write: Callable[[Session], None] | None = None, **counts: int) -> None:
        """Record an outcome: add to the run's counts and `write` what it changes, all or nothing.

        The compare-and-set on `recorded` makes it harmless when a commit went through and only its answer was lost.
        """
        more = {f"more_{name}": count for name, count in counts.items()}

        def work(session: Session) -> None:
            statement = _recording(self._lease_seconds, tuple(counts))
            if changed(session, statement, self._ours | more | {"of_recorded": self._recorded}):
                if write is not None:
                    write(session)
            else:
                self._renew(session)

        self._transact(work)
        self._recorded += 1
        self._note({name: getattr(self.run, name) + count for name, count in counts.items()})
        self.held += counts.get("licenses_held", 0)

    def advance(self, **values: Any) -> None:
        """End the step: the run moves on to the next phase. `values` are last columns to set."""
        last = values | {"phase": self._done, "owner": None, "error": None}
        values = dict(last)
        values["lease_until"] = DatabaseNow(QUEUED_SECONDS)
        if self._done in ENDED:
            values |= {"live": None, "lease_until": None, "ended_at": DatabaseNow()}
        else:
            values["downgraded_at"] = DatabaseNow()
        calls = self._calls.drain()

        def work(session: Session) -> None:
            self._set(session, **values)
            confirmations.keep_calls(session, self.run, calls)
            ends = self._done in ENDED
            # A forced run counts by them what it has sent; those of other runs would fill the table all night.
            if ends == self.run.force and not self.run.dry_run:
                confirmations.drop_confirmations(session, self.run.enterprise_customer_uuid)
            if ends and not self.run.dry_run:
                confirmations.drop_holds(session, self.run)

        self._database.transact(work)
        self._note(last)

    def fail(self, error: str) -> None:
        """End the run as failed, with one sentence."""
        ended = {"phase": Phase.FAILED, "live": None, "owner": None, "lease_until": None, "ended_at": DatabaseNow()}
        calls = self._calls.drain()

        def work(session: Session) -> None:
            self._set(session, **ended, error=error[:500])
            confirmations.keep_calls(session, self.run, calls)
            confirmations.drop_confirmations(session, self.run.enterprise_customer_uuid)

        self._database.transact(work)

    def release(self, seconds: int = 0, error: Unavailable | None = None) -> None:
        """Give the run back: the step is to be taken up again in so many seconds, because of `error` if any."""
        given: dict[str, Any] = {"owner": None, "lease_until": DatabaseNow(seconds + QUEUED_SECONDS)}
        if error:
            given |= {"retries": self.run.retries + 1, "error": str(error)[:500]}
        calls = self._calls.drain()

        def work(session: Session) -> None:
            self._set(session, **given)
            confirmations.drop_calls(session, self.run)  # when only the answer to the commit was lost
            confirmations.keep_calls(session, self.run, calls)
            if error:
                confirmations.keep_retry(session, self.run, self.step, error.reason, seconds)

        self._database.transact(work)
        self._note({"owner": None})

    def _note(self, values: dict[str, Any]) -> None:
        """Let `run` be as the ledger has it."""
        for name, value in values.items():
            setattr(self.run, name, value)

    def _transact(self, work: Callable[[Session], None]) -> None:
        """Do what renews the lease."""
        asked = steady()
        self._database.transact(work)
        self._asked, self._until = asked, asked + self._lease_seconds

    def _renew(self, session: Session) -> None:
        self._must(changed(session, _renewal(self._lease_seconds), self._ours))

    def _set(self, session: Session, **values: Any) -> None:
        self._must(changed(session, _OURS.values(**values), self._ours))

    def _must(self, ours: bool) -> None:
        if not ours:
            raise LeaseLost(f"run {self.run.id} was taken over from us during its {self.step}")


# What is done once for each batch is built once.
_RUNS = cast(Table, Run.__table__)
_RUN = _RUNS.c
_OURS = update(_RUNS).where(
    _RUN.id == bindparam("of_id"), _RUN.fence == bindparam("of_fence"), _RUN.phase == bindparam("of_phase")
)


@cache
def _renewal(lease_seconds: int) -> Update:
    return _OURS.values(lease_until=DatabaseNow(lease_seconds))


@cache
def _recording(lease_seconds: int, counts: tuple[str, ...]) -> Update:
    added = {name: _RUN[name] + bindparam(f"more_{name}", None, Integer()) for name in counts}
    fresh = _renewal(lease_seconds).where(_RUN.recorded == bindparam("of_recorded"))
    return fresh.values(recorded=_RUN.recorded + 1, publications=0, **added)


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

    asked = steady()
    claimed, run = database.transact(work)
    if run is None or run.enterprise_customer_uuid != enterprise:
        raise BadArgument(f"There is no run {run_id} of enterprise {enterprise}: license-expiry status lists them")
    if not claimed:
        has = f"{run.owner} has it until {run.lease_until}" if run.owner else "it is not ready for this step"
        raise NotClaimed(f"run {run_id} is {run.phase}" + ("" if run.phase in ENDED else f": {has}"))
    return Claim(database, run, step, lease_seconds, calls, asked)


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
        confirmations.drop_confirmations(session, run.enterprise_customer_uuid)
    return taken
