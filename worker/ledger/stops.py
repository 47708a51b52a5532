"""Stops: runs that an operator ends before their time.

A run that no worker has ends at once. One that a worker has is marked, and ends before its next LMS call or when it is
given back, whichever is first; should its worker be lost, `stalled.end_lost_stops` ends it. It is never opened,
claimed or published again.
"""

from collections.abc import Sequence
from functools import partial
from uuid import UUID

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from worker.db.ledger_tables import Run
from worker.db.transactions import Database
from worker.errors import BadArgument
from worker.ledger.runs import runs_by_id
from worker.ledger.stalled import end_stopped


def stop_run(database: Database, run_id: UUID, stopped_by: str, reason: str) -> Sequence[Run]:
    """Stop one run; return it as it is now. Raises BadArgument when there is no such run.

    One that has ended, or was stopped before, stays as it is.
    """
    stopped = _stop(database, Run.id == run_id, stopped_by, reason)
    found = stopped or database.transact(lambda session: runs_by_id(session, [run_id]))
    if not found:
        raise BadArgument(f"There is no run {run_id}", "license-expiry status lists them")
    return found


def stop_live_runs(database: Database, enterprise: UUID | None, stopped_by: str, reason: str) -> Sequence[Run]:
    """Stop the live run of this enterprise, or all live ones; return them as they are now.

    One that was stopped before stays as it was.
    """
    live = Run.live.is_not(None) if enterprise is None else Run.live == enterprise
    return _stop(database, live, stopped_by, reason)


def _stop(database: Database, which: ColumnElement[bool], stopped_by: str, reason: str) -> Sequence[Run]:
    """Stop these of the live runs; each in a transaction of its own, so that one that is locked holds up no other."""
    of_these = select(Run.id).where(Run.live.is_not(None), which).order_by(Run.opened_at)
    ids = database.transact(lambda session: session.scalars(of_these).all())
    values = {"stopped_by": stopped_by, "stop_reason": reason}

    def work(session: Session, run_id: UUID) -> None:
        unstopped = update(Run).where(Run.id == run_id, Run.live.is_not(None), Run.stopped_by.is_(None))
        session.execute(unstopped.values(values))
        end_stopped(session, Run.id == run_id)

    for run_id in ids:
        database.transact(partial(work, run_id=run_id))
    return database.transact(lambda session: runs_by_id(session, ids))
