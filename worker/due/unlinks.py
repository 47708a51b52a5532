"""Which learners are due to be unlinked, and whom another license protects."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, case, or_, select
from sqlalchemy.orm import aliased

from worker.db.ledger_tables import HeldLicense
from worker.db.license_manager_tables import (
    UNLINKED_EVENT,
    CustomerAgreement as Agreement,
    License,
    LicenseEvent,
    SubscriptionPlan as Plan,
)
from worker.db.sql import Among, Mailbox, Rows
from worker.due import conditions
from worker.due.learners import KNOWN_BY, learner_among
from worker.due.scope import Scope
from worker.ledger.order import DOWNGRADE


def due_unlinks(scope: Scope, *columns: Any, downgraded: bool = True) -> Rows:
    """Which licenses' learners are to be unlinked? (Not `downgraded`: those too whose downgrade the run is to do.)"""
    if not downgraded:
        return unlinkable(scope, *columns)
    # Whatever this run is narrowed to or forced to try again: who is on the list undowngraded keeps the learner.
    held = or_(conditions.holds(scope), HeldLicense.step == DOWNGRADE.name)
    return unlinkable(scope, *columns, held=held).where(conditions.confirmed())


def unlink_page(scope: Scope, limit: int, after: UUID | None) -> Rows:
    """Which learners go into the next unlink calls? (uuid, whether it is on the held list, e-mail)"""
    due = due_unlinks(scope, License.uuid, conditions.on_held_list(), License.user_email)
    return conditions.first_after(due, limit, after)


def protected(scope: Scope, *columns: Any, by: Sequence[str] = KNOWN_BY) -> Rows:
    """Which licenses would be due to be unlinked but for another current license of the learner, known `by` these?"""
    return unlinkable(scope, *columns, protected_by=by)


def unlinkable(
    scope: Scope, *columns: Any, protected_by: Sequence[str] = (), held: ColumnElement[bool] | None = None
) -> Rows:
    """Which licenses are due to be unlinked, whether their downgrade is confirmed or not?

    With `protected_by`: those that only a current license of the learner, known by these, keeps from it. A license that
    is `held` so (as the scope has it unless given) keeps its learner linked.
    """
    theirs = Agreement.enterprise_customer_uuid.in_(scope["customers"])
    protecting = _has_current_license(scope, theirs, protected_by or KNOWN_BY)
    return unlink_candidates(scope, *columns).where(
        ~_has_held_license(scope, conditions.holds(scope) if held is None else held),
        protecting if protected_by else ~protecting,
    )


def unlink_candidates(scope: Scope, *columns: Any) -> Rows:
    """Which licenses would be due to be unlinked if none were held or protected, and all were downgraded?"""
    theirs = Agreement.enterprise_customer_uuid.in_(scope["customers"])
    of_plan, *of_license = not_unlinked(scope)
    plans = conditions.plans_where(theirs, of_plan, *conditions.asked_for(scope))
    return conditions.licenses(*columns).where(Among(License.subscription_plan_id, plans), *of_license)


def first_candidate(scope: Scope) -> Rows:
    """Is there any candidate to be unlinked at all? (one row, or none)"""
    return unlink_candidates(scope).limit(1)


def not_unlinked(scope: Scope) -> tuple[ColumnElement[bool], ...]:
    """Did the Plan at hand expire long enough ago, and is the License one of a learner who was not unlinked since?"""
    return (
        Plan.expiration_date < scope["old_before"],
        License.status.in_(conditions.LEARNER_STATUSES),
        # In a CASE, or MariaDB may read all the NULLs of its index, which are most of it, to merge them with a plan's.
        case((License.renewed_to_id.is_(None), 1), else_=0) == 1,
        Mailbox(License.user_email) != "",
        ~conditions.exists_for(LicenseEvent.license_id == License.uuid, LicenseEvent.event_name == UNLINKED_EVENT),
    )


def current(scope: Scope, plan: Any) -> tuple[ColumnElement[bool], ...]:
    """Is this plan, the class or an alias, an active one through whose dates `as_of` lies?"""
    return (plan.is_active.is_(True), plan.start_date <= scope["as_of"], plan.expiration_date >= scope["as_of"])


def _has_current_license(scope: Scope, customers: ColumnElement[bool], by: Sequence[str]) -> ColumnElement[bool]:
    """Has the learner any license, of whatever status, in an active, current plan of the same customer?

    Wide on purpose, as license-manager has it: a plan counts as current through its expiration date inclusive.
    """
    other = aliased(License)
    plans = conditions.plans_where(customers, *current(scope, Plan))
    return learner_among(other, Among(other.subscription_plan_id, plans), by)


def _has_held_license(scope: Scope, how: ColumnElement[bool]) -> ColumnElement[bool]:
    """Is this license, or another one of the same learner and customer, held so? A held license keeps its learner."""
    other = aliased(License)
    entries = select(HeldLicense.license_uuid).where(HeldLicense.enterprise_customer_uuid.in_(scope["customers"]), how)
    return learner_among(other, Among(other.uuid, entries))
