"""Marks plans as processed as license-manager does: sets the mark, and copies the plan into its history table."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.orm import Session

from worker.db.license_manager_tables import SubscriptionPlan
from worker.db.schema_check import PLAN_HISTORY_TABLE, PLAN_TABLE, is_generated
from worker.db.sql import rows_changed
from worker.db.types import DjangoUUID, UTCDateTime

REASON = "history_change_reason"  # missing in older releases of django-simple-history
# Returns no row, only the names of all columns of both tables.
_COLUMNS = sa.select(sa.text("*")).select_from(sa.table(PLAN_TABLE).join(sa.table(PLAN_HISTORY_TABLE), sa.false()))


@dataclass(frozen=True)
class Found:
    """The two tables, and for each column of a history row the expression that copies it from the plan."""

    plan: sa.TableClause
    history: sa.TableClause
    copied: dict[str, sa.ColumnElement[Any]]


class PlanHistory:
    """The tables of plans and of their history, with the columns that this database has.

    Releases of license-manager differ in these columns, and it may be upgraded while a worker runs. So the names of
    the columns are read each time, and the tables are reflected again only if the names have changed.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._found: Found | None = None

    def look(self, session: Session) -> Found:
        """Return the tables with their current columns. Raises the session's errors."""
        names = tuple(session.execute(_COLUMNS).keys())
        if self._found is None or self._names != names:
            self._names, self._found = names, _reflect(session.connection())
        return self._found


def mark_processed(
    session: Session, found: Found, plans: Sequence[UUID], now: datetime, run_id: UUID, *still: sa.ColumnElement[bool]
) -> list[UUID]:
    """Mark those of these plans that meet `still`, and add a history row for each. Return the plans that were marked.

    The history row names license-expiry and the run, so that license-manager's admin shows the author. `found` is the
    result of `PlanHistory.look`. `now` is the time of the mark, by the database's clock (UTC). Read it before selecting
    the plans: a license moved into a plan after that time is not covered by the mark.
    """
    of_plans = (SubscriptionPlan.uuid.in_(plans), *still)
    update = sa.update(SubscriptionPlan).where(*of_plans).values(expiration_processed=True, modified=now)
    count = rows_changed(session, update)
    # Plans that the UPDATE skipped have another `modified`.
    ours = sa.and_(
        sa.type_coerce(found.plan.c.uuid, DjangoUUID()).in_(plans),
        sa.type_coerce(found.plan.c.modified, UTCDateTime()) == now,
    )
    own: dict[str, Any] = {"history_type": sa.literal("~"), "history_date": found.plan.c.modified}
    if REASON in found.history.c:
        own[REASON] = sa.literal(f"license-expiry, run {run_id}")
    rows = sa.select(*found.copied.values(), *own.values()).where(ours)
    session.execute(sa.insert(found.history).from_select([*found.copied, *own], rows))
    if count == len(plans):
        return list(plans)
    marked = sa.select(sa.type_coerce(found.plan.c.uuid, DjangoUUID())).where(ours)
    return list(session.scalars(marked).all())


def _reflect(connection: sa.Connection) -> Found:
    inspector = sa.inspect(connection)
    of_plan, of_history = (
        {found["name"]: found for found in inspector.get_columns(name)} for name in (PLAN_TABLE, PLAN_HISTORY_TABLE)
    )
    plan, history = (
        sa.table(name, *(sa.column(found["name"], found["type"]) for found in columns.values()))
        for name, columns in ((PLAN_TABLE, of_plan), (PLAN_HISTORY_TABLE, of_history))
    )
    copied = {
        name: _in_form_of(history.c[name], plan.c[name])
        for name in of_plan
        if name in of_history and not is_generated(of_history[name])
    }
    return Found(plan, history, copied)


def _in_form_of(target: sa.ColumnElement[Any], value: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """Convert the value to the type of the target column: a MariaDB database can have UUIDs as `uuid` and as text.

    The native type accepts 32 hex digits as they are; a text column needs the dashes removed.
    """
    shortened = isinstance(value.type, sa.Uuid) and not isinstance(target.type, sa.Uuid)
    return sa.func.replace(value, "-", "") if shortened else value
