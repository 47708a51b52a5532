"""What is due: pure selects over license-manager's tables and the ledger.

No Celery, no HTTP and no clock here: every query is a function of a `Scope`. The rules are those of
docs/architecture.md, "What is due"; the tests compare them, row by row, with a plain-Python reading.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, case, exists, func, or_, select, tuple_, union
from sqlalchemy.orm import InstrumentedAttribute, aliased

from worker.models import DOWNGRADED_EVENT, UNLINKED_EVENT, Downgrade, HeldLicense, License, LicenseEvent
from worker.models import CustomerAgreement as Agreement
from worker.models import SubscriptionPlan as Plan
from worker.models import SubscriptionPlanRenewal as Renewal
from worker.scope import Scope

Rows: TypeAlias = Select[*tuple[Any, ...]]

LEARNER_STATUSES = ("assigned", "activated")
# A held license is tried again next night: longer than a repeat by hand, shorter than any two nights are apart.
HOLD = timedelta(hours=12)


def due_plans(scope: Scope) -> Rows:
    """Which expired plans are still to be processed, and can be worked on now? (uuid, expiration_date, customer)

    Their renewal chain has ended: its last plan has expired and has no renewal row. A plan of which nothing but
    held licenses is left waits until these may be tried again.
    """
    waits = _licenses_of(Plan.uuid).where(~_sent(scope), _held(scope))
    workable = _licenses_of(Plan.uuid).where(~_sent(scope), ~_held(scope))
    return (
        select(Plan.uuid, Plan.expiration_date, Agreement.enterprise_customer_uuid)
        .join(Agreement, Agreement.uuid == Plan.customer_agreement_id)
        .where(
            *_narrowed(scope),
            Plan.uuid.in_(_plans_whose_chain_ended(scope)),
            or_(workable.exists(), ~waits.exists()),
        )
    )


def waiting_plans(scope: Scope) -> Rows:
    """Which unprocessed plans that are not due have licenses to be downgraded one by one? (as `due_plans`)"""
    return waiting_downgrades(scope, Plan.uuid, Plan.expiration_date, Agreement.enterprise_customer_uuid).distinct()


def due_downgrades(scope: Scope, *columns: Any) -> Rows:
    """Which licenses of due plans has the LMS not confirmed yet? (`columns` of License, Plan or Agreement)"""
    return _licenses(*columns).where(
        *_narrowed(scope),
        Plan.uuid.in_(_plans_whose_chain_ended(scope)),
        License.status.in_(LEARNER_STATUSES),
        ~_sent(scope),
        ~_held(scope),
    )


def waiting_downgrades(scope: Scope, *columns: Any) -> Rows:
    """Which licenses are due to be unlinked while their plan waits, and are to be downgraded one by one first?"""
    return _unlinkable(scope, *columns).where(*_to_downgrade_alone(scope), ~_protected(scope))


def downgrade_page(scope: Scope, plan: UUID, waiting: bool, limit: int, after: UUID | None) -> Rows:
    """Which licenses of one plan go into the next downgrade call? (uuid, whether it is on the held list)"""
    due = waiting_downgrades if waiting else due_downgrades
    return _after(due(scope, License.uuid, _on_held_list()).where(Plan.uuid == plan), after, limit)


def done_plans(scope: Scope) -> Rows:
    """Which due plans have no license left that the LMS has not confirmed? (uuid, expiration_date, customer)"""
    return due_plans(scope).where(~_licenses_of(Plan.uuid).where(~_sent(scope)).exists())


def due_unlinks(scope: Scope, *columns: Any, downgraded: bool = True) -> Rows:
    """Which licenses' learners are to be unlinked? (Not `downgraded`: those too whose downgrade the run is to do.)"""
    due = _unlinkable(scope, *columns).where(~_protected(scope))
    # Whatever this run is narrowed to or forced to try again: who is on the list undowngraded keeps the learner.
    return due.where(_confirmed(), ~_learner_held(scope, HeldLicense.step == "downgrade")) if downgraded else due


def protected(scope: Scope, *columns: Any) -> Rows:
    """Which licenses would be due to be unlinked but for another current license of the same learner?"""
    return _unlinkable(scope, *columns).where(_protected(scope))


def unlink_page(scope: Scope, limit: int, after: UUID | None) -> Rows:
    """Which learners go into the next unlink call? (uuid, whether it is on the held list, e-mail)"""
    return _after(due_unlinks(scope, License.uuid, _on_held_list(), License.user_email), after, limit)


def due_enterprises(scope: Scope) -> Rows:
    """Which enterprise customers have anything due?"""
    plans = due_plans(scope).subquery()
    customer = Agreement.enterprise_customer_uuid
    either = union(select(plans.c.enterprise_customer_uuid), due_unlinks(scope, customer, downgraded=False)).subquery()
    return select(either.c.enterprise_customer_uuid).order_by(either.c.enterprise_customer_uuid)


def known_enterprises(enterprises: frozenset[UUID]) -> Rows:
    """Which of these enterprise customers have a customer agreement?"""
    return select(Agreement.enterprise_customer_uuid).where(Agreement.enterprise_customer_uuid.in_(sorted(enterprises)))


def plans_of(enterprises: frozenset[UUID], plan_uuids: tuple[UUID, ...]) -> Rows:
    """Which of these plans belong to one of these enterprise customers, or to any when none is named?"""
    found = select(Plan.uuid).join(Agreement, Agreement.uuid == Plan.customer_agreement_id)
    found = found.where(Plan.uuid.in_(plan_uuids))
    return found.where(Agreement.enterprise_customer_uuid.in_(sorted(enterprises))) if enterprises else found


def ignore_enrollments_modified_after(expiration_date: datetime, as_of: datetime) -> datetime | None:
    """The date of a downgrade call: the plan's expiration date when more than a day before `as_of`, else None."""
    return expiration_date if as_of - expiration_date > timedelta(days=1) else None


def _after(page: Rows, after: UUID | None, limit: int) -> Rows:
    if after is not None:
        page = page.where(License.uuid > after)
    return page.order_by(License.uuid).limit(limit)


def _licenses(*columns: Any) -> Rows:
    return (
        select(*columns or (License.uuid,))
        .select_from(License)
        .join(Plan, Plan.uuid == License.subscription_plan_id)
        .join(Agreement, Agreement.uuid == Plan.customer_agreement_id)
    )


def _licenses_of(plan: UUID | InstrumentedAttribute[UUID], *columns: Any) -> Rows:
    return select(*columns or (License.uuid,)).where(
        License.subscription_plan_id == plan, License.status.in_(LEARNER_STATUSES)
    )


def _narrowed(scope: Scope) -> list[ColumnElement[bool]]:
    conditions = [Plan.expiration_date <= scope.as_of]
    if not scope.force:
        conditions.append(Plan.expiration_processed.is_(False))
    return conditions + _narrowed_by_request(scope)


def _narrowed_by_request(scope: Scope) -> list[ColumnElement[bool]]:
    asked: tuple[tuple[Any, Callable[[Any], ColumnElement[bool]]], ...] = (
        (scope.enterprise, Agreement.enterprise_customer_uuid.__eq__),
        (scope.plan_uuids, Plan.uuid.in_),
        (scope.expired_after, Plan.expiration_date.__ge__),
        (scope.expired_before, Plan.expiration_date.__le__),
    )
    return [compared(value) for value, compared in asked if value is not None]


def _plans_whose_chain_ended(scope: Scope) -> Rows:
    """Walk each expired plan forward along its renewals; keep it when the last plan has expired for good.

    UNION, not UNION ALL, so that a ring of renewals ends the walk; a ring has no last plan and stays undue.
    """
    walk = (
        select(Plan.uuid.label("plan"), Plan.uuid.label("reached"))
        .join(Agreement, Agreement.uuid == Plan.customer_agreement_id)
        .where(*_narrowed(scope))
        .cte("renewal_chain", recursive=True)
    )
    walk = walk.union(
        select(walk.c.plan, Renewal.renewed_subscription_plan_id).join_from(
            walk,
            Renewal,
            and_(
                Renewal.prior_subscription_plan_id == walk.c.reached,
                Renewal.renewed_subscription_plan_id.is_not(None),
            ),
        )
    )
    last = aliased(Plan)
    return (
        select(walk.c.plan)
        .join(last, last.uuid == walk.c.reached)
        .where(
            last.expiration_date <= scope.as_of,
            ~exists().where(Renewal.prior_subscription_plan_id == last.uuid),
        )
    )


def _exists(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """EXISTS about the License and the Plan at hand, however deep it stands in a query."""
    return exists().where(*conditions).correlate(License, Plan)


def _downgrade_confirmed() -> ColumnElement[bool]:
    """Has the LMS confirmed this license's downgrade since its plan's expiration date (as that stands today)?"""
    ledger = (Downgrade.license_uuid == License.uuid, Downgrade.confirmed_at >= Plan.expiration_date)
    event = (
        LicenseEvent.license_id == License.uuid,
        LicenseEvent.event_name == DOWNGRADED_EVENT,
        LicenseEvent.created >= Plan.expiration_date,
    )
    return or_(_exists(*ledger), _exists(*event))


def _sent(scope: Scope) -> ColumnElement[bool]:
    """Need this license of a due plan not be sent (again)? A forced run counts only what it has sent itself."""
    if not scope.force:
        return _downgrade_confirmed()
    return _exists(Downgrade.license_uuid == License.uuid, Downgrade.run_id == scope.run_id)


def _confirmed() -> ColumnElement[bool]:
    """Promise 2: confirmed by the plan's being processed, or license by license."""
    return or_(Plan.expiration_processed.is_(True), _downgrade_confirmed())


def _to_downgrade_alone(scope: Scope) -> list[ColumnElement[bool]]:
    return [~_confirmed(), Plan.uuid.not_in(_plans_whose_chain_ended(scope))]


def _unlinkable(scope: Scope, *columns: Any) -> Rows:
    """Licenses that are due to be unlinked, but for protection and for the downgrade's being confirmed."""
    unlinked = _exists(LicenseEvent.license_id == License.uuid, LicenseEvent.event_name == UNLINKED_EVENT)
    enabled = scope.unlink_enabled
    if scope.enterprise is not None:
        enabled &= {scope.enterprise}
    return _licenses(*columns).where(
        Agreement.enterprise_customer_uuid.in_(sorted(enabled)),
        Plan.expiration_date < scope.as_of - scope.unlink_after,
        *_narrowed_by_request(scope),
        License.status.in_(LEARNER_STATUSES),
        License.renewed_to_id.is_(None),
        _mailbox(License) != "",
        ~unlinked,
        ~_learner_held(scope, _holds(scope)),
    )


def _mailbox(license: Any) -> ColumnElement[str]:
    """The e-mail as it is compared: the LMS trims white space, and case does not make another learner."""
    email = license.user_email
    for blank in "\t\n\r":
        email = func.replace(email, blank, " ")
    return func.lower(func.trim(email))


def _protected(scope: Scope) -> ColumnElement[bool]:
    """Has the learner any license, of whatever status, in an active, current plan of the same customer?

    Wide on purpose, as license-manager has it: a plan counts as current through its expiration date inclusive.
    """
    other, plan = aliased(License), aliased(Plan)
    return _learner_among(
        scope,
        other,
        plan,
        plan.is_active.is_(True),
        plan.start_date <= scope.as_of,
        plan.expiration_date >= scope.as_of,
    )


def _learner_among(scope: Scope, other: Any, plan: Any, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Has the learner at hand another license, of the same customer, such as these conditions say?

    Asked of two sets that do not depend on the license at hand, so that they are read once and not once for each.
    """

    def among(mine: Any, theirs: Any) -> ColumnElement[bool]:
        those = select(plan.customer_agreement_id, theirs).where(
            theirs.is_not(None), plan.uuid == other.subscription_plan_id, *conditions
        )
        if scope.enterprise is not None:
            customer = select(Agreement.uuid).where(Agreement.enterprise_customer_uuid == scope.enterprise)
            those = those.where(plan.customer_agreement_id.in_(customer.correlate(None)))
        return and_(mine.is_not(None), tuple_(Plan.customer_agreement_id, mine).in_(those.correlate(None)))

    either = or_(among(_mailbox(License), _mailbox(other)), among(License.lms_user_id, other.lms_user_id))
    return case((either, 1), else_=0) == 1  # never NULL: for a NOT IN that might be, SQLite reads the set every time


def _holds(scope: Scope) -> ColumnElement[bool]:
    own = HeldLicense.run_id == scope.run_id
    return own if scope.force else or_(own, HeldLicense.as_of > scope.as_of - HOLD)


def _held(scope: Scope) -> ColumnElement[bool]:
    return _exists(HeldLicense.license_uuid == License.uuid, _holds(scope))


def _learner_held(scope: Scope, how: ColumnElement[bool]) -> ColumnElement[bool]:
    """Is this license, or another one of the same learner and customer, held so? A held license keeps its learner."""
    other, plan = aliased(License), aliased(Plan)
    return _learner_among(scope, other, plan, other.uuid == HeldLicense.license_uuid, how)


def _on_held_list() -> ColumnElement[bool]:
    return _exists(HeldLicense.license_uuid == License.uuid).label("on_held_list")
