"""Conditions and selects that the queries for due work share: licenses, plans, confirmed, held, narrowed."""

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
"""Conditions that must all hold, by name. `explain` reports the names of those that do not hold."""

LEARNER_STATUSES = ("assigned", "activated")
# Databases can store dates that Python and the LMS cannot represent: before year 1, "infinity", month 0.
_FIRST_MOMENT = datetime.min.replace(tzinfo=UTC)
_LAST_MOMENT = datetime.max.replace(tzinfo=UTC)


def licenses(*columns: Any) -> Rows:
    """Select licenses joined with their Plan and Agreement; `columns` of these three, by default the license's UUID."""
    return (
        select(*columns or (License.uuid,))
        .select_from(License)
        .join(Plan, Plan.uuid == License.subscription_plan_id)
        .join(Agreement, Agreement.uuid == Plan.customer_agreement_id)
    )


def licenses_of(plan: UUID | InstrumentedAttribute[UUID]) -> Rows:
    """Select the UUIDs of a plan's licenses that must be downgraded when it expires.

    `plan` is a UUID, or Plan.uuid to correlate with the Plan of the outer query.
    """
    return select(License.uuid).where(License.subscription_plan_id == plan, was_a_learners())


def was_a_learners() -> ColumnElement[bool]:
    """Condition: a learner had the License when its Plan expired.

    Licenses revoked since then count: license-manager's retire_old_licenses revokes licenses of plans that expired
    long ago without downgrading their enrollments in the LMS.
    """
    revoked_since = and_(License.status == "revoked", License.revoked_date >= Plan.expiration_date)
    return or_(License.status.in_(LEARNER_STATUSES), revoked_since)


def plans_where(*conditions: ColumnElement[bool], columns: Sequence[Any] = (Plan.uuid,)) -> Rows:
    """Select `columns` of Plan or Agreement for the plans that meet all these conditions."""
    return select(*columns).join(Agreement, Agreement.uuid == Plan.customer_agreement_id).where(*conditions)


def first_after(rows: Rows, limit: int, after: UUID | None) -> Rows:
    """Return the first `limit` of these licenses by UUID, starting after the license `after` (keyset pagination)."""
    if after is not None:
        rows = rows.where(License.uuid > bindparam("after", after, DjangoUUID()))
    found = rows.offset(0).subquery()  # else the database may scan all licenses in UUID order until it has enough
    return select(found).order_by(found.c.uuid).limit(bindparam("limit", limit, Integer()))


def among(rows: Rows, licenses: Sequence[UUID]) -> Rows:
    """Narrow these rows to the given licenses, ordered by UUID."""
    found = rows.where(OneOf(License.uuid, "licenses"))
    return found.order_by(License.uuid).params(licenses=licenses)


def to_process(scope: Scope) -> Rules:
    """Conditions: the Plan has expired, the request includes it, and it is not processed (or the run is forced)."""
    rules = {"expired": Plan.expiration_date <= scope["as_of"], "date": can_be_read(Plan.expiration_date)}
    return rules | ({} if scope.force else {"mark": ~marked()}) | asked_for(scope)


def can_be_read(moment: Any) -> ColumnElement[bool]:
    """Condition: Python can represent this column's date-time, which must be a past one."""
    return cast("ColumnElement[bool]", moment >= literal(_FIRST_MOMENT, UTCDateTime()))


def readable(moment: Any) -> ColumnElement[Any]:
    """Select this column's date-time, past or future; NULL if Python cannot represent it."""
    return case((and_(can_be_read(moment), moment <= literal(_LAST_MOMENT, UTCDateTime())), moment))


def asked_for(scope: Scope) -> Rules:
    """Conditions, by argument name: the Plan is one that the request narrows a run to."""
    asked: dict[str, Callable[[], ColumnElement[bool]]] = {
        "enterprise": lambda: Agreement.enterprise_customer_uuid == scope["enterprise"],
        "plan_uuids": lambda: scope.lists("plan_uuids", Plan.uuid),
        "expired_after": lambda: Plan.expiration_date >= scope["expired_after"],
        "expired_before": lambda: Plan.expiration_date <= scope["expired_before"],
    }
    return {name: condition() for name, condition in asked.items() if scope.values[name] is not None}


def exists_for(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """EXISTS correlated with the License and the Plan of the outer query, at any nesting depth."""
    return any_of(select(literal(1)).where(*conditions).correlate(License, Plan))


def _exists_in(table: Any, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """`exists_for` on a ledger table, by primary key: MySQL's statistics lag behind these fast-growing tables."""
    return any_of(by_key(select(literal(1)).where(*conditions), table).correlate(License, Plan))


def downgrade_confirmed() -> ColumnElement[bool]:
    """Condition: the LMS confirmed the License's downgrade at or after its Plan's present expiration date."""
    ledger = (Downgrade.license_uuid == License.uuid, Downgrade.confirmed_at >= Plan.expiration_date)
    event = (
        LicenseEvent.license_id == License.uuid,
        LicenseEvent.event_name == DOWNGRADED_EVENT,
        LicenseEvent.created >= Plan.expiration_date,
    )
    return or_(_exists_in(Downgrade, *ledger), exists_for(*event))


def confirmed(scope: Scope) -> ColumnElement[bool]:
    """Condition: the downgrade is confirmed, by the plan's mark or license by license.

    The mark counts only if the license was in the plan when it was made (docs/explanation/due.md, Learner by learner).
    """
    by_mark = and_(marked(), ~came_after_mark()) if scope.license_history else marked()
    return or_(by_mark, downgrade_confirmed())


def sent(scope: Scope) -> ColumnElement[bool]:
    """Condition: this license of a due plan need not be sent. A forced run counts only what it has sent itself."""
    if not scope.force:
        return downgrade_confirmed()
    return _exists_in(Downgrade, Downgrade.license_uuid == License.uuid, Downgrade.run_id == scope["run_id"])


def holds(scope: Scope) -> ColumnElement[bool]:
    """Condition: this entry of the held list counts: it is younger than 12 hours, or was made by this run.

    An entry dated in the future was made with a wrong clock and does not count.
    """
    own = HeldLicense.run_id == scope["run_id"]
    young = and_(HeldLicense.as_of > scope["held_since"], HeldLicense.as_of <= scope["held_until"])
    return own if scope.force else or_(own, young)


def held(scope: Scope) -> ColumnElement[bool]:
    """Condition: the License is held."""
    return _exists_in(HeldLicense, HeldLicense.license_uuid == License.uuid, holds(scope))


def on_held_list() -> ColumnElement[bool]:
    """Column: whether the License is on the held list, even by an entry that no longer counts."""
    return _exists_in(HeldLicense, HeldLicense.license_uuid == License.uuid).label("on_held_list")
