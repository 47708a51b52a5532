"""Marks the plans of a run that are done, as license-manager does it."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from worker.db.ledger_tables import Run
from worker.db.sql import DatabaseNow
from worker.deps import Deps
from worker.due import statements
from worker.due.plans import done_and_unmarked, still_done
from worker.due.scope import Scope
from worker.ledger.claims import Claim
from worker.license_manager import plan_history
from worker.runs.batches import DuePlan


def mark_done_plans(deps: Deps, claim: Claim, scope: Scope, plans: Sequence[DuePlan]) -> None:
    """Mark those of these plans that are done, add a row to their history, and tell Segment."""
    if all(plan.waiting for plan in plans):
        return
    found = deps.plan_history.look()
    marked: list[UUID] = []

    def write(session: Session) -> None:
        marked.clear()
        now = session.execute(select(DatabaseNow())).scalar_one()
        done = [row[0] for row in statements.fetch(session, done_and_unmarked, scope)]
        # Once more in the UPDATE itself: meanwhile a plan may have been extended, or a license moved into it.
        if done:
            marked[:] = plan_history.mark_processed(session, found, done, now, claim.run.id, *still_done(scope))
        if marked:
            more = Run.plans_processed + len(marked)
            session.execute(update(Run).where(Run.id == claim.run.id).values(plans_processed=more))

    def guard() -> None:
        deps.shutdown.check()
        claim.renew()

    claim.record(write)
    claim.run.plans_processed += len(marked)
    deps.lifecycle.tell(deps.database, guard, marked)
