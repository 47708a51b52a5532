"""What a night or a run judges by."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any
from uuid import UUID

from sqlalchemy import BindParameter, bindparam
from sqlalchemy.types import TypeEngine

from worker.db.types import DjangoUUID, UTCDateTime
from worker.settings import DatabaseSettings

# A held license is tried again next night: longer than a repeat by hand, shorter than any two nights are apart.
HOLD = timedelta(hours=12)
_UUIDS = ("customers", "enterprise", "plan_uuids", "run_id")
_LISTS = ("customers", "plan_uuids")


@dataclass(frozen=True)
class Scope:
    """What a night or a run judges by.

    `unlink_enabled` is the list of customers whose learners may be unlinked; `enterprise` narrows to one customer;
    `plan_uuids`, `expired_after` and `expired_before` (both inclusive) narrow to those plans; `force` takes processed
    plans and held licenses again, but for what run `run_id` itself has done.
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

    @cached_property
    def values(self) -> dict[str, Any]:
        """What a query asks of it, by the names of the query's parameters."""
        mine = self.unlink_enabled if self.enterprise is None else self.unlink_enabled & {self.enterprise}
        return {
            "as_of": self.as_of,
            "old_before": self.as_of - self.unlink_after,
            "held_since": self.as_of - HOLD,
            "customers": sorted(mine),
            "enterprise": self.enterprise,
            "plan_uuids": self.plan_uuids,
            "expired_after": self.expired_after,
            "expired_before": self.expired_before,
            "run_id": self.run_id,
        }

    @property
    def shape(self) -> tuple[bool, ...]:
        """What of it makes another query, and not the same one with other parameters."""
        return (self.force, *(value is None for value in self.values.values()))

    def __getitem__(self, name: str) -> BindParameter[Any]:
        """One of its values as a query's parameter."""
        kind: TypeEngine[Any] = DjangoUUID() if name in _UUIDS else UTCDateTime()
        return bindparam(name, self.values[name], kind, expanding=name in _LISTS)


def scope_of(
    settings: DatabaseSettings, asked: Any, as_of: datetime, enterprise: UUID | None, run_id: UUID | None = None
) -> Scope:
    """What is judged by: the settings, and what was asked for (a Run, or a trigger's Request)."""
    return Scope(
        as_of=as_of,
        unlink_after=timedelta(days=settings.UNLINK_AFTER_DAYS),
        unlink_enabled=settings.CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED,
        enterprise=enterprise,
        plan_uuids=None if asked.plan_uuids is None else tuple(UUID(str(uuid)) for uuid in asked.plan_uuids),
        expired_after=asked.expired_after,
        expired_before=asked.expired_before,
        force=asked.force,
        run_id=run_id,
    )
