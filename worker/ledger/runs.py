"""Opens runs in the ledger, one live run an enterprise; stops, reads and describes them.

A stopped run ends at once if no worker has it. If a worker has it, it ends before its next LMS call or when it is
released, whichever is first. If that worker is lost, `stalled.end_lost_stops` ends the run.
"""

from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID, uuid4, uuid5

from sqlalchemy import ColumnElement, and_, case, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from worker.db.ledger_tables import Run
from worker.db.sql import DatabaseNow, OneOf
from worker.db.transactions import Database
from worker.errors import BadArgument
from worker.ledger import stalled
from worker.ledger.order import Phase

# Conditions: the run waits before a step is retried. `is_waiting` is the same for a run already read.
WAITING = (Run.live.is_not(None), Run.owner.is_(None), Run.waits_for.is_not(None))
COUNTS = ("plans_processed", "licenses_downgraded", "licenses_held", "learners_unlinked", "learners_protected")


@dataclass(frozen=True)
class Opened:
    """The result of opening a run: the id of the enterprise's run, and whether it is new.

    A run that is not new is either `repeated` (the same trigger opened it before, and it may have ended) or the live
    run that the enterprise already had.
    """

    enterprise: UUID
    run_id: UUID
    new: bool
    repeated: bool = False


def run_id_of(enterprise: UUID, trigger: str) -> UUID:
    """Return the id of the run that this trigger (a task's id) opens for this enterprise; always the same for both."""
    return uuid5(enterprise, trigger)


def open_runs(
    database: Database,
    enterprises: Sequence[UUID],
    triggered_at: datetime,
    scheduled_for: datetime | None = None,
    trigger: str | None = None,
    **request: Any,
) -> list[Opened]:
    """Open a run for each of these enterprises, or find its live run. A unique key prevents a second live run.

    A live run that is too old is ended first. If a scheduled night finds a live run that is not its own, it is recorded
    as that run's `night_after`. An enterprise gets no new run if its run of this night was stopped, or if this
    `trigger` (a task's id) has opened a run for it before. `triggered_at` and `scheduled_for` are UTC. `request` holds
    the columns of Run that the trigger sets (dry_run, force, reason, plan_uuids, ...).
    """
    ids = {enterprise: run_id_of(enterprise, trigger) if trigger else uuid4() for enterprise in enterprises}
    moments = {"triggered_at": triggered_at, "as_of": triggered_at, "scheduled_for": scheduled_for}
    asked = {"force": False, "dry_run": False, **request, **moments, "phase": Phase.QUEUED}
    inserted: set[UUID] = set()  # kept over retries: a commit may succeed although its answer is lost

    def work(session: Session) -> dict[UUID, UUID]:
        found = _live_runs(session, ids, scheduled_for)
        now, until = session.execute(select(DatabaseNow(), DatabaseNow(stalled.QUEUED_SECONDS))).one()
        asked.update(opened_at=now, queued_at=now, lease_until=until)
        new = {enterprise: run_id for enterprise, run_id in ids.items() if enterprise not in found}
        rows = [{"id": new[one], "enterprise_customer_uuid": one, "live": one, **asked} for one in new]
        if rows:
            session.execute(insert(Run), rows)
            inserted.update(new.values())
        return ids | found

    for rest in range(5, -1, -1):
        try:
            opened = database.transact(work)
            return [Opened(e, r, r in inserted, r == ids[e] and r not in inserted) for e, r in opened.items()]
        except IntegrityError:  # another process has just opened one of them, and may have ended it since
            if not rest:
                raise
    raise AssertionError("unreachable")


def _live_runs(session: Session, ids: dict[UUID, UUID], night: datetime | None) -> dict[UUID, UUID]:
    """Return the live runs of these enterprises and those stopped in this night, by enterprise.

    Includes the runs with these ids in any phase: our own if only the commit's answer was lost, or if the trigger was
    delivered twice.
    """
    stalled.end_outdated(session, Run.live.in_(ids))
    if night:  # locks the runs, so that none of them ends before the select
        others = or_(Run.scheduled_for.is_(None), Run.scheduled_for != night)
        session.execute(update(Run).where(Run.live.in_(ids), others).values(night_after=night))
    taken = or_(Run.live.in_(ids), Run.id.in_(ids.values()))
    if night:
        stopped = (Run.scheduled_for == night, Run.phase == Phase.STOPPED)
        taken |= and_(Run.enterprise_customer_uuid.in_(ids), *stopped)
    found = session.execute(select(Run.enterprise_customer_uuid, Run.id).where(taken))
    of_each: dict[UUID, UUID] = {}
    for enterprise, run_id in found:
        if of_each.get(enterprise) != ids[enterprise]:  # our own run takes precedence
            of_each[enterprise] = run_id
    return of_each


def record_refusal(
    database: Database,
    enterprise: UUID,
    triggered_at: datetime,
    error: str,
    scheduled_for: datetime | None = None,
    trigger: str | None = None,
) -> UUID:
    """Record a run that could not be opened as failed, with this error; return its id.

    The same `trigger` records it only once, as in `open_runs`.
    """
    run_id = run_id_of(enterprise, trigger) if trigger else uuid4()
    row: dict[str, Any] = {"id": run_id, "enterprise_customer_uuid": enterprise, "error": error}
    row |= {"triggered_at": triggered_at, "as_of": triggered_at}
    row |= {"phase": Phase.FAILED, "scheduled_for": scheduled_for, "dry_run": False, "force": False}
    row |= {"opened_at": DatabaseNow(), "ended_at": DatabaseNow()}
    with suppress(IntegrityError):  # the trigger was delivered twice
        database.transact(lambda session: session.execute(insert(Run).values(row)))
    return run_id


def let_lapse(database: Database, run_ids: Collection[UUID]) -> None:
    """Let the leases of these runs lapse, so that `reconcile` publishes them: their message could not be sent."""
    unclaimed = update(Run).where(Run.id.in_(run_ids), Run.live.is_not(None), Run.owner.is_(None))
    database.transact(lambda session: session.execute(unclaimed.values(stalled.UNSENT)))


def stop_run(database: Database, run_id: UUID, stopped_by: str, reason: str) -> Sequence[Run]:
    """Stop one run; return its present state. Raises BadArgument if there is no such run.

    Does not change a run that has ended or was stopped before.
    """
    stopped = _stop(database, Run.id == run_id, stopped_by, reason)
    found = stopped or database.transact(lambda session: runs_by_id(session, [run_id]))
    if not found:
        raise BadArgument(f"There is no run {run_id}", "license-expiry status lists them")
    return found


def stop_live_runs(database: Database, enterprise: UUID | None, stopped_by: str, reason: str) -> Sequence[Run]:
    """Stop the live run of this enterprise, or all live runs if None; return their present state.

    Does not change a run that was stopped before.
    """
    live = Run.live.is_not(None) if enterprise is None else Run.live == enterprise
    return _stop(database, live, stopped_by, reason)


def _stop(database: Database, which: ColumnElement[bool], stopped_by: str, reason: str) -> Sequence[Run]:
    """Stop these live runs, each in its own transaction, so that a locked run does not block the others."""
    of_these = select(Run.id).where(Run.live.is_not(None), which).order_by(Run.opened_at)
    ids = database.transact(lambda session: session.scalars(of_these).all())
    values = {"stopped_by": stopped_by, "stop_reason": reason}

    def work(session: Session, run_id: UUID) -> None:
        unstopped = update(Run).where(Run.id == run_id, Run.live.is_not(None), Run.stopped_by.is_(None))
        session.execute(unstopped.values(values))
        stalled.end_stopped(session, Run.id == run_id)

    for run_id in ids:
        database.transact(partial(work, run_id=run_id))
    return database.transact(lambda session: runs_by_id(session, ids))


def describe(run: Run) -> dict[str, Any]:
    """Return a run as tasks and `--json` show it: ids, phase, counts, and its wait if it waits."""
    return {
        "run_id": str(run.id),
        "enterprise_customer_uuid": str(run.enterprise_customer_uuid),
        "phase": str(run.phase),
        "dry_run": run.dry_run,
        "triggered_by": run.triggered_by,
        "reason": run.reason,
        **{name: getattr(run, name) for name in COUNTS},
        "error": run.error,
        **_described_wait(run),
    }


def is_waiting(run: Run) -> bool:
    """True if this run waits before a step is retried."""
    return run.live is not None and not run.owner and bool(run.waits_for)


def _described_wait(run: Run) -> dict[str, Any]:
    """Return the reason and the times of a run's wait, as tasks and `--json` show them; {} if it does not wait."""
    if not is_waiting(run):
        return {}
    return {
        "waits_for": run.waits_for,
        "again_at": run.queued_at.isoformat(),
        "tries_left": run.tries_left,
        "gives_up_at": run.gives_up_at and run.gives_up_at.isoformat(),
    }


def runs_by_id(session: Session, run_ids: Iterable[UUID]) -> Sequence[Run]:
    """Return these runs in the order in which they were opened."""
    return session.scalars(select(Run).where(OneOf(Run.id, "ids", run_ids)).order_by(Run.opened_at)).all()


def newest_runs(session: Session, enterprise: UUID | None, limit: int = 20) -> Sequence[Run]:
    """Return the newest run of each enterprise, newest first; a dry run only if it has no other run.

    With `enterprise`, return its newest runs instead, at most `limit`, dry runs included.
    """
    if enterprise is not None:
        of_one = select(Run).where(Run.enterprise_customer_uuid == enterprise)
        return session.scalars(of_one.order_by(Run.opened_at.desc()).limit(limit)).all()
    opened = func.coalesce(func.max(case((Run.dry_run.is_(False), Run.opened_at))), func.max(Run.opened_at))
    of_each = select(Run.enterprise_customer_uuid, opened.label("opened_at")).group_by(Run.enterprise_customer_uuid)
    newest = of_each.subquery()
    same = (Run.enterprise_customer_uuid == newest.c.enterprise_customer_uuid) & (Run.opened_at == newest.c.opened_at)
    return session.scalars(select(Run).join(newest, same).order_by(Run.opened_at.desc())).all()
