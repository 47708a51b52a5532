"""Sends one downgrade batch: the licenses that are still due when the call is sent."""

from collections.abc import Callable, Sequence
from typing import Any

from worker.deps import Deps
from worker.due.downgrades import ignore_enrollments_modified_after
from worker.due.scope import Scope
from worker.lms.client import Selection
from worker.lms.transport import Guard
from worker.runs.batches import Batch, Fresh


def downgrade_batch(
    deps: Deps, scope: Scope, batch: Batch, select_again: Callable[[Batch], Sequence[Any]], guard: Guard
) -> Batch:
    """Downgrade those licenses of a batch that are still due; return the batch of these. Raises as the LMS client."""
    fresh = Fresh(batch, select_again)

    def select() -> Selection:
        now = fresh.now()
        expired = now.rows[0].expiration_date if now.rows else scope.as_of  # all rows of a batch are of one plan
        return Selection(now.licenses, now.fresh_until, ignore_enrollments_modified_after(expired, scope.as_of))

    deps.lms.downgrade(select, guard)
    return fresh.batch
