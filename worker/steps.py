"""The two steps of a run as plain functions, and the one attempt at a step that leaves the run telling the truth."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from sqlalchemy import func, insert, literal, select, type_coerce, update
from sqlalchemy.orm import Session

from worker import ledger, policy, records
from worker.batches import Batch, Plan, drive, pages
from worker.columns import DatabaseNow, DjangoUUID, UTCDateTime
from worker.deps import Deps
from worker.errors import LeaseLost, LicenseExpiryError, NotClaimed, RunRefused, Stopping, Unavailable
from worker.ledger import Claim, Step
from worker.logs import get_logger
from worker.models import DOWNGRADED_EVENT, UNLINKED_EVENT, LicenseEvent, Run, SubscriptionPlan
from worker.scope import Scope, scope_of

log = get_logger(__name__)


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
            claim = ledger.claim(deps.database, run_id, enterprise, step, owner, lease, deps.calls)
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
        done = _STEPS[claim.step](deps, claim, time.monotonic() + deps.settings.TASK_TIME_LIMIT_SECONDS / 2)
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
    run = deps.database.transact(lambda session: session.get_one(Run, claim.run.id))
    counts = {name: getattr(run, name) for name in records.COUNTS}
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
    size = deps.settings.LICENSE_EXPIRATION_BATCH_SIZE

    def batches() -> Iterator[Batch]:
        for plan in deps.database.transact(lambda session: _plans(session, scope)):
            page = partial(policy.downgrade_page, scope, plan.uuid, plan.waiting, size)
            yield from pages(deps.database, size, page, plan)

    def send(batch: Batch) -> None:
        assert batch.plan is not None  # noqa: S101, for the type checker
        date = policy.ignore_enrollments_modified_after(batch.plan.expiration_date, scope.as_of)
        deps.lms.downgrade(batch.licenses, date, claim.guard)

    def confirm(session: Session, batch: Batch) -> None:
        if batch.plan is not None and batch.plan.waiting:
            _insert_events(session, batch.licenses, DOWNGRADED_EVENT)
        else:
            records.confirm_downgrades(session, claim.run, batch.licenses)

    try:
        done = drive(deps, claim, batches(), send, confirm, "licenses_downgraded", deadline)
    except (Unavailable, RunRefused):
        _settle(_mark_done_plans, deps, claim, scope)  # a plan that is done is done, whatever befell others
        raise
    _mark_done_plans(deps, claim, scope)
    return done


def unlink(deps: Deps, claim: Claim, deadline: float) -> bool:
    """Unlink the learners who are due in the claim's run.

    Returns False when `deadline` (of time.monotonic) came first. Raises Unavailable, RunRefused, LeaseLost.
    """
    scope = _scope(deps, claim.run)
    if claim.run.dry_run:
        return True
    size = deps.settings.BULK_UNLINK_BATCH_SIZE

    def send(batch: Batch) -> None:
        emails = list(dict.fromkeys(row[2] for row in batch.rows))
        deps.lms.unlink(claim.run.enterprise_customer_uuid, emails, claim.guard)

    def confirm(session: Session, batch: Batch) -> None:
        _insert_events(session, batch.licenses, UNLINKED_EVENT)

    batches = pages(deps.database, size, partial(policy.unlink_page, scope, size))
    return drive(deps, claim, batches, send, confirm, "learners_unlinked", deadline)


_STEPS = {Step.DOWNGRADE: downgrade, Step.UNLINK: unlink}


def _scope(deps: Deps, run: Run) -> Scope:
    return scope_of(deps.settings, run, run.as_of, run.enterprise_customer_uuid, run.id)


def _plans(session: Session, scope: Scope) -> list[Plan]:
    """Due plans and waiting plans with work, the longest expired first (prior plans before those that follow)."""
    plans = [
        Plan(uuid, expiration_date, waiting)
        for query, waiting in ((policy.due_plans(scope), False), (policy.waiting_plans(scope), True))
        for uuid, expiration_date, _ in session.execute(query)
    ]
    return sorted(plans, key=lambda plan: (plan.expiration_date, plan.uuid))


def _mark_done_plans(deps: Deps, claim: Claim, scope: Scope) -> None:
    """Mark the due plans with nothing left to confirm as license-manager does: the plan, and a row of its history."""
    unmarked = policy.done_plans(scope).where(SubscriptionPlan.expiration_processed.is_(False))
    if not deps.database.transact(lambda session: session.execute(unmarked).first()):
        return
    plan, history, copied = deps.database.plan_history()
    plans: list[UUID] = []

    def write(session: Session) -> None:
        plans[:] = [row[0] for row in session.execute(unmarked)]  # once more: a plan may have been extended since
        if not plans:
            return
        now = session.execute(select(DatabaseNow())).scalar_one()
        marked = {"expiration_processed": True, "modified": now}
        session.execute(update(SubscriptionPlan).where(SubscriptionPlan.uuid.in_(plans)).values(marked))
        row: policy.Rows = select(*copied.values(), literal("~"), literal(now, UTCDateTime()))
        row = row.where(type_coerce(plan.c.uuid, DjangoUUID()).in_(plans))
        session.execute(insert(history).from_select([*copied, "history_type", "history_date"], row))
        more = Run.plans_processed + len(plans)
        session.execute(update(Run).where(Run.id == claim.run.id).values(plans_processed=more))

    claim.record(write)
    deps.lifecycle.tell(deps.database, claim, plans)


def _rehearse_downgrade(session: Session, scope: Scope) -> dict[str, int]:
    licenses = _count(session, policy.due_downgrades(scope)) + _count(session, policy.waiting_downgrades(scope))
    unmarked = policy.due_plans(scope).where(SubscriptionPlan.expiration_processed.is_(False))
    return {"plans_processed": _count(session, unmarked), "licenses_downgraded": licenses}


def _last_counts(deps: Deps, claim: Claim) -> dict[str, int]:
    """What a step counts when it is done: those whom another license protected; and all, in a rehearsal."""
    scope = _scope(deps, claim.run)

    def work(session: Session) -> dict[str, int]:
        if claim.step is Step.DOWNGRADE:
            return _rehearse_downgrade(session, scope) if claim.run.dry_run else {}
        counts = {"learners_protected": _count(session, policy.protected(scope))}
        if claim.run.dry_run:
            counts["learners_unlinked"] = _count(session, policy.due_unlinks(scope, downgraded=False))
        return counts

    claim.guard()
    return deps.database.transact(work)


def _insert_events(session: Session, licenses: Sequence[UUID], name: str) -> None:
    now = session.execute(select(DatabaseNow())).scalar_one()
    rows = [{"license_id": uuid, "event_name": name, "created": now, "modified": now} for uuid in licenses]
    session.execute(insert(LicenseEvent), rows)


def _count(session: Session, query: policy.Rows) -> int:
    return session.execute(select(func.count()).select_from(query.subquery())).scalar_one()


def _settle(last: Callable[..., None], *arguments: Any) -> None:
    """Do a last thing that must not hide the error which led to it."""
    try:
        last(*arguments)
    except LicenseExpiryError as error:
        log.warning("the lease of the run will lapse and reconcile takes it up", error=str(error))
