"""Finds the learners due to be unlinked, and those that another license protects."""

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
    """Select the licenses whose learners are due to be unlinked.

    With `downgraded` false, includes those whose downgrade is not confirmed yet: the same run will do it first.
    """
    if not downgraded:
        return unlinkable(scope, *columns)
    return unlinkable(scope, *columns, held=keeping_holds(scope)).where(conditions.confirmed(scope))


def unlink_page(scope: Scope, limit: int, after: UUID | None) -> Rows:
    """Select the learners of the next unlink calls: at most `limit`, after the license `after`.

    Rows are (license uuid, whether it is on the held list, user_email, lms_user_id).
    """
    return conditions.first_after(due_unlinks(scope, *_sent_columns()), limit, after)


def still_to_unlink(scope: Scope, licenses: Sequence[UUID]) -> Rows:
    """Select those of these licenses whose learners are still due to be unlinked. Rows as in `unlink_page`."""
    return conditions.among(due_unlinks(scope, *_sent_columns()), licenses)


def address_is_protected(scope: Scope, address: str, folded: str) -> Rows:
    """Select one row if a license with this address keeps its learner linked, else none.

    It does if it, or another license of the same learner, is current or held. The address is the LMS's, which may
    differ from the license's. `folded` is the address in lower case, because SQLite lowers only A to Z.
    """
    theirs = scope.lists("customers", Agreement.enterprise_customer_uuid)
    return licenses_of_address(scope, address, folded).where(theirs, _kept(scope, keeping_holds(scope))).limit(1)


def licenses_of_address(_: Scope, address: str, folded: str) -> Rows:
    """Select the licenses with this address. Arguments as in `address_is_protected`."""
    given = [Mailbox(bindparam(name, None, String())) for name in ("address", "folded")]
    return conditions.licenses().where(Mailbox(License.user_email).in_(given))


def _sent_columns() -> tuple[Any, ...]:
    return License.uuid, conditions.on_held_list(), License.user_email, License.lms_user_id


def any_hold(scope: Scope) -> Rows:
    """Select one row if any entry of the held list counts, else none."""
    return select(HeldLicense.license_uuid).where(conditions.holds(scope)).limit(1)


def protected(scope: Scope, *columns: Any) -> Rows:
    """Select the licenses that are not unlinked only because the learner has another current license."""
    return unlinkable(scope, *columns, only_protected=True)


def unlinkable(
    scope: Scope, *columns: Any, only_protected: bool = False, held: ColumnElement[bool] | None = None
) -> Rows:
    """Select the licenses due to be unlinked, whether or not their downgrade is confirmed.

    With `only_protected`, select instead those that only a current license of the learner keeps linked. `held` is the
    condition under which a held license keeps its learner linked; by default the scope's.
    """
    candidates, how = unlink_candidates(scope, *columns), conditions.holds(scope) if held is None else held
    if not only_protected:
        return candidates.where(~_kept(scope, how))
    (is_held, protects), customers = keeping(scope, how).values(), agreements(scope)
    return candidates.where(~is_learner_of([is_held], customers), is_learner_of([protects], customers))


def unlink_candidates(scope: Scope, *columns: Any) -> Rows:
    """Select the licenses that would be due to be unlinked if all were downgraded and none held or protected."""
    theirs = scope.lists("customers", Agreement.enterprise_customer_uuid)
    of_plan, *of_license = not_unlinked(scope).values()
    plans = conditions.plans_where(theirs, of_plan, *conditions.asked_for(scope).values())
    return conditions.licenses(*columns).where(Among(License.subscription_plan_id, plans), *of_license)


def first_candidate(scope: Scope) -> Rows:
    """Select one row if there is any candidate to be unlinked, else none."""
    return unlink_candidates(scope).limit(1)


def not_unlinked(scope: Scope) -> conditions.Rules:
    """Conditions: the Plan expired UNLINK_AFTER_DAYS ago, and the License's learner was not unlinked since.

    The License must have an e-mail address: the LMS unlinks by address.
    """
    return {
        "age": Plan.expiration_date < scope["old_before"],
        "date": conditions.can_be_read(Plan.expiration_date),
        "status": License.status.in_(conditions.LEARNER_STATUSES),
        # In a CASE: else MariaDB may merge this column's index, which is mostly NULL, with the plan's.
        "renewed": case((License.renewed_to_id.is_(None), 1), else_=0) == 1,
        "email": func.coalesce(Mailbox(License.user_email), "") != "",
        "unlinked": ~unlinked(),
    }


def unlinked() -> ColumnElement[bool]:
    """Condition: the License's learner was unlinked after its Plan's present expiration date.

    An event from before the license was assigned to its present learner does not count.
    """
    return conditions.exists_for(
        LicenseEvent.license_id == License.uuid,
        LicenseEvent.event_name == UNLINKED_EVENT,
        LicenseEvent.created >= Plan.expiration_date,
        or_(License.assigned_date.is_(None), LicenseEvent.created >= License.assigned_date),
    )


def current(scope: Scope, plan: Any) -> tuple[ColumnElement[bool], ...]:
    """Conditions: this plan (the class or an alias) is active, and is current now or begins within a day.

    Wide on purpose: license-manager counts a plan as current through its expiration date inclusive, and a night may
    run hours before the next plan begins.
    """
    return (plan.is_active.is_(True), plan.start_date <= scope["soon"], plan.expiration_date >= scope["now"])


def _kept(scope: Scope, how: ColumnElement[bool]) -> ColumnElement[bool]:
    """Condition: the License's address belongs to a learner with a held license or one in a current plan.

    One condition for both, because each evaluation reads all licenses of the customers.
    """
    return is_learner_of([*keeping(scope, how).values()], agreements(scope))


def keeping(scope: Scope, held: ColumnElement[bool]) -> dict[str, Which]:
    """Return the conditions under which a license keeps its learner linked, by name: `held` and `protected`."""
    return {"held": partial(_is_held, held), "protected": partial(_in_current_plan, scope)}


def _in_current_plan(scope: Scope, _: Any, plan: Any) -> Sequence[ColumnElement[bool]]:
    """Ignore the license's status: wide on purpose, as license-manager does."""
    return (plan.customer_agreement_id.in_(agreements(scope)), *current(scope, plan))


def keeping_holds(scope: Scope) -> ColumnElement[bool]:
    """Condition: this hold keeps the learner linked.

    A license held for its downgrade always does, also if the hold has lapsed or the run is narrowed or forced.
    """
    return or_(conditions.holds(scope), HeldLicense.step == DOWNGRADE.name)


def _is_held(how: ColumnElement[bool], license: Any, _: Any) -> Sequence[ColumnElement[bool]]:
    """Match held licenses of any customer; `is_learner_of` compares within the customer of the license's plan.

    Not narrowed to the customers: few licenses are held, and MariaDB would read all licenses of the customers instead.
    """
    return (Among(license.uuid, select(HeldLicense.license_uuid).where(how)),)


def agreements(scope: Scope) -> Rows:
    """Select the agreements of the customers whose learners may be unlinked."""
    return select(Agreement.uuid).where(scope.lists("customers", Agreement.enterprise_customer_uuid))
