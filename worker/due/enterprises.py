"""Finds the enterprises with work due, and looks enterprises and plans up by id."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from sqlalchemy import func, literal, select, union_all
from sqlalchemy.orm import Session, aliased

from worker.db.license_manager_tables import CustomerAgreement as Agreement, License, SubscriptionPlan as Plan
from worker.db.sql import OneOf, Rows, any_of
from worker.due import conditions, plans, unlinks
from worker.due.scope import Scope
from worker.due.statements import fetch


def find_due_enterprises(session: Session, scope: Scope) -> list[UUID]:
    """Return the UUIDs of the enterprise customers with work due, sorted.

    Runs one query, and a second one for the enterprises that the first could not decide.
    """
    found = {customer: bool(sure) for customer, sure in fetch(session, perhaps_due_enterprises, scope)}
    unsure = replace(scope, unlink_enabled=frozenset(customer for customer, sure in found.items() if not sure))
    if unsure.unlink_enabled:
        found |= dict.fromkeys((customer for (customer,) in fetch(session, _with_unlinks, unsure)), True)
    return sorted(customer for customer, sure in found.items() if sure)


def _with_unlinks(scope: Scope) -> Rows:
    return unlinks.due_unlinks(scope, Agreement.enterprise_customer_uuid, downgraded=False).distinct()


def perhaps_due_enterprises(scope: Scope) -> Rows:
    """Select the enterprise customers that may have work due: (customer, whether that is certain).

    An enterprise with a due plan is certain. Any other is selected if one of its licenses may be due to be unlinked.
    `due_unlinks` then decides: it reads many licenses, because a learner can be protected by e-mail address.
    """
    due = plans.due_plans(scope).subquery()
    other, current = aliased(License), aliased(Plan)
    of_current = current.uuid == other.subscription_plan_id
    protected = (
        select(literal(1))
        .join_from(other, current, of_current)
        .where(
            other.lms_user_id == License.lms_user_id,
            current.customer_agreement_id == Agreement.uuid,
            *unlinks.current(scope, current),
        )
    )
    to_unlink = select(literal(1)).join_from(License, Plan, Plan.uuid == License.subscription_plan_id)
    to_unlink = to_unlink.where(
        Plan.customer_agreement_id == Agreement.uuid,
        *unlinks.not_unlinked(scope).values(),
        ~any_of(protected.correlate(License, Agreement)),
    )
    customer = Agreement.enterprise_customer_uuid
    listed = select(customer, literal(0).label("sure")).where(
        scope.lists("customers", customer), any_of(to_unlink.correlate(Agreement))
    )
    either = union_all(select(due.c.enterprise_customer_uuid, literal(1).label("sure")), listed).subquery()
    found = either.c.enterprise_customer_uuid
    return select(found, func.max(either.c.sure)).group_by(found)


def names_of(session: Session, enterprises: Iterable[UUID]) -> dict[UUID, str]:
    """Return the names of these enterprise customers from license-manager, by UUID; without those that have none."""
    customer, name = Agreement.enterprise_customer_uuid, Agreement.enterprise_customer_name
    named = select(customer, name).where(OneOf(customer, "enterprises", set(enterprises)))
    return {enterprise: called for enterprise, called in session.execute(named) if called}


def name_of(session: Session, enterprise: UUID) -> str:
    """Return the name of this enterprise customer, or "" if it has none."""
    return names_of(session, [enterprise]).get(enterprise, "")


def known_enterprises(enterprises: frozenset[UUID]) -> Rows:
    """Which of these enterprise customers have a customer agreement?"""
    customer = Agreement.enterprise_customer_uuid
    return select(customer).where(OneOf(customer, "enterprises", sorted(enterprises)))


def purged_too_early(enterprises: frozenset[UUID], unlink_after: timedelta) -> Rows:
    """Select those of these enterprises that license-manager may purge before their learners are due to be unlinked.

    Rows are (customer, license_duration_before_purge). license-manager's retire_old_licenses clears the e-mail address
    and revokes the license once its plan has been expired for longer than that.
    """
    kept = Agreement.license_duration_before_purge
    found = known_enterprises(enterprises).add_columns(kept).where(kept <= unlink_after)
    return found.order_by(Agreement.enterprise_customer_uuid)


def plans_of(enterprises: frozenset[UUID], plan_uuids: tuple[UUID, ...]) -> Rows:
    """Select those of these plans that belong to one of these enterprises, or to any if none is given."""
    found = conditions.plans_where(OneOf(Plan.uuid, "plans", plan_uuids))
    theirs = OneOf(Agreement.enterprise_customer_uuid, "enterprises", sorted(enterprises))
    return found.where(theirs) if enterprises else found
