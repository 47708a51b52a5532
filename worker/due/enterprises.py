"""Finds the enterprises with work due, and looks enterprises and plans up by id."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

from sqlalchemy import literal, select
from sqlalchemy.orm import Session, aliased

from worker.db.license_manager_tables import CustomerAgreement as Agreement, License, SubscriptionPlan as Plan
from worker.db.sql import OneOf, Rows, any_of
from worker.due import conditions, plans, unlinks
from worker.due.scope import Scope
from worker.due.statements import fetch


def find_due_enterprises(session: Session, scope: Scope) -> list[UUID]:
    """Return the UUIDs of the enterprise customers with work due, sorted.

    The enterprises without a due plan are searched for learners to unlink. The first of two queries decides for most;
    the second reads all licenses of the enterprises that the first has left.
    """
    due = {customer for _, _, customer in fetch(session, plans.due_plans, scope)}
    rest = replace(scope, unlink_enabled=scope.unlink_enabled - due)
    for question in (perhaps_to_unlink, _to_unlink):
        found = fetch(session, question, rest) if rest.unlink_enabled else ()
        rest = replace(rest, unlink_enabled=frozenset(customer for (customer,) in found))
    return sorted(due | rest.unlink_enabled)


def perhaps_to_unlink(scope: Scope) -> Rows:
    """Select the enterprise customers that may have learners due to be unlinked; `due_unlinks` then decides.

    Only a current license with the same LMS user id protects here. One with the same e-mail address may, too. So may
    a held license.
    """
    other, current = aliased(License), aliased(Plan)
    protected = (
        select(literal(1))
        .join_from(other, current, current.uuid == other.subscription_plan_id)
        .where(
            other.lms_user_id == License.lms_user_id,
            current.customer_agreement_id == Plan.customer_agreement_id,
            *unlinks.current(scope, current),
        )
    )
    candidates = unlinks.unlink_candidates(scope, Agreement.enterprise_customer_uuid)
    return candidates.where(~any_of(protected.correlate(License, Plan))).distinct()


def _to_unlink(scope: Scope) -> Rows:
    return unlinks.due_unlinks(scope, Agreement.enterprise_customer_uuid, downgraded=False).distinct()


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
