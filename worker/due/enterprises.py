"""Which enterprise customers have anything due; and what else is asked of enterprises: pure selects as in `policy`."""

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, literal, select, union_all
from sqlalchemy.orm import Session, aliased

from worker.db.ledger_tables import CustomerAgreement as Agreement
from worker.db.ledger_tables import License
from worker.db.ledger_tables import SubscriptionPlan as Plan
from worker.due import conditions
from worker.due.scope import Scope
from worker.due.statements import read


def due_enterprises(session: Session, scope: Scope) -> list[UUID]:
    """The enterprise customers with anything due, in order: found by one query, or two when the first is not sure."""
    found = {customer: bool(sure) for customer, sure in read(session, perhaps_due_enterprises, scope)}
    unsure = replace(scope, unlink_enabled=frozenset(customer for customer, sure in found.items() if not sure))
    if unsure.unlink_enabled:
        found |= dict.fromkeys((customer for (customer,) in read(session, _with_unlinks, unsure)), True)
    return sorted(customer for customer, sure in found.items() if sure)


def _with_unlinks(scope: Scope) -> conditions.Rows:
    return conditions.due_unlinks(scope, Agreement.enterprise_customer_uuid, downgraded=False).distinct()


def perhaps_due_enterprises(scope: Scope) -> conditions.Rows:
    """Which enterprise customers may have anything due? (customer, whether that is sure)

    Sure is who has a due plan. Of the others, one license that may be due to be unlinked is looked for: `due_unlinks`
    has the last word on them, which has to read many licenses to know whom an e-mail protects.
    """
    plans = conditions.due_plans(scope).subquery()
    other, current = aliased(License), aliased(Plan)
    protected = select(literal(1)).join_from(other, current, current.uuid == other.subscription_plan_id)
    protected = protected.where(
        other.lms_user_id == License.lms_user_id,
        current.customer_agreement_id == Agreement.uuid,
        *conditions.current(scope, current),
    )
    to_unlink = select(literal(1)).join_from(License, Plan, Plan.uuid == License.subscription_plan_id)
    to_unlink = to_unlink.where(
        Plan.customer_agreement_id == Agreement.uuid,
        *conditions.not_unlinked(scope),
        ~conditions.any_of(protected.correlate(License, Agreement)),
    )
    listed = select(Agreement.enterprise_customer_uuid, literal(0).label("sure")).where(
        Agreement.enterprise_customer_uuid.in_(scope["customers"]),
        conditions.any_of(to_unlink.correlate(Agreement)),
    )
    either = union_all(select(plans.c.enterprise_customer_uuid, literal(1).label("sure")), listed).subquery()
    customer = either.c.enterprise_customer_uuid
    return select(customer, func.max(either.c.sure)).group_by(customer)


def known_enterprises(enterprises: frozenset[UUID]) -> conditions.Rows:
    """Which of these enterprise customers have a customer agreement?"""
    return select(Agreement.enterprise_customer_uuid).where(Agreement.enterprise_customer_uuid.in_(sorted(enterprises)))


def purged_too_early(enterprises: frozenset[UUID], unlink_after: timedelta) -> conditions.Rows:
    """Of which of these enterprises may license-manager purge e-mails before they are due to be unlinked?

    (customer, license_duration_before_purge) Its retire_old_licenses clears the e-mail and revokes the license once
    the plan has been expired for longer than that.
    """
    kept = Agreement.license_duration_before_purge
    found = known_enterprises(enterprises).add_columns(kept).where(kept <= unlink_after)
    return found.order_by(Agreement.enterprise_customer_uuid)


def plans_of(enterprises: frozenset[UUID], plan_uuids: tuple[UUID, ...]) -> conditions.Rows:
    """Which of these plans belong to one of these enterprise customers, or to any when none is named?"""
    found = conditions.plans_where(Plan.uuid.in_(plan_uuids))
    return found.where(Agreement.enterprise_customer_uuid.in_(sorted(enterprises))) if enterprises else found
