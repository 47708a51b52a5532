"""Which plans are due, done, or waiting for their renewals."""

from sqlalchemy import ColumnElement, and_, case, exists, not_, or_, select, true
from sqlalchemy.orm import aliased

from worker.db.license_manager_tables import (
    CustomerAgreement as Agreement,
    SubscriptionPlan as Plan,
    SubscriptionPlanRenewal as Renewal,
)
from worker.db.sql import Rows, any_of
from worker.due.conditions import can_be_read, held, licenses_of, plans_where, sent, to_process
from worker.due.scope import Scope
from worker.license_manager.marks import marked

COLUMNS = (Plan.uuid, Plan.expiration_date, Agreement.enterprise_customer_uuid)


def due_plans(scope: Scope) -> Rows:
    """Which expired plans are still to be processed, and can be worked on now? (uuid, expiration_date, customer)

    Their renewal chain has ended: its last plan has expired and has no renewal row. A plan of which nothing but
    held licenses is left waits until these may be tried again.
    """
    waits = licenses_of(Plan.uuid).where(~sent(scope), held(scope))
    ended = Plan.uuid.in_(plans_whose_chain_ended(scope))
    return plans_where(ended, or_(any_of(workable(scope)), ~any_of(waits)), columns=COLUMNS)


def plans_of_run(scope: Scope) -> Rows:
    """The due plans (as `due_plans`, and whether a license of theirs is to be downgraded just now)."""
    return due_plans(scope).add_columns(case((any_of(workable(scope)), 1), else_=0))


def workable(scope: Scope) -> Rows:
    """The UUIDs of the licenses of the Plan at hand that are to be downgraded just now."""
    return licenses_of(Plan.uuid).where(~sent(scope), ~held(scope))


def due_and_unmarked(scope: Scope) -> Rows:
    """Which due plans are not marked as processed? (Only a forced run meets others; as `due_plans`)"""
    return due_plans(scope).where(~marked())


def done_plans(scope: Scope) -> Rows:
    """Which due plans have no license left that the LMS has not confirmed? (uuid, expiration_date, customer)"""
    return due_plans(scope).where(*still_done(scope))


def done_and_unmarked(scope: Scope) -> Rows:
    """Which done plans are not marked as processed? (as `done_plans`)"""
    return done_plans(scope).where(~marked())


def still_done(scope: Scope) -> tuple[ColumnElement[bool], ...]:
    """Has the Plan at hand expired, and does it have no license that the LMS has not confirmed?"""
    return Plan.expiration_date <= scope["as_of"], ~any_of(licenses_of(Plan.uuid).where(~sent(scope)))


def plans_waiting_for_renewal(scope: Scope) -> Rows:
    """Which expired plans does nobody process yet, because their renewal chain has not ended?

    (as `due_plans`, and when its renewal was to be processed, where that is past and was not done)
    """
    waits = Plan.uuid.not_in(plans_whose_chain_ended(scope))
    since = select(Renewal.effective_date).where(
        Renewal.prior_subscription_plan_id == Plan.uuid, stale(scope), can_be_read(Renewal.effective_date)
    )
    columns = (*COLUMNS, since.scalar_subquery().label("waiting_since"))
    return plans_where(*to_process(scope).values(), ~marked(), waits, columns=columns)


def plans_without_date(scope: Scope) -> Rows:
    """Which plans have an expiration date that cannot be read, so that no night does anything about them?

    (uuid, customer)
    """
    past = Plan.expiration_date <= scope["as_of"]
    columns = (Plan.uuid, Agreement.enterprise_customer_uuid)
    return plans_where(past, not_(can_be_read(Plan.expiration_date)), columns=columns)


def plans_whose_chain_ended(scope: Scope, *of: ColumnElement[bool]) -> Rows:
    """Walk each expired plan (`of` narrows to some) forward along its renewals; keep it when the last has expired.

    UNION, not UNION ALL, so that a ring of renewals ends the walk. A ring has no last plan and is never due. When plans
    are named and forced, a renewal that should have been processed by now and was not counts for nothing.
    """
    walk = (
        select(Plan.uuid.label("plan"), Plan.uuid.label("reached"))
        .join(Agreement, Agreement.uuid == Plan.customer_agreement_id)
        .where(*to_process(scope).values(), *of)
        .cte("renewal_chain", recursive=True)
    )
    next_plan = Renewal.renewed_subscription_plan_id
    counts = not_(stale(scope)) if scope.force and scope.plan_uuids is not None else true()
    following = and_(Renewal.prior_subscription_plan_id == walk.c.reached, next_plan.is_not(None), counts)
    further = select(walk.c.plan, next_plan).join_from(walk, Renewal, following)
    walk = walk.union(further)
    last = aliased(Plan)
    renewed = exists().where(Renewal.prior_subscription_plan_id == last.uuid, counts)
    ended = select(walk.c.plan).join(last, last.uuid == walk.c.reached)
    return ended.where(last.expiration_date <= scope["as_of"], ~renewed)


def stale(scope: Scope) -> ColumnElement[bool]:
    """Should the Renewal at hand have been processed by now, and was not? Perhaps nobody ever will.

    Since 2025 license-manager makes such rows for self-service trials; no job of its own processes them.
    """
    return and_(Renewal.processed.is_(False), Renewal.effective_date <= scope["as_of"])
