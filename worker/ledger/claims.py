"""A worker's claim on a run: lease, fencing number, and every write made under it.

A step claims its run with one UPDATE. It fails unless the run is in the phase that the step starts from, or its
worker's lease has lapsed. The database's clock decides when a lease lapses. `Claim.guard` checks and renews the lease
before each LMS call. Every write of a claim fails once the run has another fencing number.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any, cast
from uuid import UUID, uuid4

from sqlalchemy import Integer, Table, Update, bindparam, case, exists, func, or_, select, update
from sqlalchemy.orm import Session

from worker.clock import steady
from worker.db.ledger_tables import Lms, Run
from worker.db.sql import DatabaseNow, changed
from worker.db.transactions import Database
from worker.errors import BadArgument, LeaseLost, NotClaimed, Stopped, Unavailable
from worker.ledger import confirmations, held, lms_calls, waits
from worker.ledger.lms_calls import CallTimings
from worker.ledger.order import ENDED, STEPS, Phase, Step
from worker.ledger.stalled import ENDED_COLUMNS, end_stopped, is_newest, is_timely, queued

CHECKED_SECONDS = 0.5
LONGEST_OWNER = 200  # the column has 255


class Claim:
    """One worker's claim on one run for one step. Its methods raise LeaseLost once a newer claim exists.

    `run` mirrors the run's row. `held_count` is how many licenses this claim put on the held list.
    """

    def __init__(
        self,
        database: Database,
        run: Run,
        step: Step,
        lease: int,
        calls: CallTimings | None,
        asked: float,
        now: datetime,
    ) -> None:
        self.run, self.step = run, step
        self._database_time = now - timedelta(seconds=steady())
        self._calls = calls or CallTimings()
        self._calls.drain()  # left over from a claim that was lost
        self._database = database
        self._lease_seconds = lease
        self._recorded = run.recorded
        self._asked, self._until = asked, asked + lease
        self._looked = asked  # when stops and waits were last checked
        self.held_count = 0
        # A database fail-over can undo a claim, and its fencing number is then given again; the owner is unique.
        self._ours = {"of_id": run.id, "of_fence": run.fence, "of_phase": step.runs_as, "of_owner": run.owner}

    def guard(self, known_for: float = 0.0) -> float:
        """Check that a call may be sent, and renew the lease, unless that was done in the last `known_for` seconds.

        Returns the moment (on clock.steady, in seconds) until which no other worker can take the run over. Send a call
        only if it must end before that moment, even if the process is frozen meanwhile. Raises Stopped if the run was
        stopped, and Postponed if all runs wait.
        """
        if steady() >= self._looked + known_for:
            self._transact(self._go_on)
            self._looked = self._asked
        return self._until

    def database_now(self) -> datetime:
        """Return the database's time (UTC), counted on from its answer to the claim."""
        return self._database_time + timedelta(seconds=steady())

    def hold_slots(self, count: int) -> None:
        """Record in the run how many LMS calls this claim may have in flight."""
        self._transact(lambda session: self._must(changed(session, _HOLDING, self._ours | {"held": count})))

    def renew(self, known_for: float = 0.0) -> None:
        """Renew the lease, unless that was done in the last `known_for` seconds."""
        if steady() >= self._asked + known_for:
            self._transact(self._renew)

    def guard_of_batch(self) -> Callable[[], float]:
        """Return `guard` for the calls of one batch. The first call accepts a check up to CHECKED_SECONDS old."""
        of_first = iter([CHECKED_SECONDS])
        return lambda: self.guard(next(of_first, 0.0))

    def record(self, write: Callable[[Session], None] | None = None, **counts: int) -> None:
        """Record an outcome in one transaction: add `counts` to the run's columns and call `write`.

        The compare-and-set on `recorded` keeps a repeat from counting twice if only the commit's answer was lost.
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
        self._note({"tries": 0, "waits_for": None} if counts else {})
        self._note({name: getattr(self.run, name) + count for name, count in counts.items()})
        self.held_count += counts.get("licenses_held", 0)

    def advance(self, finish: Callable[[Session], dict[str, int]] = lambda session: {}) -> None:
        """End the step and move the run to its next phase.

        `finish` runs in the same transaction and returns further columns of the run to set.
        """
        run, ends, counts = self.run, self.step.ends_as in ENDED, dict[str, int]()
        last = {"phase": self.step.ends_as, "owner": None, "error": None, "waits_for": None, "tries": 0}

        def tidy(session: Session) -> dict[str, Any]:
            counts.update(finish(session))
            # A forced run needs its confirmations until it ends, to know what it has sent. Others are dropped after
            # each downgrade step, or the table would grow all night.
            if ends == run.force and not run.dry_run:
                confirmations.drop_confirmations(session, run.enterprise_customer_uuid)
            if ends and not run.dry_run:
                held.drop_stale_holds(session, run.enterprise_customer_uuid)
            return counts

        self._leave(tidy, **(ENDED_COLUMNS if ends else queued()) | last, **{self.step.ended_at: DatabaseNow()})
        self._note(last | counts)

    def fail(self, error: str) -> None:
        """End the run as failed, with this one-sentence error; the ledger keeps 500 characters of it."""
        drop = partial(confirmations.drop_confirmations, enterprise=self.run.enterprise_customer_uuid)
        failed = {"phase": Phase.FAILED, "ended_at": DatabaseNow(), "waits_for": None, "error": error[:500]}
        self._leave(drop, **ENDED_COLUMNS | failed)

    def release(self) -> None:
        """Release the run: another worker can continue its step, or the run ends if it was stopped."""
        self._leave(lambda session: None, **queued())
        self._note({"owner": None})

    def wait(self, seconds: int, error: Unavailable, *, tries: int, left: int, gives_up_at: datetime) -> bool:
        """Release the run and record that its step is retried in `seconds` because of `error`.

        `tries` is how many tries have failed since the last progress, `left` how many are left. `gives_up_at` (UTC) is
        when the run fails if nothing changes. Returns True.
        """
        given = {**queued(seconds), "error": str(error)[:500], "waits_for": error.reason}
        given |= {"tries": tries, "tries_left": left, "gives_up_at": gives_up_at}

        def tidy(session: Session) -> dict[str, Any]:
            lms_calls.drop_calls(session, self.run)  # a repeat, because only the answer to the commit was lost
            joined = tries == self.run.tries  # this wait spent no try
            new = waits.note_wait(session, self.run, self.run.fence, self.step, error.reason, seconds, joined=joined)
            return {"retries": self.run.retries + new}

        self._leave(tidy, **given)
        self._note({"owner": None})
        return True

    def _leave(self, last: Callable[[Session], dict[str, Any] | None], **values: Any) -> None:
        """Release the run: call `last`, set these columns and those that `last` returns, store the claim's LMS calls.

        If the run was stopped meanwhile and this does not end it, end it as stopped.
        """
        calls = self._calls.drain()

        def work(session: Session) -> None:
            left, more = _LEFT.values(**values | (last(session) or {})), "ended_at" not in values
            if not changed(session, left.where(_RUN.stopped_by.is_(None)) if more else left, self._ours):
                self._must(more and changed(session, left, self._ours))
                end_stopped(session, Run.id == self.run.id)
            lms_calls.keep_calls(session, self.run, calls)

        self._database.transact(work)

    def _note(self, values: dict[str, Any]) -> None:
        """Set on `run` what was just written to its row."""
        for name, value in values.items():
            setattr(self.run, name, value)

    def _transact(self, work: Callable[[Session], None]) -> None:
        """Run a transaction that renews the lease."""
        asked = steady()
        self._database.transact(work)
        self._asked, self._until = asked, asked + self._lease_seconds

    def _go_on(self, session: Session) -> None:
        if changed(session, _going_on(self._lease_seconds), self._ours):
            return
        self._renew(session)
        run = session.get_one(Run, self.run.id)
        if run.stopped_by is not None:
            raise Stopped(f"run {run.id} was stopped by {run.stopped_by}: {run.stop_reason}")
        if wait := waits.postponement(session):
            raise wait

    def _renew(self, session: Session) -> None:
        self._must(changed(session, _renewal(self._lease_seconds), self._ours))

    def _must(self, ours: bool) -> None:
        if not ours:
            raise LeaseLost(f"run {self.run.id} was taken over by another worker during its {self.step} step")


# Built once, because each batch executes them.
_RUNS = cast(Table, Run.__table__)
_RUN = _RUNS.c
_OF_CLAIM = update(_RUNS).where(
    _RUN.id == bindparam("of_id"), _RUN.fence == bindparam("of_fence"), _RUN.phase == bindparam("of_phase")
)
_OWNED = _RUN.owner == bindparam("of_owner")
_OURS = _OF_CLAIM.where(_OWNED)
_HOLDING = _OURS.values(slots=bindparam("held"))
_LEFT = _OF_CLAIM.where(or_(_OWNED, _RUN.owner.is_(None)))  # NULL: released before, only the commit's answer was lost


@cache
def _renewal(lease_seconds: int) -> Update:
    return _OURS.values(lease_until=DatabaseNow(lease_seconds))


@cache
def _going_on(lease_seconds: int) -> Update:
    return _renewal(lease_seconds).where(_RUN.stopped_by.is_(None), waits.NONE_STANDS)


@cache
def _recording(lease_seconds: int, counts: tuple[str, ...]) -> Update:
    added = {name: _RUN[name] + bindparam(f"more_{name}", None, Integer()) for name in counts}
    fresh = _renewal(lease_seconds).where(_RUN.recorded == bindparam("of_recorded"))
    further = {"tries": 0, "waits_for": None, "confirmed_at": DatabaseNow()} if counts else {}
    return fresh.values(recorded=_RUN.recorded + 1, publications=0, **further, **added)


def claim(
    database: Database,
    run_id: UUID,
    enterprise: UUID,
    step: Step,
    owner: str,
    lease_seconds: int,
    calls: CallTimings | None = None,
    message: int | None = None,
    lms_url: str | None = None,
) -> Claim:
    """Claim a run for a step. Raises NotClaimed with the reason; BadArgument if there is no such run.

    `owner` is the worker's name, as shown to operators. `lease_seconds` is the length of the lease. A run whose lease
    has lapsed can be claimed again, unless it is too old (`is_timely`). The timings in `calls` are stored when the
    step ends. `message` is the number of the step's message, None for one posted by hand; a replaced message is
    refused. With `lms_url`, the claim also fails while a pause or an outage stands, or if the database belongs to
    another LMS.
    """
    if len(owner) > LONGEST_OWNER:  # keeps both ends: the process stands at the end, after a host name of any length
        owner = f"{owner[: LONGEST_OWNER // 2]}...{owner[-LONGEST_OWNER // 2 :]}"
    owner = f"{owner} ({uuid4().hex[:8]})"  # recognizes our own claim if only the answer to the commit was lost

    def work(session: Session) -> Any:
        free = or_(Run.owner.is_(None), Run.owner == owner, Run.lease_until < DatabaseNow())
        ready = or_(Run.phase == step.starts_from, (Run.phase == step.runs_as) & free)
        of_run = update(Run).where(Run.id == run_id, Run.enterprise_customer_uuid == enterprise)
        of_run = of_run.where(ready, is_timely(), is_newest(message), Run.stopped_by.is_(None))
        if lms_url is not None:
            of_run = of_run.where(waits.NONE_STANDS, exists().where(func.lower(Lms.url) == lms_url.lower()))
        claimed = changed(session, of_run.values(owner=owner, **_taken(step, lease_seconds)))
        run, now = session.execute(select(Run, DatabaseNow()).where(Run.id == run_id)).one_or_none() or (None, None)
        return run, now, None if claimed or run is None else _why_not(session, run, message)

    asked, (run, now, why_not) = steady(), database.transact(work)
    if run is None or run.enterprise_customer_uuid != enterprise:
        raise BadArgument(f"There is no run {run_id} of enterprise {enterprise}", "license-expiry status lists them")
    if why_not is not None:
        raise NotClaimed(f"run {run_id} is {run.phase}{why_not}")
    return Claim(database, run, step, lease_seconds, calls, asked, now)


def _taken(step: Step, lease_seconds: int) -> dict[str, Any]:
    """Return the columns that a claim sets, except the owner."""
    began: dict[str, Any] = {step.began_at: func.coalesce(_RUN[step.began_at], DatabaseNow())}
    if step is STEPS[0]:  # as_of precedes began_at in the table: MySQL assigns columns in that order
        began["as_of"] = case((_RUN[step.began_at].is_(None), DatabaseNow()), else_=_RUN.as_of)
    held = {"slots": case((Run.dry_run.is_(True), None), else_=1), "lease_until": DatabaseNow(lease_seconds)}
    return {"phase": step.runs_as, "fence": Run.fence + 1, **held, **began}


def _why_not(session: Session, run: Run, message: int | None) -> str:
    if run.phase == Phase.STOPPED:
        return f" by {run.stopped_by}: {run.stop_reason}"
    if run.phase in ENDED:
        return ""
    if run.stopped_by:
        return f" and will end: stopped by {run.stopped_by}: {run.stop_reason}"
    if message and message < (run.message_number or 1):
        return f": message {message} was replaced by message {run.message_number}"
    if run.owner:
        return f": worker {run.owner} has it until {run.lease_until}"
    timely = session.scalar(select(Run.id).where(Run.id == run.id, is_timely()))
    return ": it is not ready for this step" if timely else ": it is too old, and reconcile will end it"
