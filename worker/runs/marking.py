"""Marks the plans of a run that are done, as license-manager does it."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import update
from sqlalchemy.orm import Session

from worker.db.ledger_tables import Run
from worker.deps import Deps
from worker.due import statements
from worker.due.plans import done_and_unmarked
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
        marked[:] = [row[0] for row in statements.fetch(session, done_and_unmarked, scope)]
        if marked:
            plan_history.mark_processed(session, found, marked)
            more = Run.plans_processed + len(marked)
            session.execute(update(Run).where(Run.id == claim.run.id).values(plans_processed=more))

    def guard() -> None:
        deps.shutdown.check()
        claim.guard()

    claim.record(write)
    claim.run.plans_processed += len(marked)
    deps.lifecycle.tell(deps.database, guard, marked)
