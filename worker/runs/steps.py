"""The two steps of a run as plain functions, and the one attempt at a step that leaves the run telling the truth."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import insert, literal, select, type_coerce, update
from sqlalchemy.orm import Session

from worker.db.ledger_tables import DOWNGRADED_EVENT, UNLINKED_EVENT, Run, SubscriptionPlan
from worker.db.types import DatabaseNow, DjangoUUID
from worker.deps import Deps
from worker.due import conditions
from worker.due.scope import Scope, scope_of
from worker.due.statements import count, read
from worker.errors import LeaseLost, LicenseExpiryError, NotClaimed, RunRefused, Stopping, Unavailable
from worker.ledger import claims, confirmations
from worker.ledger.claims import Claim, Step
from worker.logs import get_logger
from worker.runs.flight import Batch, Page, Pages, Plan, drive

log = get_logger(__name__)

# After so long a step goes to the end of the queue: large enterprises are not to keep small ones waiting.
SLICE_SECONDS = 120


@dataclass(frozen=True)
class Outcome:
    """What an attempt at a step came to.

    `skipped` says why nothing was done; `more` that the step is to be taken up again, because its time slice ended or
    the worker is being shut down.
    """

    run: Run | None
    skipped: str | None = None
    more: bool = False


def attempt(
    deps: Deps,
    run_id: UUID,
    enterprise: UUID,
    step: Step,
    owner: str,
    retry_in: Callable[[Unavailable], int | None],
) -> Outcome:
    """Claim a run, do one step of it, and leave the run in a phase that tells the truth, whatever happens.

    `retry_in` answers an Unavailable with the seconds after which the caller tries again, or with None, which
    fails the run. Raises Unavailable and RunRefused after the run is dealt with; BadArgument for an unknown run.
    """
    with structlog.contextvars.bound_contextvars(enterprise=str(enterprise), run=str(run_id), step=str(step)):
        try:
            lease = deps.settings.LEASE_SECONDS
            claim = claims.claim(deps.database, run_id, enterprise, step, owner, lease, deps.calls)
        except NotClaimed as reason:
            return _skipped(reason)
        except LicenseExpiryError as error:
            log.error("step could not begin", error=str(error))
            if isinstance(error, Unavailable):
                retry_in(error)
            raise
        log.info("step begins")
        return _do(deps, claim, retry_in)


def _do(deps: Deps, claim: Claim, retry_in: Callable[[Unavailable], int | None]) -> Outcome:
    try:
        slice_ends = time.monotonic() + min(SLICE_SECONDS, deps.settings.TASK_TIME_LIMIT_SECONDS / 2)
        done = _STEPS[claim.step](deps, claim, slice_ends)
        claim.advance(**_last_counts(deps, claim)) if done else claim.release()
    except LeaseLost as reason:
        return _skipped(reason)
    except Stopping:
        _settle(claim.release)
        log.info("step handed back: this worker ends")
        return Outcome(None, more=True)
    except Unavailable as error:
        seconds = retry_in(error)
        _fail(claim, str(error)) if seconds is None else _give_back(claim, seconds, error)
        raise
    except LicenseExpiryError as error:
        _fail(claim, str(error))
        raise
    except Exception as error:
        _fail(claim, f"an error of our own, {type(error).__name__}: the worker's log has its traceback")
        raise
    run = claim.run
    counts = {name: getattr(run, name) for name in confirmations.COUNTS}
    log.info("step ends" if done else "step handed on", phase=run.phase, dry_run=run.dry_run, **counts)
    return Outcome(run, more=not done)


def _skipped(reason: LicenseExpiryError) -> Outcome:
    log.info("step skipped", reason=str(reason))
    return Outcome(None, skipped=str(reason))


def _fail(claim: Claim, error: str) -> None:
    log.error("run failed", error=error)
    _settle(claim.fail, error)


def _give_back(claim: Claim, seconds: int, error: Unavailable) -> None:
    log.warning("step comes again", seconds=seconds, error=str(error))
    _settle(claim.release, seconds, error)


def downgrade(deps: Deps, claim: Claim, deadline: float) -> bool:
    """Downgrade what is due in the claim's run and mark the plans that are done.

    Returns False when `deadline` (of time.monotonic) came first. Raises Unavailable, RunRefused, LeaseLost.
    """
    scope = _scope(deps, claim.run)
    if claim.run.dry_run:
        return True

    def send(batch: Batch) -> None:
        assert batch.plan is not None  # noqa: S101, for the type checker
        date = conditions.ignore_enrollments_modified_after(batch.plan.expiration_date, scope.as_of)
        deps.lms.downgrade(batch.licenses, date, claim.guard_of_batch())

    def confirm(session: Session, batches: Sequence[Batch]) -> None:
        for waiting in (False, True):
            licenses = [
                uuid for batch in batches if batch.plan and batch.plan.waiting is waiting for uuid in batch.licenses
            ]
            if licenses and waiting:
                confirmations.insert_events(session, licenses, DOWNGRADED_EVENT)
            elif licenses:
                confirmations.confirm_downgrades(session, claim.run, licenses)

    plans = deps.database.transact(lambda session: _plans(session, scope))
    pages = Pages(
        claim, deps.settings.LICENSE_EXPIRATION_BATCH_SIZE, [(plan, _pages_of(deps, scope, plan)) for plan in plans]
    )
    try:
        done = drive(deps, claim, pages, send, confirm, "licenses_downgraded", deadline)
    except (Unavailable, RunRefused):
        _settle(_mark_done_plans, deps, claim, scope, plans)  # a plan that is done is done, whatever befell others
        raise
    _mark_done_plans(deps, claim, scope, plans)
    return done


def unlink(deps: Deps, claim: Claim, deadline: float) -> bool:
    """Unlink the learners who are due in the claim's run.

    Returns False when `deadline` (of time.monotonic) came first. Raises Unavailable, RunRefused, LeaseLost.
    """
    scope = _scope(deps, claim.run)
    if claim.run.dry_run:
        return True

    def send(batch: Batch) -> None:
        emails = list(dict.fromkeys(row[2] for row in batch.rows))
        deps.lms.unlink(claim.run.enterprise_customer_uuid, emails, claim.guard_of_batch())

    def confirm(session: Session, batches: Sequence[Batch]) -> None:
        licenses = [uuid for batch in batches for uuid in batch.licenses]
        confirmations.insert_events(session, licenses, UNLINKED_EVENT)

    def page(after: UUID | None, limit: int) -> Sequence[Any]:
        return _read(deps, conditions.unlink_page, scope, after=after, limit=limit)

    pages = Pages(claim, deps.settings.BULK_UNLINK_BATCH_SIZE, [(None, page)])
    return drive(deps, claim, pages, send, confirm, "learners_unlinked", deadline)


def _pages_of(deps: Deps, scope: Scope, plan: Plan) -> Page:
    def page(after: UUID | None, limit: int) -> Sequence[Any]:
        of_plan = {"plan": plan.uuid, "waiting": plan.waiting}
        return _read(deps, conditions.downgrade_page, scope, after=after, limit=limit, **of_plan)

    return page


_STEPS = {Step.DOWNGRADE: downgrade, Step.UNLINK: unlink}


def _scope(deps: Deps, run: Run) -> Scope:
    return scope_of(deps.settings, run, run.as_of, run.enterprise_customer_uuid, run.id)


def _read(deps: Deps, query: Callable[..., conditions.Rows], scope: Scope, **values: Any) -> Sequence[Any]:
    return deps.database.transact(lambda session: read(session, query, scope, **values))


def _plans(session: Session, scope: Scope) -> list[Plan]:
    """Due plans and waiting plans with work, the longest expired first (prior plans before those that follow)."""
    plans = [Plan(uuid, expires, waiting=False) for uuid, expires, _ in read(session, conditions.due_plans, scope)]
    others = {row[0] for row in read(session, conditions.expired_plans, scope)} - {plan.uuid for plan in plans}
    if others:  # or the long query would find none
        plans += [
            Plan(uuid, expires, waiting=True) for uuid, expires, _ in read(session, conditions.waiting_plans, scope)
        ]
    return sorted(plans, key=lambda plan: (plan.expiration_date, plan.uuid))


def _mark_done_plans(deps: Deps, claim: Claim, scope: Scope, plans: Sequence[Plan]) -> None:
    """Mark what of these is done as license-manager does: the plan, and a row of its history."""
    if all(plan.waiting for plan in plans):
        return
    table, history, copied = deps.database.plan_history()
    row: conditions.Rows = select(*copied.values(), literal("~"), table.c.modified)
    marked: list[UUID] = []

    def write(session: Session) -> None:
        marked[:] = [found[0] for found in read(session, _done_and_unmarked, scope)]
        if not marked:
            return
        values = {"expiration_processed": True, "modified": DatabaseNow()}
        session.execute(update(SubscriptionPlan).where(SubscriptionPlan.uuid.in_(marked)).values(values))
        of_marked = row.where(type_coerce(table.c.uuid, DjangoUUID()).in_(marked))
        session.execute(insert(history).from_select([*copied, "history_type", "history_date"], of_marked))
        more = Run.plans_processed + len(marked)
        session.execute(update(Run).where(Run.id == claim.run.id).values(plans_processed=more))

    claim.record(write)
    claim.run.plans_processed += len(marked)
    deps.lifecycle.tell(deps.database, claim, marked)


def _done_and_unmarked(scope: Scope) -> conditions.Rows:
    return conditions.done_plans(scope).where(SubscriptionPlan.expiration_processed.is_(False))


def _due_and_unmarked(scope: Scope) -> conditions.Rows:
    return conditions.due_plans(scope).where(SubscriptionPlan.expiration_processed.is_(False))


def _first_candidate(scope: Scope) -> conditions.Rows:
    return conditions.unlink_candidates(scope).limit(1)


def _rehearse_downgrade(session: Session, scope: Scope) -> dict[str, int]:
    licenses = count(session, conditions.due_downgrades, scope) + count(session, conditions.waiting_downgrades, scope)
    return {"plans_processed": count(session, _due_and_unmarked, scope), "licenses_downgraded": licenses}


def _last_counts(deps: Deps, claim: Claim) -> dict[str, int]:
    """What a step counts when it is done: those whom another license protected; and all, in a rehearsal."""
    scope = _scope(deps, claim.run)

    def work(session: Session) -> dict[str, int]:
        if claim.step is Step.DOWNGRADE:
            return _rehearse_downgrade(session, scope) if claim.run.dry_run else {}
        left = read(session, _first_candidate, scope)  # or the long query would count none
        counts = {"learners_protected": count(session, conditions.protected, scope) if left else 0}
        if claim.run.dry_run:
            counts["learners_unlinked"] = count(session, conditions.due_unlinks, scope, downgraded=False)
        return counts

    claim.guard(deps.settings.LEASE_SECONDS / 3)
    return deps.database.transact(work)


def _settle(last: Callable[..., None], *arguments: Any) -> None:
    """Do a last thing that must not hide the error which led to it."""
    try:
        last(*arguments)
    except LicenseExpiryError as error:
        log.warning("the lease of the run will lapse and reconcile takes it up", error=str(error))
