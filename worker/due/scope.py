"""The inputs of every query for due work: the moment, the enterprise, the plans, the settings."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, bindparam, select
from sqlalchemy.types import TypeEngine

from worker.clock import LEEWAY
from worker.db.license_manager_tables import HistoricalLicense
from worker.db.sql import DatabaseNow, OneOf
from worker.db.transactions import Database
from worker.db.types import DjangoUUID, UTCDateTime
from worker.ledger.held import HOLD_FOR
from worker.settings import DatabaseSettings

_UUIDS = ("enterprise", "run_id")
# A plan that begins within this time protects its learners from being unlinked.
SOON = timedelta(days=1)
SECOND = timedelta(seconds=1)


@dataclass(frozen=True)
class Scope:
    """The inputs of every query for due work. All date-times are UTC.

    Plans that expired at or before `as_of` count as expired. `unlink_enabled` are the customers whose learners may be
    unlinked. `enterprise` narrows to one customer; `plan_uuids`, `expired_after` and `expired_before` (both inclusive)
    narrow to those plans. `force` includes processed plans and held licenses, except those that run `run_id` itself
    has handled. `license_history` is true if the database account may read that table. `now` is the moment at which
    protection is evaluated; None means the database's clock at the time of the query.
    """

    as_of: datetime
    unlink_after: timedelta
    unlink_enabled: frozenset[UUID]
    enterprise: UUID | None = None
    plan_uuids: tuple[UUID, ...] | None = None
    expired_after: datetime | None = None
    expired_before: datetime | None = None
    force: bool = False
    run_id: UUID | None = None
    license_history: bool = True
    now: datetime | None = None

    @cached_property
    def values(self) -> dict[str, Any]:
        """The parameters of the queries, by name."""
        mine = self.unlink_enabled if self.enterprise is None else self.unlink_enabled & {self.enterprise}
        asked = ("as_of", "enterprise", "plan_uuids", "expired_after", "expired_before", "run_id", "now")
        return {name: getattr(self, name) for name in asked} | {
            "old_before": self.as_of - self.unlink_after,
            "held_since": self.as_of - HOLD_FOR,
            "held_until": self.as_of + LEEWAY,
            "soon": self.now and self.now + SOON,
            "customers": sorted(mine),
        }

    @property
    def shape(self) -> tuple[bool, ...]:
        """The properties that change the SQL text rather than only its parameters."""
        return (self.force, self.license_history, *(value is None for value in self.values.values()))

    def __getitem__(self, name: str) -> ColumnElement[Any]:
        """Return a value as a query parameter. If `now` is not given, `now` and `soon` use the database's clock."""
        if self.now is None and name in ("now", "soon"):
            return select(DatabaseNow(SOON // SECOND if name == "soon" else 0)).scalar_subquery()
        kind: TypeEngine[Any] = DjangoUUID() if name in _UUIDS else UTCDateTime()
        return bindparam(name, self.values[name], kind)

    def lists(self, name: str, column: Any) -> ColumnElement[bool]:
        """Condition: the column is in the list `name`, "customers" or "plan_uuids"."""
        return OneOf(column, name, self.values[name])


def scope_of(
    database: Database,
    settings: DatabaseSettings,
    as_of: datetime,
    asked: Any = None,
    enterprise: UUID | None = None,
    run_id: UUID | None = None,
) -> Scope:
    """Build the scope from the settings and from `asked`: a Run, a trigger's Request, or None for no narrowing.

    Raises Unavailable if the database stays unreachable.
    """
    narrowed: dict[str, Any] = {}
    if asked is not None:
        narrowed = {name: getattr(asked, name) for name in ("expired_after", "expired_before", "force")}
        narrowed["plan_uuids"] = None if asked.plan_uuids is None else tuple(UUID(str(it)) for it in asked.plan_uuids)
    return Scope(
        as_of=as_of,
        unlink_after=timedelta(days=settings.UNLINK_AFTER_DAYS),
        unlink_enabled=settings.CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED,
        enterprise=enterprise,
        run_id=run_id,
        license_history=database.may_read(HistoricalLicense),
        **narrowed,
    )
