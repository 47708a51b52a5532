"""Which plans are due, done, or waiting for their renewals."""

from sqlalchemy import and_, exists, or_, select
from sqlalchemy.orm import aliased

from worker.db.license_manager_tables import (
    CustomerAgreement as Agreement,
    SubscriptionPlan as Plan,
    SubscriptionPlanRenewal as Renewal,
)
from worker.db.sql import Rows, any_of
from worker.due.conditions import held, licenses_of, plans_where, sent, to_process
from worker.due.scope import Scope

COLUMNS = (Plan.uuid, Plan.expiration_date, Agreement.enterprise_customer_uuid)


def due_plans(scope: Scope) -> Rows:
    """Which expired plans are still to be processed, and can be worked on now? (uuid, expiration_date, customer)

    Their renewal chain has ended: its last plan has expired and has no renewal row. A plan of which nothing but
    held licenses is left waits until these may be tried again.
    """
    waits = licenses_of(Plan.uuid).where(~sent(scope), held(scope))
    workable = licenses_of(Plan.uuid).where(~sent(scope), ~held(scope))
    ended = Plan.uuid.in_(plans_whose_chain_ended(scope))
    return plans_where(ended, or_(any_of(workable), ~any_of(waits)), columns=COLUMNS)


def due_and_unmarked(scope: Scope) -> Rows:
    """Which due plans are not marked as processed? (Only a forced run meets others; as `due_plans`)"""
    return due_plans(scope).where(Plan.expiration_processed.is_(False))


def done_plans(scope: Scope) -> Rows:
    """Which due plans have no license left that the LMS has not confirmed? (uuid, expiration_date, customer)"""
    return due_plans(scope).where(~any_of(licenses_of(Plan.uuid).where(~sent(scope))))


def done_and_unmarked(scope: Scope) -> Rows:
    """Which done plans are not marked as processed? (as `done_plans`)"""
    return done_plans(scope).where(Plan.expiration_processed.is_(False))


def expired_plans(scope: Scope) -> Rows:
    """Which plans have expired and are not processed, whether they are due or wait? (uuid)"""
    return plans_where(*to_process(scope))


def plans_waiting_for_renewal(scope: Scope) -> Rows:
    """Which expired plans does nobody process yet, because their renewal chain has not ended? (as `due_plans`)"""
    waits = Plan.uuid.not_in(plans_whose_chain_ended(scope))
    return plans_where(*to_process(scope), Plan.expiration_processed.is_(False), waits, columns=COLUMNS)


def plans_whose_chain_ended(scope: Scope) -> Rows:
    """Walk each expired plan forward along its renewals; keep it when the last plan has expired for good.

    UNION, not UNION ALL, so that a ring of renewals ends the walk. A ring has no last plan and is never due.
    """
    walk = (
        select(Plan.uuid.label("plan"), Plan.uuid.label("reached"))
        .join(Agreement, Agreement.uuid == Plan.customer_agreement_id)
        .where(*to_process(scope))
        .cte("renewal_chain", recursive=True)
    )
    next_plan = Renewal.renewed_subscription_plan_id
    following = and_(Renewal.prior_subscription_plan_id == walk.c.reached, next_plan.is_not(None))
    further = select(walk.c.plan, next_plan).join_from(walk, Renewal, following)
    walk = walk.union(further)
    last = aliased(Plan)
    renewed = exists().where(Renewal.prior_subscription_plan_id == last.uuid)
    ended = select(walk.c.plan).join(last, last.uuid == walk.c.reached)
    return ended.where(last.expiration_date <= scope["as_of"], ~renewed)
