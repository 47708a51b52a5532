"""What is due: pure selects over license-manager's tables and the ledger.

No Celery, no HTTP and no clock here: every query is a function of a `Scope`. The rules are those of
docs/architecture.md, "What is due"; the tests compare them, row by row, with a plain-Python reading.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, Integer, and_, bindparam, case, exists, literal, or_, select
from sqlalchemy.orm import InstrumentedAttribute, aliased

from worker.db.ledger_tables import DOWNGRADED_EVENT, UNLINKED_EVENT, Downgrade, HeldLicense, License, LicenseEvent
from worker.db.ledger_tables import CustomerAgreement as Agreement
from worker.db.ledger_tables import SubscriptionPlan as Plan
from worker.db.ledger_tables import SubscriptionPlanRenewal as Renewal
from worker.db.types import DjangoUUID
from worker.due.learners import KNOWN_BY as KNOWN_BY
from worker.due.learners import Among, Mailbox, by_key, learner_among
from worker.due.learners import Rows as Rows
from worker.due.scope import HOLD as HOLD
from worker.due.scope import Scope

LEARNER_STATUSES = ("assigned", "activated")
_PLAN = (Plan.uuid, Plan.expiration_date, Agreement.enterprise_customer_uuid)


def due_plans(scope: Scope) -> Rows:
    """Which expired plans are still to be processed, and can be worked on now? (uuid, expiration_date, customer)

    Their renewal chain has ended: its last plan has expired and has no renewal row. A plan of which nothing but
    held licenses is left waits until these may be tried again.
    """
    waits = _licenses_of(Plan.uuid).where(~_sent(scope), _held(scope))
    workable = _licenses_of(Plan.uuid).where(~_sent(scope), ~_held(scope))
    ended = Plan.uuid.in_(_plans_whose_chain_ended(scope))
    return plans_where(ended, or_(any_of(workable), ~any_of(waits)), columns=_PLAN)


def expired_plans(scope: Scope) -> Rows:
    """Which plans have expired and are not processed, whether they are due or wait? (uuid)"""
    return plans_where(*_narrowed(scope))


def waiting_plans(scope: Scope) -> Rows:
    """Which unprocessed plans that are not due have licenses to be downgraded one by one? (as `due_plans`)"""
    return waiting_downgrades(scope, *_PLAN).distinct()


def due_downgrades(scope: Scope, *columns: Any) -> Rows:
    """Which licenses of due plans has the LMS not confirmed yet? (`columns` of License, Plan or Agreement)"""
    return _licenses(*columns).where(
        *_narrowed(scope),  # once more: MariaDB would else look into every plan
        Among(License.subscription_plan_id, _plans_whose_chain_ended(scope)),
        License.status.in_(LEARNER_STATUSES),
        ~_sent(scope),
        ~_held(scope),
    )


def waiting_downgrades(scope: Scope, *columns: Any) -> Rows:
    """Which licenses are due to be unlinked while their plan waits, and are to be downgraded one by one first?"""
    return _unlinkable(scope, *columns).where(*_to_downgrade_alone(scope))


def plans_waiting_for_renewal(scope: Scope) -> Rows:
    """Which expired plans does nobody process yet, because their renewal chain has not ended? (as `due_plans`)"""
    waits = Plan.uuid.not_in(_plans_whose_chain_ended(scope))
    return plans_where(*_narrowed(scope), Plan.expiration_processed.is_(False), waits, columns=_PLAN)


def downgrade_page(scope: Scope, plan: UUID, waiting: bool, limit: int, after: UUID | None) -> Rows:
    """Which licenses of one plan go into the next downgrade call? (uuid, whether it is on the held list)"""
    due = waiting_downgrades if waiting else due_downgrades
    of_plan = due(scope, License.uuid, _on_held_list()).where(Plan.uuid == bindparam("plan", plan, DjangoUUID()))
    return _after(of_plan, limit, after)


def done_plans(scope: Scope) -> Rows:
    """Which due plans have no license left that the LMS has not confirmed? (uuid, expiration_date, customer)"""
    return due_plans(scope).where(~any_of(_licenses_of(Plan.uuid).where(~_sent(scope))))


def due_unlinks(scope: Scope, *columns: Any, downgraded: bool = True) -> Rows:
    """Which licenses' learners are to be unlinked? (Not `downgraded`: those too whose downgrade the run is to do.)"""
    if not downgraded:
        return _unlinkable(scope, *columns)
    # Whatever this run is narrowed to or forced to try again: who is on the list undowngraded keeps the learner.
    return _unlinkable(scope, *columns, held=or_(_holds(scope), HeldLicense.step == "downgrade")).where(_confirmed())


def protected(scope: Scope, *columns: Any, by: Sequence[str] = KNOWN_BY) -> Rows:
    """Which licenses would be due to be unlinked but for another current license of the learner, known `by` these?"""
    return _unlinkable(scope, *columns, protected_by=by)


def unlink_page(scope: Scope, limit: int, after: UUID | None) -> Rows:
    """Which learners go into the next unlink call? (uuid, whether it is on the held list, e-mail)"""
    return _after(due_unlinks(scope, License.uuid, _on_held_list(), License.user_email), limit, after)


def ignore_enrollments_modified_after(expiration_date: datetime, as_of: datetime) -> datetime | None:
    """The date of a downgrade call: the plan's expiration date when more than a day before `as_of`, else None."""
    return expiration_date if as_of - expiration_date > timedelta(days=1) else None


def _after(page: Rows, limit: int, after: UUID | None) -> Rows:
    if after is not None:
        page = page.where(License.uuid > bindparam("after", after, DjangoUUID()))
    found = page.offset(0).subquery()  # or all licenses might be read in this order until there are enough
    return select(found).order_by(found.c.uuid).limit(bindparam("limit", limit, Integer()))


def _licenses(*columns: Any) -> Rows:
    return (
        select(*columns or (License.uuid,))
        .select_from(License)
        .join(Plan, Plan.uuid == License.subscription_plan_id)
        .join(Agreement, Agreement.uuid == Plan.customer_agreement_id)
    )


def plans_where(*conditions: ColumnElement[bool], columns: Sequence[Any] = (Plan.uuid,)) -> Rows:
    """Which plans, with their customer's Agreement, are so? (`columns` of Plan or Agreement)"""
    return select(*columns).join(Agreement, Agreement.uuid == Plan.customer_agreement_id).where(*conditions)


def _licenses_of(plan: UUID | InstrumentedAttribute[UUID], *columns: Any) -> Rows:
    return select(*columns or (License.uuid,)).where(
        License.subscription_plan_id == plan, License.status.in_(LEARNER_STATUSES)
    )


def _narrowed(scope: Scope) -> list[ColumnElement[bool]]:
    conditions = [Plan.expiration_date <= scope["as_of"]]
    if not scope.force:
        conditions.append(Plan.expiration_processed.is_(False))
    return conditions + _narrowed_by_request(scope)


def _narrowed_by_request(scope: Scope) -> list[ColumnElement[bool]]:
    asked: dict[str, Callable[[Any], ColumnElement[bool]]] = {
        "enterprise": Agreement.enterprise_customer_uuid.__eq__,
        "plan_uuids": Plan.uuid.in_,
        "expired_after": Plan.expiration_date.__ge__,
        "expired_before": Plan.expiration_date.__le__,
    }
    return [compared(scope[name]) for name, compared in asked.items() if scope.values[name] is not None]


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
            last.expiration_date <= scope["as_of"],
            ~exists().where(Renewal.prior_subscription_plan_id == last.uuid),
        )
    )


def any_of(rows: Rows) -> ColumnElement[bool]:
    """EXISTS, looked up by key: the OFFSET keeps databases from reading the whole table instead, once for all."""
    return rows.limit(1).offset(0).exists()


def _exists(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """EXISTS about the License and the Plan at hand, however deep it stands in a query."""
    return any_of(select(literal(1)).where(*conditions).correlate(License, Plan))


def _exists_in(table: Any, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """`_exists` in a table of the ledger, by its primary key: MySQL does not know how fast these tables fill."""
    return any_of(by_key(select(literal(1)).where(*conditions), table).correlate(License, Plan))


def _downgrade_confirmed() -> ColumnElement[bool]:
    """Has the LMS confirmed this license's downgrade since its plan's expiration date (as that stands today)?"""
    ledger = (Downgrade.license_uuid == License.uuid, Downgrade.confirmed_at >= Plan.expiration_date)
    event = (
        LicenseEvent.license_id == License.uuid,
        LicenseEvent.event_name == DOWNGRADED_EVENT,
        LicenseEvent.created >= Plan.expiration_date,
    )
    return or_(_exists_in(Downgrade, *ledger), _exists(*event))


def _sent(scope: Scope) -> ColumnElement[bool]:
    """Need this license of a due plan not be sent (again)? A forced run counts only what it has sent itself."""
    if not scope.force:
        return _downgrade_confirmed()
    return _exists_in(Downgrade, Downgrade.license_uuid == License.uuid, Downgrade.run_id == scope["run_id"])


def _confirmed() -> ColumnElement[bool]:
    """Promise 2: confirmed by the plan's being processed, or license by license."""
    return or_(Plan.expiration_processed.is_(True), _downgrade_confirmed())


def _to_downgrade_alone(scope: Scope) -> list[ColumnElement[bool]]:
    return [~_confirmed(), Plan.uuid.not_in(_plans_whose_chain_ended(scope))]


def _unlinkable(
    scope: Scope, *columns: Any, protected_by: Sequence[str] = (), held: ColumnElement[bool] | None = None
) -> Rows:
    """Licenses that are due to be unlinked, but for the downgrade's being confirmed; or for protection by these.

    A license that is `held` so, as the scope has it unless given, keeps its learner linked.
    """
    theirs = Agreement.enterprise_customer_uuid.in_(scope["customers"])
    protecting = _has_current_license(scope, theirs, protected_by or KNOWN_BY)
    return unlink_candidates(scope, *columns).where(
        ~_has_held_license(scope, _holds(scope) if held is None else held),
        protecting if protected_by else ~protecting,
    )


def unlink_candidates(scope: Scope, *columns: Any) -> Rows:
    """Which licenses would be due to be unlinked if none were held or protected, and all were downgraded?"""
    theirs = Agreement.enterprise_customer_uuid.in_(scope["customers"])
    of_plan, *of_license = not_unlinked(scope)
    return _licenses(*columns).where(
        Among(License.subscription_plan_id, plans_where(theirs, of_plan, *_narrowed_by_request(scope))), *of_license
    )


def not_unlinked(scope: Scope) -> tuple[ColumnElement[bool], ...]:
    """Did the Plan at hand expire long enough ago, and is the License one of a learner who was not unlinked since?"""
    return (
        Plan.expiration_date < scope["old_before"],
        License.status.in_(LEARNER_STATUSES),
        # In a CASE, or MariaDB may read all the NULLs of its index, which are most of it, to merge them with a plan's.
        case((License.renewed_to_id.is_(None), 1), else_=0) == 1,
        Mailbox(License.user_email) != "",
        ~_exists(LicenseEvent.license_id == License.uuid, LicenseEvent.event_name == UNLINKED_EVENT),
    )


def current(scope: Scope, plan: Any) -> tuple[ColumnElement[bool], ...]:
    """Is this plan, the class or an alias, an active one through whose dates `as_of` lies?"""
    return (plan.is_active.is_(True), plan.start_date <= scope["as_of"], plan.expiration_date >= scope["as_of"])


def _has_current_license(scope: Scope, customers: ColumnElement[bool], by: Sequence[str]) -> ColumnElement[bool]:
    """Has the learner any license, of whatever status, in an active, current plan of the same customer?

    Wide on purpose, as license-manager has it: a plan counts as current through its expiration date inclusive.
    """
    other = aliased(License)
    return learner_among(other, Among(other.subscription_plan_id, plans_where(customers, *current(scope, Plan))), by)


def _has_held_license(scope: Scope, how: ColumnElement[bool]) -> ColumnElement[bool]:
    """Is this license, or another one of the same learner and customer, held so? A held license keeps its learner."""
    other = aliased(License)
    held = select(HeldLicense.license_uuid).where(HeldLicense.enterprise_customer_uuid.in_(scope["customers"]), how)
    return learner_among(other, Among(other.uuid, held))


def _holds(scope: Scope) -> ColumnElement[bool]:
    own = HeldLicense.run_id == scope["run_id"]
    return own if scope.force else or_(own, HeldLicense.as_of > scope["held_since"])


def _held(scope: Scope) -> ColumnElement[bool]:
    return _exists_in(HeldLicense, HeldLicense.license_uuid == License.uuid, _holds(scope))


def _on_held_list() -> ColumnElement[bool]:
    return _exists_in(HeldLicense, HeldLicense.license_uuid == License.uuid).label("on_held_list")
