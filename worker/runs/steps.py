"""The two steps of a run, as plain functions: downgrade the due licenses, unlink the due learners."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from worker.db.license_manager_tables import DOWNGRADED_EVENT, UNLINKED_EVENT
from worker.db.sql import Rows
from worker.deps import Deps
from worker.due import downgrades, plans, unlinks
from worker.due.scope import Scope, scope_of
from worker.due.statements import fetch, fetch_count
from worker.errors import LicenseExpiryError, RunRefused, Unavailable
from worker.ledger import confirmations, order
from worker.ledger.claims import Claim
from worker.license_manager import events
from worker.logs import get_logger
from worker.runs.batches import Batch, BatchReader, DuePlan
from worker.runs.clocks import with_clocks
from worker.runs.downgrading import downgrade_batch
from worker.runs.flight import Flight
from worker.runs.marking import Marking
from worker.runs.unlinking import UnlinkLimit, unlink_batch

log = get_logger(__name__)

T = TypeVar("T")

Count: TypeAlias = Callable[[Session, Scope], dict[str, int]]
"""Counts what the step would do, as columns of a dry run."""
Finish: TypeAlias = Callable[[Session], dict[str, int]]
"""Writes in the transaction that ends the step; returns further columns of the run to set."""
Do: TypeAlias = Callable[[Deps, Claim, Scope, float], Finish | None]
"""Does a step; returns None if the deadline (time.monotonic) passed first. Raises Unavailable, RunRefused."""


def downgrade_due_licenses(deps: Deps, claim: Claim, scope: Scope, deadline: float) -> Finish | None:
    """Downgrade the licenses due in the claim's run, and mark the plans that are done. See `Do`."""
    guarded = with_clocks(deps, claim)

    def send(batch: Batch) -> Batch:
        return downgrade_batch(deps, scope, batch, select_again, guarded(claim.guard_of_batch()))

    def select_again(batch: Batch) -> Sequence[Any]:
        return _fetch(deps, downgrades.still_to_downgrade, scope, **_of(batch.plan), licenses=batch.licenses)

    def confirm(session: Session, batches: Sequence[Batch]) -> None:
        for waiting in (False, True):
            licenses = [
                uuid for batch in batches if batch.plan and batch.plan.waiting is waiting for uuid in batch.licenses
            ]
            if licenses and waiting:
                events.insert_events(session, licenses, DOWNGRADED_EVENT)
            elif licenses:
                confirmations.confirm_downgrades(session, claim.run, licenses)

    def read_page(plan: DuePlan, after: UUID | None, limit: int) -> Sequence[Any]:
        return _fetch(deps, downgrades.downgrade_page, scope, **_of(plan), after=after, limit=limit)

    found = deps.database.transact(lambda session: _due_plans(session, scope))
    sources = [(plan, partial(read_page, plan)) for plan in found if plan.with_work]
    reader = BatchReader(claim, deps.settings.LICENSE_EXPIRATION_BATCH_SIZE, sources)
    marking = Marking(deps, claim, scope, found)
    try:
        done = Flight(deps, claim, reader, send, confirm, deadline).send_all()
    except (Unavailable, RunRefused):
        settle(marking.now)  # done plans are marked even if other plans failed
        raise
    if not done or deps.lifecycle.key:  # events go to Segment while this worker still has the run
        marking.now()
    return marking.write if done else None


def unlink_due_learners(deps: Deps, claim: Claim, scope: Scope, deadline: float) -> Finish | None:
    """Unlink the learners due in the claim's run. Raises RunRefused if they exceed the limit. See `Do`."""
    limit, guarded = UnlinkLimit(deps.settings, claim.run), with_clocks(deps, claim)
    enterprise = claim.run.enterprise_customer_uuid

    def send(batch: Batch) -> Batch:
        return unlink_batch(deps, enterprise, scope, batch, select_again, guarded(claim.guard_of_batch()))

    def select_again(batch: Batch) -> Sequence[Any]:
        return _fetch(deps, unlinks.still_to_unlink, scope, licenses=batch.licenses)

    def confirm(session: Session, batches: Sequence[Batch]) -> None:
        licenses = [uuid for batch in batches for uuid in batch.licenses]
        events.insert_events(session, licenses, UNLINKED_EVENT)

    def read_page(after: UUID | None, rows: int) -> Sequence[Any]:
        page = _fetch(deps, unlinks.unlink_page, scope, after=after, limit=rows)
        # Checks the limit before anything is sent. A first page that is not full has all learners.
        if after is None and len(page) == rows and not limit.allows(_count(deps, unlinks.unlink_candidates, scope)):
            limit.check(_count(deps, unlinks.due_unlinks, scope))  # slow; the candidates are a quick upper bound
        return page

    reader = BatchReader(claim, deps.settings.BULK_UNLINK_BATCH_SIZE, [(None, read_page)], limit.check)
    done = Flight(deps, claim, reader, send, confirm, deadline).send_all()
    return partial(_count_protected, scope=scope) if done else None


def _count_downgrades(session: Session, scope: Scope) -> dict[str, int]:
    of_plans = fetch_count(session, downgrades.due_downgrades, scope)
    alone = fetch_count(session, downgrades.waiting_downgrades, scope)
    marked = fetch_count(session, plans.due_and_unmarked, scope)
    return {"plans_processed": marked, "licenses_downgraded": of_plans + alone}


def _count_unlinks(session: Session, scope: Scope) -> dict[str, int]:
    due = fetch_count(session, unlinks.due_unlinks, scope, downgraded=False)
    return {"learners_unlinked": due} | _count_protected(session, scope)


def _count_protected(session: Session, scope: Scope) -> dict[str, int]:
    left = fetch(session, unlinks.first_candidate, scope)  # without candidates the slow query counts 0
    return {"learners_protected": fetch_count(session, unlinks.protected, scope) if left else 0}


WORK: dict[str, tuple[Do, Count]] = {
    order.DOWNGRADE.name: (downgrade_due_licenses, _count_downgrades),
    order.UNLINK.name: (unlink_due_learners, _count_unlinks),
}


def do_step(deps: Deps, claim: Claim, deadline: float) -> bool:
    """Do the step of a claim until `deadline` (time.monotonic); if it is done, move the run to its next phase.

    Returns whether it is done. A dry run sends nothing, and counts what the step would do. Raises as `Do`.
    """
    run, (do, count) = claim.run, WORK[claim.step.name]
    scope = scope_of(deps.database, deps.settings, run.as_of, run, run.enterprise_customer_uuid, run.id)
    finish = (lambda session: count(session, scope)) if run.dry_run else do(deps, claim, scope, deadline)
    if finish is None:
        claim.release()
        return False
    claim.renew(deps.settings.LEASE_SECONDS / 3)
    claim.advance(finish)
    return True


def settle(last: Callable[..., T], *arguments: Any) -> T | None:
    """Call `last` and return its result; None, with a warning, if it raises. So it cannot hide an earlier error."""
    try:
        return last(*arguments)
    except LicenseExpiryError as error:
        log.warning("could not be recorded: the run is resumed after its lease has lapsed", error=str(error))
        return None


def _fetch(deps: Deps, question: Callable[..., Rows], scope: Scope, **values: Any) -> Sequence[Any]:
    return deps.database.transact(lambda session: fetch(session, question, scope, **values))


def _count(deps: Deps, question: Callable[..., Rows], scope: Scope) -> int:
    return deps.database.transact(lambda session: fetch_count(session, question, scope))


def _of(plan: DuePlan | None) -> dict[str, Any]:
    assert plan is not None  # noqa: S101, for the type checker
    return {"plan": plan.uuid, "waiting": plan.waiting}


def _due_plans(session: Session, scope: Scope) -> list[DuePlan]:
    """Return the due plans and the waiting plans with work, oldest expiration first: prior plans precede renewals."""
    found = [
        DuePlan(uuid, expires, False, bool(work))
        for uuid, expires, _, work in fetch(session, plans.plans_of_run, scope)
    ]
    if fetch(session, downgrades.first_unconfirmed, scope):  # otherwise the slow query finds nothing
        waiting = fetch(session, downgrades.waiting_plans, scope)
        found += [DuePlan(uuid, expires, waiting=True) for uuid, expires, _ in waiting]
    return sorted(found, key=lambda plan: (plan.expiration_date, plan.uuid))
