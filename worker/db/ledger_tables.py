"""The ledger's own tables. The package `ledger` uses them; `ledger.migrations` creates and alters them."""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import JSON, Double, Index, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from worker.db.types import DjangoUUID, UTCDateTime


class Ledger(DeclarativeBase):
    """Base of the ledger's tables. Only Alembic creates and alters them. All date-times are UTC."""

    type_annotation_map: ClassVar[Any] = {UUID: DjangoUUID(), datetime: UTCDateTime()}


class Run(Ledger):
    """One pass over one enterprise.

    `live` is the enterprise's UUID until the run ends, then NULL. Its unique key allows one live run an enterprise.
    `lease_until` is the moment, by the database's clock, after which the run's holder counts as lost: its worker if
    `owner` is set, else its message in the broker. `fence` increases with each claim, `recorded` with each recorded
    outcome. Since the last recorded outcome, `publications` counts how often the chain was published again because a
    worker was lost, and `tries` how often a step failed.

    `message_number` is the number of the newest message; it can be received from `queued_at` on. While no worker has
    the run, its lease ends a fixed time after `queued_at`, or before it if no message could be sent. While the run
    waits, `waits_for` is the reason code, and `tries_left` and `gives_up_at` say when it fails if nothing changes.
    `confirmed_at` is when the LMS last answered a call of the run. `stopped_by` and `stop_reason` are set when an
    operator stops it.

    `scheduled_for` is the scheduled night of the run, NULL if started by hand. `triggered_at` is the moment of the
    trigger, the same for all runs that it opened. `as_of` is the moment for which due work is selected: when the first
    step was first claimed. `night_after` is a scheduled night that found this run live; the enterprise gets its run of
    that night after this one. `slots` is the most LMS calls that its worker may have in flight; NULL while no worker
    has it, and in a dry run. `approve_unlinks` is the number of learners that `triggered_by` has approved to unlink.
    """

    __tablename__ = "license_expiry_run"
    __table_args__ = (
        Index("license_expiry_run_enterprise", "enterprise_customer_uuid", "opened_at"),
        Index("license_expiry_run_opened", "opened_at"),
        Index("license_expiry_run_triggered_at", "triggered_at"),
        Index("license_expiry_run_scheduled_for", "scheduled_for"),
        Index("license_expiry_run_night_after", "night_after"),
        Index("license_expiry_run_slots", "slots"),
    )

    id: Mapped[UUID] = mapped_column(primary_key=True)
    enterprise_customer_uuid: Mapped[UUID]
    live: Mapped[UUID | None] = mapped_column(unique=True)
    phase: Mapped[str] = mapped_column(String(16))
    as_of: Mapped[datetime]
    dry_run: Mapped[bool]
    force: Mapped[bool]
    reason: Mapped[str | None] = mapped_column(String(255))
    triggered_by: Mapped[str | None] = mapped_column(String(255))
    approve_unlinks: Mapped[int | None]
    plan_uuids: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    expired_after: Mapped[datetime | None]
    expired_before: Mapped[datetime | None]
    owner: Mapped[str | None] = mapped_column(String(255))
    fence: Mapped[int] = mapped_column(default=0)
    lease_until: Mapped[datetime | None]
    slots: Mapped[int | None]
    publications: Mapped[int] = mapped_column(default=0)
    # Nullable in the database, because rows of older releases lack them.
    message_number: Mapped[int] = mapped_column(default=1, nullable=True)
    queued_at: Mapped[datetime] = mapped_column(nullable=True)
    tries: Mapped[int] = mapped_column(default=0, nullable=True)
    tries_left: Mapped[int | None]
    gives_up_at: Mapped[datetime | None]
    waits_for: Mapped[str | None] = mapped_column(String(64))
    retries: Mapped[int] = mapped_column(default=0)
    recorded: Mapped[int] = mapped_column(default=0)
    plans_processed: Mapped[int] = mapped_column(default=0)
    licenses_downgraded: Mapped[int] = mapped_column(default=0)
    licenses_held: Mapped[int] = mapped_column(default=0)
    learners_unlinked: Mapped[int] = mapped_column(default=0)
    learners_protected: Mapped[int] = mapped_column(default=0)
    confirmed_at: Mapped[datetime | None]
    stopped_by: Mapped[str | None] = mapped_column(String(255))
    stop_reason: Mapped[str | None] = mapped_column(String(255))
    error: Mapped[str | None] = mapped_column(String(500))
    scheduled_for: Mapped[datetime | None]
    night_after: Mapped[datetime | None]
    triggered_at: Mapped[datetime] = mapped_column(nullable=True)  # rows of older releases lack it
    opened_at: Mapped[datetime]
    downgrade_began_at: Mapped[datetime | None]
    downgraded_at: Mapped[datetime | None]
    unlink_began_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class Retry(Ledger):
    """A wait of a step: since `at`, for `reason`, retried at `again_at`; retried in vain `times` times."""

    __tablename__ = "license_expiry_retry"

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    step: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime]
    again_at: Mapped[datetime]
    times: Mapped[int] = mapped_column(default=1, nullable=True)  # rows of older releases lack it


class Wait(Ledger):
    """A wait of all runs: an outage of the LMS, or a pause; at most one row of each `kind`.

    For an outage, `again_at` is the time of the next probe, `tries` counts the failed probes, and `reason` is a code.
    For a pause, `reason` is the operator's text and `set_by` the operator.
    """

    __tablename__ = "license_expiry_wait"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    since: Mapped[datetime]
    reason: Mapped[str] = mapped_column(String(255))
    error: Mapped[str | None] = mapped_column(String(500))
    set_by: Mapped[str | None] = mapped_column(String(255))
    again_at: Mapped[datetime | None]
    tries: Mapped[int] = mapped_column(default=0)


class Identity(Ledger):
    """One row: the id of this ledger. Messages carry it, so that several installations can share one broker."""

    __tablename__ = "license_expiry_ledger"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    uuid: Mapped[UUID]


class LmsCall(Ledger):
    """The number of HTTP calls of one claim with this outcome in the histogram bucket up to `le` seconds.

    Not cumulative. For monitoring only: the calls of a process that was killed are missing.
    """

    __tablename__ = "license_expiry_lms_call"

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    step: Mapped[str] = mapped_column(String(16), primary_key=True)
    outcome: Mapped[str] = mapped_column(String(32), primary_key=True)
    le: Mapped[str] = mapped_column(String(8), primary_key=True)
    calls: Mapped[int]
    seconds: Mapped[float] = mapped_column(Double())


class Pruned(Ledger):
    """The sums of pruned runs. `series` is a counter's name and its labels' values, separated by spaces."""

    __tablename__ = "license_expiry_pruned"

    series: Mapped[str] = mapped_column(String(128), primary_key=True)
    value: Mapped[float] = mapped_column(Double())


class Downgrade(Ledger):
    """The LMS confirmed the downgrade of this license in this run; kept until its plan is processed."""

    __tablename__ = "license_expiry_downgrade"

    license_uuid: Mapped[UUID] = mapped_column(primary_key=True)
    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    enterprise_customer_uuid: Mapped[UUID] = mapped_column(index=True)
    confirmed_at: Mapped[datetime]


class HeldLicense(Ledger):
    """A license that the LMS refuses in `step`, with the reason code. It is tried again next night."""

    __tablename__ = "license_expiry_held"

    license_uuid: Mapped[UUID] = mapped_column(primary_key=True)
    enterprise_customer_uuid: Mapped[UUID] = mapped_column(index=True)
    run_id: Mapped[UUID]
    step: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(64))
    tries: Mapped[int]
    first_held_at: Mapped[datetime]
    as_of: Mapped[datetime]


class Night(Ledger):
    """A scheduled night that has begun. `lease_until` is NULL once all of its runs are opened, after `tries` tries.

    `ledger.nights` defines the meaning of `tries` 0 and -1: held back by a pause, or skipped.
    """

    __tablename__ = "license_expiry_night"

    scheduled_for: Mapped[datetime] = mapped_column(primary_key=True)
    opened_at: Mapped[datetime]
    lease_until: Mapped[datetime | None]
    tries: Mapped[int]


class Heartbeat(Ledger):
    """One row: when `reconcile`, which beat sends every 5 minutes, last succeeded; at first, when it was created."""

    __tablename__ = "license_expiry_heartbeat"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reconciled_at: Mapped[datetime]


class Throttle(Ledger):
    """Two rows: when the next downgrade call (id 1) and unlink call (id 2) of all workers may be sent."""

    __tablename__ = "license_expiry_throttle"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    next_call_at: Mapped[datetime]


class Lms(Ledger):
    """One row, from the first run on: the URL of the LMS that this database belongs to."""

    __tablename__ = "license_expiry_lms"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    url: Mapped[str] = mapped_column(String(255))
