"""Which learners are due to be unlinked, and whom another license protects."""

from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, String, bindparam, case, func, or_, select

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
from worker.due.learners import Which, is_learner_of
from worker.due.scope import Scope
from worker.ledger.order import DOWNGRADE


def due_unlinks(scope: Scope, *columns: Any, downgraded: bool = True) -> Rows:
    """Which licenses' learners are to be unlinked? (Not `downgraded`: those too whose downgrade the run is to do.)"""
    if not downgraded:
        return unlinkable(scope, *columns)
    return unlinkable(scope, *columns, held=keeping_holds(scope)).where(conditions.confirmed(scope))


def unlink_page(scope: Scope, limit: int, after: UUID | None) -> Rows:
    """Which learners go into the next unlink calls? (uuid, whether it is on the held list, user_email, lms_user_id)"""
    return conditions.first_after(due_unlinks(scope, *_sent_columns()), limit, after)


def still_to_unlink(scope: Scope, licenses: Sequence[UUID]) -> Rows:
    """The learners of which of these licenses are still to be unlinked? (as `unlink_page`)"""
    return conditions.among(due_unlinks(scope, *_sent_columns()), licenses)


def address_is_protected(scope: Scope, address: str, folded: str) -> Rows:
    """Does a license with this address keep its learner linked, because it or another of theirs is current or held?

    (one row, or none) The address is the one that the LMS has, which need not be that of the license at hand. Without
    capitals it is `folded`: SQLite folds A to Z alone, and other databases every letter.
    """
    theirs = scope.lists("customers", Agreement.enterprise_customer_uuid)
    return licenses_of_address(scope, address, folded).where(theirs, _kept(scope, keeping_holds(scope))).limit(1)


def licenses_of_address(_: Scope, address: str, folded: str) -> Rows:
    """Which licenses have this address, given as to `address_is_protected`?"""
    given = [Mailbox(bindparam(name, None, String())) for name in ("address", "folded")]
    return conditions.licenses().where(Mailbox(License.user_email).in_(given))


def _sent_columns() -> tuple[Any, ...]:
    return License.uuid, conditions.on_held_list(), License.user_email, License.lms_user_id


def any_hold(scope: Scope) -> Rows:
    """Does any entry of the held list count? (one row, or none)"""
    return select(HeldLicense.license_uuid).where(conditions.holds(scope)).limit(1)


def protected(scope: Scope, *columns: Any) -> Rows:
    """Which licenses would be due to be unlinked but for another current license of the learner?"""
    return unlinkable(scope, *columns, only_protected=True)


def unlinkable(
    scope: Scope, *columns: Any, only_protected: bool = False, held: ColumnElement[bool] | None = None
) -> Rows:
    """Which licenses are due to be unlinked, whether their downgrade is confirmed or not?

    With `only_protected`: those that only a current license of the learner keeps from it. A license that
    is `held` so (as the scope has it unless given) keeps its learner linked.
    """
    candidates, how = unlink_candidates(scope, *columns), conditions.holds(scope) if held is None else held
    if not only_protected:
        return candidates.where(~_kept(scope, how))
    (is_held, protects), customers = keeping(scope, how).values(), agreements(scope)
    return candidates.where(~is_learner_of([is_held], customers), is_learner_of([protects], customers))


def unlink_candidates(scope: Scope, *columns: Any) -> Rows:
    """Which licenses would be due to be unlinked if none were held or protected, and all were downgraded?"""
    theirs = scope.lists("customers", Agreement.enterprise_customer_uuid)
    of_plan, *of_license = not_unlinked(scope).values()
    plans = conditions.plans_where(theirs, of_plan, *conditions.asked_for(scope).values())
    return conditions.licenses(*columns).where(Among(License.subscription_plan_id, plans), *of_license)


def first_candidate(scope: Scope) -> Rows:
    """Is there any candidate to be unlinked at all? (one row, or none)"""
    return unlink_candidates(scope).limit(1)


def not_unlinked(scope: Scope) -> conditions.Rules:
    """Did the Plan at hand expire long enough ago, and is the License one of a learner who was not unlinked since?

    Of one with an e-mail address: nobody can be unlinked without.
    """
    return {
        "age": Plan.expiration_date < scope["old_before"],
        "date": conditions.can_be_read(Plan.expiration_date),
        "status": License.status.in_(conditions.LEARNER_STATUSES),
        # In a CASE, or MariaDB may read all the NULLs of its index, which are most of it, to merge them with a plan's.
        "renewed": case((License.renewed_to_id.is_(None), 1), else_=0) == 1,
        "email": func.coalesce(Mailbox(License.user_email), "") != "",
        "unlinked": ~unlinked(),
    }


def unlinked() -> ColumnElement[bool]:
    """Was the learner of the License unlinked since its Plan expired, as that date stands today?

    If another learner was given the license since, the event is not about them.
    """
    return conditions.exists_for(
        LicenseEvent.license_id == License.uuid,
        LicenseEvent.event_name == UNLINKED_EVENT,
        LicenseEvent.created >= Plan.expiration_date,
        or_(License.assigned_date.is_(None), LicenseEvent.created >= License.assigned_date),
    )


def current(scope: Scope, plan: Any) -> tuple[ColumnElement[bool], ...]:
    """Is this plan, the class or an alias, an active one that is current just now, or begins within a day?

    Wide on purpose: license-manager counts a plan as current through its expiration date inclusive, and a night may lie
    hours before the day on which the next plan begins.
    """
    return (plan.is_active.is_(True), plan.start_date <= scope["soon"], plan.expiration_date >= scope["now"])


def _kept(scope: Scope, how: ColumnElement[bool]) -> ColumnElement[bool]:
    """Is the address at hand that of a learner of a license that is held so, or is in a current plan?

    Both at once: all licenses of the customers are read for each answer.
    """
    return is_learner_of([*keeping(scope, how).values()], agreements(scope))


def keeping(scope: Scope, held: ColumnElement[bool]) -> dict[str, Which]:
    """Which licenses keep their learner linked: those that are `held` so, and those in a current plan."""
    return {"held": partial(_is_held, held), "protected": partial(_in_current_plan, scope)}


def _in_current_plan(scope: Scope, _: Any, plan: Any) -> Sequence[ColumnElement[bool]]:
    """A license of whatever status: wide on purpose, as license-manager has it."""
    return (plan.customer_agreement_id.in_(agreements(scope)), *current(scope, plan))


def keeping_holds(scope: Scope) -> ColumnElement[bool]:
    """Whatever this run is narrowed to or forced to try again: who is on the list undowngraded keeps the learner."""
    return or_(conditions.holds(scope), HeldLicense.step == DOWNGRADE.name)


def _is_held(how: ColumnElement[bool], license: Any, _: Any) -> Sequence[ColumnElement[bool]]:
    """A license that is held so keeps its learner, under the customer that its plan belongs to now.

    Of whatever customer: few are held, and MariaDB would else read all licenses of the customers to find them.
    """
    return (Among(license.uuid, select(HeldLicense.license_uuid).where(how)),)


def agreements(scope: Scope) -> Rows:
    """The agreements of the customers whose learners may be unlinked."""
    return select(Agreement.uuid).where(scope.lists("customers", Agreement.enterprise_customer_uuid))
