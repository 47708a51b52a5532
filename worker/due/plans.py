"""Finds the plans that are due, done, or waiting for their renewals."""

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
    """Select the expired, unprocessed plans that can be worked on now: (uuid, expiration_date, customer).

    Their renewal chain has ended: its last plan has expired and has no renewal row. A plan that has only held licenses
    left waits until these may be tried again.
    """
    waits = licenses_of(Plan.uuid).where(~sent(scope), held(scope))
    ended = Plan.uuid.in_(plans_whose_chain_ended(scope))
    return plans_where(ended, or_(any_of(workable(scope)), ~any_of(waits)), columns=COLUMNS)


def plans_of_run(scope: Scope) -> Rows:
    """Select the due plans: columns as in `due_plans`, and whether any of their licenses can be downgraded now."""
    return due_plans(scope).add_columns(case((any_of(workable(scope)), 1), else_=0))


def workable(scope: Scope) -> Rows:
    """Select the UUIDs of the outer query's Plan's licenses that can be downgraded now: not sent, not held."""
    return licenses_of(Plan.uuid).where(~sent(scope), ~held(scope))


def due_and_unmarked(scope: Scope) -> Rows:
    """Select the due plans that are not marked as processed; only a forced run finds others. As `due_plans`."""
    return due_plans(scope).where(~marked())


def done_plans(scope: Scope) -> Rows:
    """Select the due plans whose licenses are all confirmed by the LMS: (uuid, expiration_date, customer)."""
    return due_plans(scope).where(*still_done(scope))


def done_and_unmarked(scope: Scope) -> Rows:
    """Select the done plans that are not marked as processed. As `done_plans`."""
    return done_plans(scope).where(~marked())


def still_done(scope: Scope) -> tuple[ColumnElement[bool], ...]:
    """Conditions: the Plan has expired, and the LMS has confirmed all of its licenses."""
    return Plan.expiration_date <= scope["as_of"], ~any_of(licenses_of(Plan.uuid).where(~sent(scope)))


def plans_waiting_for_renewal(scope: Scope) -> Rows:
    """Select the expired plans that wait because their renewal chain has not ended.

    Columns as in `due_plans`, and since when an unprocessed renewal of the plan is overdue (NULL if none is).
    """
    waits = Plan.uuid.not_in(plans_whose_chain_ended(scope))
    since = select(Renewal.effective_date).where(
        Renewal.prior_subscription_plan_id == Plan.uuid, stale(scope), can_be_read(Renewal.effective_date)
    )
    columns = (*COLUMNS, since.scalar_subquery().label("waiting_since"))
    return plans_where(*to_process(scope).values(), ~marked(), waits, columns=columns)


def plans_without_date(scope: Scope) -> Rows:
    """Select the plans whose expiration date cannot be read: (uuid, customer). No night processes them."""
    past = Plan.expiration_date <= scope["as_of"]
    columns = (Plan.uuid, Agreement.enterprise_customer_uuid)
    return plans_where(past, not_(can_be_read(Plan.expiration_date)), columns=columns)


def plans_whose_chain_ended(scope: Scope, *of: ColumnElement[bool]) -> Rows:
    """Select the expired plans whose renewal chain has ended. `of` are conditions that narrow the plans.

    Follows each plan's renewals forward; the chain has ended if its last plan has expired. UNION, not UNION ALL, ends
    the recursion on a cycle of renewals; a cycle has no last plan and is never due. If the request names plans and
    forces them, overdue unprocessed renewals (`stale`) are ignored.
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
    """Condition: the Renewal was due to be processed before now and was not; possibly it never will be.

    Since 2025 license-manager creates such rows for self-service trials; none of its jobs processes them.
    """
    return and_(Renewal.processed.is_(False), Renewal.effective_date <= scope["as_of"])
