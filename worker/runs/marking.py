"""Marks the done plans of a run as processed, in the way license-manager does."""

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

# Plans marked by one UPDATE: drivers limit the number of parameters (32,766 on SQLite).
CHUNK = 1000
_NOW = select(DatabaseNow())


class Marking:
    """Marks those of a step's plans that are done, adds a row to the history of each, and sends events to Segment."""

    def __init__(self, deps: Deps, claim: Claim, scope: Scope, plans: Sequence[DuePlan]) -> None:
        self._deps, self._claim, self._scope = deps, claim, scope
        self._any = not all(plan.waiting for plan in plans)
        self._marked: list[UUID] = []

    def now(self) -> None:
        """Mark the done plans in a transaction of their own, and send their events to Segment."""
        if not self._any:
            return

        def write(session: Session) -> None:
            count = self.write(session)
            if self._marked:
                session.execute(update(Run).where(Run.id == self._claim.run.id).values(count))

        self._claim.record(write)
        self._claim.run.plans_processed += len(self._marked)

        def guard() -> None:
            self._deps.shutdown.check()
            self._claim.renew()

        self._deps.lifecycle.tell(self._deps.database, guard, self._marked)

    def write(self, session: Session) -> dict[str, int]:
        """Mark the done plans in the caller's transaction, which must check the claim; return the run's new count."""
        run, self._marked = self._claim.run, []
        if self._any:
            now = session.connection().execute(_NOW).scalar_one()
            done = [row[0] for row in statements.fetch(session, done_and_unmarked, self._scope)]
            if done:
                # The UPDATE repeats the condition: meanwhile a plan may be extended, or a license moved into it.
                found, still = self._deps.plan_history.look(session), still_done(self._scope)
                for first in range(0, len(done), CHUNK):
                    chunk = done[first : first + CHUNK]
                    self._marked += plan_history.mark_processed(session, found, chunk, now, run.id, *still)
        return {"plans_processed": run.plans_processed + len(self._marked)}
