"""The ledger's own tables. `ledger` says what they are for; `ledger.migrations` makes and changes them."""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import JSON, Double, Index, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from worker.db.types import DjangoUUID, UTCDateTime


class Ledger(DeclarativeBase):
    """Tables of our own, made and changed by Alembic alone."""

    type_annotation_map: ClassVar[Any] = {UUID: DjangoUUID(), datetime: UTCDateTime()}


class Run(Ledger):
    """One pass over one enterprise.

    `live` holds the enterprise's UUID while the run has not ended and NULL after: its unique key is what
    makes the live run the only one. `lease_until` is the moment, by the database's clock, after which
    whoever has the run (a worker while `owner` is set, the broker while it is not) counts as lost.
    `fence` rises with each claim, `recorded` with each outcome that is recorded. Since then, `publications` counts how
    often the rest of the chain was published anew because a worker was lost, and `tries` how often a step failed.

    `message_number` is that of its newest message, and `queued_at` the moment from which this can be received; while
    nobody has the run its lease ends a fixed time after that, or before it when no message could be sent. While it
    waits, `waits_for` is the reason code; `tries_left` and `gives_up_at` tell when it fails if nothing changes.
    `confirmed_at` is when the LMS last answered a call of it. `stopped_by` and `stop_reason` are set once it is to end.

    `scheduled_for` is the scheduled night that it is of. `triggered_at` is the moment of the trigger, the same for all
    runs that it opened; `as_of` the moment that the run judges by: when its first step was first claimed. `night_after`
    is a scheduled night that found this run live, and for which its enterprise gets a run of its own after it.
    `slots` is how many LMS calls its worker has in flight at most; NULL while no worker has it, and in a dry run.
    `approve_unlinks` is how many learners it may unlink with the leave of `triggered_by`, where that is more than
    UNLINK_LIMIT.
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
    message_number: Mapped[int] = mapped_column(default=1, nullable=True)  # to the database, which had rows before it
    queued_at: Mapped[datetime] = mapped_column(nullable=True)  # as the one before
    tries: Mapped[int] = mapped_column(default=0, nullable=True)  # as these
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
    triggered_at: Mapped[datetime] = mapped_column(nullable=True)  # to the database, which had rows before it
    opened_at: Mapped[datetime]
    downgrade_began_at: Mapped[datetime | None]
    downgraded_at: Mapped[datetime | None]
    unlink_began_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]


class Retry(Ledger):
    """A step that waits: since when and for what, when it is to come again, and how many times it did so in vain."""

    __tablename__ = "license_expiry_retry"

    run_id: Mapped[UUID] = mapped_column(primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    step: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime]
    again_at: Mapped[datetime]
    times: Mapped[int] = mapped_column(default=1, nullable=True)  # to the database, which had rows before it


class Wait(Ledger):
    """What every run waits for: an outage of the LMS, or a pause; there is one row of each `kind` at most.

    `again_at` is the moment of an outage's next probe, `tries` counts those that failed, and `reason` is a code. Of a
    pause, `reason` is the one that `set_by` gave.
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
    """One row: the id of this ledger, which messages carry. It tells the installations on one broker apart."""

    __tablename__ = "license_expiry_ledger"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    uuid: Mapped[UUID]


class LmsCall(Ledger):
    """How many HTTP calls of one claim had this outcome, and lasted up to `le` seconds but longer than the `le` before.

    For monitoring alone: those of a process that was killed are not here.
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
    """What the pruned runs sum up to: a counter's name and the values of its labels, with spaces, and its value."""

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
    """The LMS refuses this one license; it is set aside and tried again next night."""

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
    """A scheduled night that has begun; `lease_until` is set until all of its runs are opened, in `tries` tries.

    `ledger.nights` tells what else `tries` of 0 and less mean.
    """

    __tablename__ = "license_expiry_night"

    scheduled_for: Mapped[datetime] = mapped_column(primary_key=True)
    opened_at: Mapped[datetime]
    lease_until: Mapped[datetime | None]
    tries: Mapped[int]


class Heartbeat(Ledger):
    """One row: when `reconcile`, which beat sends every few minutes, last ended well; at first, when it was made."""

    __tablename__ = "license_expiry_heartbeat"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reconciled_at: Mapped[datetime]


class Throttle(Ledger):
    """Two rows: when the next downgrade call (1), and unlink call (2), of all workers may go out."""

    __tablename__ = "license_expiry_throttle"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    next_call_at: Mapped[datetime]


class Lms(Ledger):
    """One row, from the first run on: the address of the LMS that this database belongs to."""

    __tablename__ = "license_expiry_lms"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    url: Mapped[str] = mapped_column(String(255))
