"""What a night or a run judges by."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from worker.settings import DatabaseSettings


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
