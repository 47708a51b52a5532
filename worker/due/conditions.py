"""The parts that the questions about what is due share: which licenses and plans, confirmed, held, narrowed."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias, cast
from uuid import UUID

from sqlalchemy import ColumnElement, Integer, and_, bindparam, case, literal, or_, select
from sqlalchemy.orm import InstrumentedAttribute

from worker.db.ledger_tables import Downgrade, HeldLicense
from worker.db.license_manager_tables import (
    DOWNGRADED_EVENT,
    CustomerAgreement as Agreement,
    License,
    LicenseEvent,
    SubscriptionPlan as Plan,
)
from worker.db.sql import OneOf, Rows, any_of, by_key
from worker.db.types import DjangoUUID, UTCDateTime
from worker.due.scope import Scope
from worker.license_manager.marks import came_after_mark, marked

Rules: TypeAlias = dict[str, ColumnElement[bool]]
"""Conditions that must all hold, by the names under which `explain` tells which of them does not."""

LEARNER_STATUSES = ("assigned", "activated")
# Servers hold dates that Python and the LMS cannot: before the year 1, "infinity", a month 0.
_FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)
_LAST_MOMENT = datetime.max.replace(tzinfo=UTC)


def licenses(*columns: Any) -> Rows:
    """Licenses with their Plan and their customer's Agreement. (`columns` of these; else the UUID)"""
    return (
        select(*columns or (License.uuid,))
        .select_from(License)
        .join(Plan, Plan.uuid == License.subscription_plan_id)
        .join(Agreement, Agreement.uuid == Plan.customer_agreement_id)
    )


def licenses_of(plan: UUID | InstrumentedAttribute[UUID]) -> Rows:
    """The UUIDs of the licenses of a plan, the Plan at hand, that are to be downgraded when it expires."""
    return select(License.uuid).where(License.subscription_plan_id == plan, was_a_learners())


def was_a_learners() -> ColumnElement[bool]:
    """Did a learner have the License when its Plan expired?

    license-manager's retire_old_licenses revokes those of plans that expired long ago, and does not tell the LMS.
    """
    revoked_since = and_(License.status == "revoked", License.revoked_date >= Plan.expiration_date)
    return or_(License.status.in_(LEARNER_STATUSES), revoked_since)


def plans_where(*conditions: ColumnElement[bool], columns: Sequence[Any] = (Plan.uuid,)) -> Rows:
    """Plans, with their customer's Agreement, for which this is true. (`columns` of Plan or Agreement)"""
    return select(*columns).join(Agreement, Agreement.uuid == Plan.customer_agreement_id).where(*conditions)


def first_after(rows: Rows, limit: int, after: UUID | None) -> Rows:
    """The first `limit` of these licenses, by UUID, that come after this one: pages are read by key."""
    if after is not None:
        rows = rows.where(License.uuid > bindparam("after", after, DjangoUUID()))
    found = rows.offset(0).subquery()  # or all licenses might be read in this order until there are enough
    return select(found).order_by(found.c.uuid).limit(bindparam("limit", limit, Integer()))


def among(rows: Rows, licenses: Sequence[UUID]) -> Rows:
    """Those of these rows that are about one of these licenses, by UUID."""
    found = rows.where(OneOf(License.uuid, "licenses"))
    return found.order_by(License.uuid).params(licenses=licenses)


def to_process(scope: Scope) -> Rules:
    """Has the Plan expired, is it asked for, and not processed (or is that to be done again)?"""
    rules = {"expired": Plan.expiration_date <= scope["as_of"], "date": can_be_read(Plan.expiration_date)}
    return rules | ({} if scope.force else {"mark": ~marked()}) | asked_for(scope)


def can_be_read(moment: Any) -> ColumnElement[bool]:
    """Is this column's date-time, which is past, one that Python can hold?"""
    return cast("ColumnElement[bool]", moment >= literal(_FIRST_MOMENT, UTCDateTime()))


def readable(moment: Any) -> ColumnElement[Any]:
    """This column's date-time, past or future; NULL where Python cannot hold it."""
    return case((and_(can_be_read(moment), moment <= literal(_LAST_MOMENT, UTCDateTime())), moment))


def asked_for(scope: Scope) -> Rules:
    """Is the Plan one of those that the request narrows a run to?"""
    asked: dict[str, Callable[[], ColumnElement[bool]]] = {
        "enterprise": lambda: Agreement.enterprise_customer_uuid == scope["enterprise"],
        "plan_uuids": lambda: scope.lists("plan_uuids", Plan.uuid),
        "expired_after": lambda: Plan.expiration_date >= scope["expired_after"],
        "expired_before": lambda: Plan.expiration_date <= scope["expired_before"],
    }
    return {name: condition() for name, condition in asked.items() if scope.values[name] is not None}


def exists_for(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """EXISTS about the License and the Plan at hand, however deep it stands in a query."""
    return any_of(select(literal(1)).where(*conditions).correlate(License, Plan))


def _exists_in(table: Any, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """`exists_for` in a table of the ledger, by its primary key: MySQL does not know how fast these tables fill."""
    return any_of(by_key(select(literal(1)).where(*conditions), table).correlate(License, Plan))


def downgrade_confirmed() -> ColumnElement[bool]:
    """Has the LMS confirmed this license's downgrade since its plan's expiration date (as that stands today)?"""
    ledger = (Downgrade.license_uuid == License.uuid, Downgrade.confirmed_at >= Plan.expiration_date)
    event = (
        LicenseEvent.license_id == License.uuid,
        LicenseEvent.event_name == DOWNGRADED_EVENT,
        LicenseEvent.created >= Plan.expiration_date,
    )
    return or_(_exists_in(Downgrade, *ledger), exists_for(*event))


def confirmed(scope: Scope) -> ColumnElement[bool]:
    """Promise 2: confirmed by the plan's mark, if the license was in the plan then; or license by license."""
    by_mark = and_(marked(), ~came_after_mark()) if scope.license_history else marked()
    return or_(by_mark, downgrade_confirmed())


def sent(scope: Scope) -> ColumnElement[bool]:
    """Does this license of a due plan not need to be sent (again)? A forced run counts only what it has sent itself."""
    if not scope.force:
        return downgrade_confirmed()
    return _exists_in(Downgrade, Downgrade.license_uuid == License.uuid, Downgrade.run_id == scope["run_id"])


def holds(scope: Scope) -> ColumnElement[bool]:
    """Does this entry of the held list count: is it younger than 12 hours, or this run's own?

    One of the future, made while a clock was wrong, does not.
    """
    own = HeldLicense.run_id == scope["run_id"]
    young = and_(HeldLicense.as_of > scope["held_since"], HeldLicense.as_of <= scope["held_until"])
    return own if scope.force else or_(own, young)


def held(scope: Scope) -> ColumnElement[bool]:
    """Is this license held?"""
    return _exists_in(HeldLicense, HeldLicense.license_uuid == License.uuid, holds(scope))


def on_held_list() -> ColumnElement[bool]:
    """Is this license on the held list, whether that still counts or not?"""
    return _exists_in(HeldLicense, HeldLicense.license_uuid == License.uuid).label("on_held_list")
