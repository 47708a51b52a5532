"""Marks plans as processed as license-manager does it: the plan's mark, and a copy of the plan in its history."""

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

REASON = "history_change_reason"  # which older releases of Django's simple history do not have
# No row, but the names of all columns of both tables.
_COLUMNS = sa.select(sa.text("*")).select_from(sa.table(PLAN_TABLE).join(sa.table(PLAN_HISTORY_TABLE), sa.false()))


@dataclass(frozen=True)
class Found:
    """Both tables, and the value that each column of a history row gets from its plan."""

    plan: sa.TableClause
    history: sa.TableClause
    copied: dict[str, sa.ColumnElement[Any]]


class PlanHistory:
    """The tables of plans and of their history, with the columns that this database has.

    Releases of license-manager differ in these columns, and it may be upgraded while we run. So the columns' names are
    read each time; everything else is reflected only when these have changed.
    """

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._found: Found | None = None

    def look(self, session: Session) -> Found:
        """Read the columns' names; return the tables with these."""
        names = tuple(session.execute(_COLUMNS).keys())
        if self._found is None or self._names != names:
            self._names, self._found = names, _reflect(session.connection())
        return self._found


def mark_processed(
    session: Session, found: Found, plans: Sequence[UUID], now: datetime, run_id: UUID, *still: sa.ColumnElement[bool]
) -> list[UUID]:
    """Mark these plans as processed, those for which `still` is true, and add a row to the history of each.

    That row names us and the run, so that license-manager's admin shows who did it. `found` is what `look` has found.
    `now` is the moment of the mark, by the database's clock: it is read before the plans are, for who comes into a plan
    later is not covered by its mark. Returns the plans that are marked.
    """
    of_plans = (SubscriptionPlan.uuid.in_(plans), *still)
    update = sa.update(SubscriptionPlan).where(*of_plans).values(expiration_processed=True, modified=now)
    count = rows_changed(session, update)
    # What the UPDATE has passed over kept its own `modified`.
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
    """The value in the form of the target column: one MariaDB server can hold both forms of UUID.

    Its native type takes the 32 digits as they are.
    """
    shortened = isinstance(value.type, sa.Uuid) and not isinstance(target.type, sa.Uuid)
    return sa.func.replace(value, "-", "") if shortened else value
