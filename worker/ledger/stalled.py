"""Live runs that their worker abandoned, or that the broker lost: found here, to be published again or given up."""

from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from worker.db.ledger_tables import Run
from worker.db.sql import DatabaseNow, changed
from worker.db.transactions import Database
from worker.ledger import confirmations, order, runs

MAX_PUBLICATIONS = 6


def release_stalled(database: Database) -> tuple[list[Run], list[UUID]]:
    """Take runs whose lease has lapsed from their workers; return those to publish again, and ids of those given up.

    The fencing number rises, so that a worker that wakes too late is shut out at once. Each run has a transaction of
    its own: one that a frozen process keeps locked holds up no other.
    """
    stalled = select(Run).where(Run.live.is_not(None), Run.lease_until < DatabaseNow()).order_by(Run.opened_at)
    found = database.transact(lambda session: session.scalars(stalled).all())
    released = [run for run in found if database.transact(partial(_release, run=run))]
    again = [run for run in released if run.publications < MAX_PUBLICATIONS]
    return again, [run.id for run in released if run.publications >= MAX_PUBLICATIONS]


def _release(session: Session, run: Run) -> bool:
    values: dict[str, Any] = {"owner": None, "fence": run.fence + 1}
    if run.publications < MAX_PUBLICATIONS:
        values["publications"] = run.publications + 1
        values["lease_until"] = DatabaseNow(runs.QUEUED_SECONDS * 2**run.publications)
    else:
        why = f"given up while {run.phase}: taken up {run.publications} times without getting further"
        error = why if run.error is None else f"{why}; last: {run.error}"
        values |= {"phase": order.Phase.ABANDONED, "live": None, "lease_until": None, "error": error[:500]}
        values |= {"ended_at": DatabaseNow()}
    unchanged = (Run.fence == run.fence, Run.phase == run.phase, Run.publications == run.publications)
    lapsed = update(Run).where(Run.id == run.id, Run.lease_until < DatabaseNow(), *unchanged)
    released = changed(session, lapsed.values(values))
    if released and "ended_at" in values:
        confirmations.drop_confirmations(session, run.enterprise_customer_uuid)
    return released
