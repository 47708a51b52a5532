"""Sends one unlink batch, with the addresses that the LMS has now; limits the number of learners a run unlinks.

Learners change their address on the platform. The LMS answers 200 to an address that it does not know and does
nothing, so the license's address may be the wrong one.
"""

from collections.abc import Callable, Sequence
from math import inf
from typing import Any
from uuid import UUID

from worker.db.ledger_tables import Run
from worker.deps import Deps
from worker.due import unlinks
from worker.due.scope import Scope
from worker.due.statements import fetch
from worker.errors import RunRefused
from worker.lms.client import Selection
from worker.lms.transport import Guard
from worker.runs.batches import Batch, Fresh
from worker.settings import Settings


class UnlinkLimit:
    """Limits how many learners a run may unlink: to UNLINK_LIMIT, or to the number an operator has approved.

    A higher number may come from a mistake, such as a wrong unlink list or a deactivated plan, so a person must check.
    """

    def __init__(self, settings: Settings, run: Run) -> None:
        self._run, self._before, self._limit = run, run.learners_unlinked, settings.UNLINK_LIMIT

    def allows(self, more: int) -> bool:
        """Return whether this attempt may unlink `more` learners."""
        return not self._limit or self._before + more <= max(self._limit, self._run.approve_unlinks or 0)

    def check(self, more: int) -> None:
        """Raise RunRefused if this attempt may not unlink `more` learners."""
        if not self.allows(more):
            number = self._before + more
            leave = f", and {self._run.approve_unlinks} were approved" if self._run.approve_unlinks else ""
            what = f"{number} learners are due to be unlinked: UNLINK_LIMIT is {self._limit}{leave}"
            done = self._run.learners_unlinked
            what += f"; {done} were unlinked before" if done else "; nobody was unlinked"
            of = f"--enterprise {self._run.enterprise_customer_uuid}"
            look, go = f"license-expiry due {of}", f"license-expiry run {of} --approve-unlinks {number} --reason TEXT"
            raise RunRefused("needs_approval", what, f"to check them: {look}; to approve them: {go}")


def unlink_batch(
    deps: Deps,
    enterprise: UUID,
    scope: Scope,
    batch: Batch,
    select_again: Callable[[Batch], Sequence[Any]],
    guard: Guard,
) -> Batch:
    """Unlink those learners of a batch that are still due; return the batch of those that are unlinked now.

    A learner whose address in the LMS differs is unlinked by the LMS's address, unless that address is protected. One
    who is no longer linked is skipped and counted as unlinked. If the LMS refuses to list addresses, the license's
    address is used. Raises as the LMS client.
    """
    fresh = Fresh(batch, select_again)
    asked = sorted({row.lms_user_id for row in batch.rows if row.lms_user_id is not None})
    linked = deps.lms.linked_learners(enterprise, asked, guard) if asked else {}
    done: Sequence[Any] = ()

    def address(row: Any) -> str | None:
        return row.user_email if linked is None or row.lms_user_id is None else linked.get(row.lms_user_id)

    def select() -> Selection:
        nonlocal done
        now = fresh.now()
        # A license reassigned meanwhile has a user id that was not asked for.
        known = [row for row in now.rows if row.lms_user_id is None or row.lms_user_id in asked]
        others = {new for row in known if (new := address(row)) is not None and new != row.user_email}
        kept = {new for new in others if not new.strip() or _is_protected(deps, scope, new)}
        done = [row for row in known if address(row) not in kept]
        return Selection(list(dict.fromkeys(to for row in done if (to := address(row)))), now.fresh_until)

    deps.lms.unlink(enterprise, select, guard)
    if done and not any(map(address, done)):  # the LMS lists no learners to a service user that is not staff
        deps.lms.check_unlinks(enterprise, guard, recently=inf)
    return Batch(done, fresh.batch.fresh_until)


def _is_protected(deps: Deps, scope: Scope, address: str) -> bool:
    values = {"address": address, "folded": address.strip().lower()}
    return bool(deps.database.transact(lambda session: fetch(session, unlinks.address_is_protected, scope, **values)))
