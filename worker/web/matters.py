"""Reads the present problems, by cause: failed enterprises, waits, held licenses. Fixed problems are not among them.

The first page shows them, and the metrics count the failed enterprises.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import case, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from worker.db.ledger_tables import Heartbeat, HeldLicense, Night, Run, Wait
from worker.db.sql import DatabaseNow
from worker.db.transactions import Database
from worker.due.enterprises import names_of
from worker.errors import Unusable
from worker.ledger import order, runs, waits
from worker.web.history import MONTH, Names, NightSummary, nights_since, read_once
from worker.web.words import NEEDS_APPROVAL, reason_of

# Beat sends `reconcile` every 5 minutes, so after this time it has failed 3 times.
SILENT = timedelta(minutes=16)
MOST_NAMED = 10
# Reasons to wait that are no problem.
_IN_ORDER = ("booked",)


@dataclass(frozen=True)
class Failed:
    """An enterprise whose newest ended run failed or was abandoned: that run, and the id of its live run, if any."""

    run_id: UUID
    enterprise: UUID
    phase: str
    error: str | None
    ended_at: datetime | None
    live: UUID | None

    @property
    def reason(self) -> str:
        """The reason code of the failure."""
        return reason_of(self.phase, self.error)


@dataclass(frozen=True)
class Waiting:
    """The runs that wait for one reason: how many, and when the first is retried and when the first fails (UTC)."""

    reason: str
    runs: int
    again_at: datetime
    gives_up_at: datetime | None


@dataclass(frozen=True)
class Overview:
    """The present problems, and the nights of a month, newest first.

    `failed` is by reason, the most frequent first; `held` has rows (step, reason, licenses, enterprises); `lost` is
    how many runs have lost their worker. `names` are those of the first MOST_NAMED enterprises of each reason.
    """

    now: datetime
    reconciled_at: datetime
    nights: Sequence[NightSummary]
    failed: dict[str, list[Failed]]
    held: Sequence[Any]
    live: int
    live_since: datetime | None
    lost: int
    waiting: Sequence[Waiting]
    outage: Wait | None
    pause: Wait | None
    names: Names = field(repr=False)

    @property
    def silent(self) -> bool:
        """True if `reconcile` has not succeeded for SILENT: beat, the broker or all workers are down."""
        return self.now - self.reconciled_at > SILENT

    @property
    def failed_runs(self) -> int:
        """The number of failed enterprises, without those that need approval."""
        return sum(len(failed) for reason, failed in self.failed.items() if reason != NEEDS_APPROVAL)

    @property
    def troubled_waits(self) -> list[Waiting]:
        """The waits of single runs, without those that all runs share."""
        common = {*_IN_ORDER, waits.PAUSED, self.outage.reason if self.outage else ""}
        return [waiting for waiting in self.waiting if waiting.reason not in common]

    @property
    def is_bad(self) -> bool:
        """True if something needs fixing."""
        return bool(self.silent or self.outage or self.failed_runs)

    @property
    def is_noteworthy(self) -> bool:
        """True if an operator should know of something, such as held licenses, a pause or a needed approval."""
        return bool(self.failed or self.held or self.pause or self.lost or self.troubled_waits)

    def waiting_for(self, *reasons: str) -> int:
        """Return how many runs wait for one of these reasons."""
        return sum(waiting.runs for waiting in self.waiting if waiting.reason in reasons)

    def gives_up_at(self, reason: str) -> datetime | None:
        """Return when the first run that waits for this reason fails (UTC)."""
        return next((waiting.gives_up_at for waiting in self.waiting if waiting.reason == reason), None)


def overview(database: Database) -> Overview:
    """Read the present problems, and the nights of the last month. Raises Unavailable, Unusable."""

    def work(session: Session) -> Overview:
        beat = session.execute(select(Heartbeat.reconciled_at, DatabaseNow())).one_or_none()
        if beat is None:
            what = f"the ledger's table {Heartbeat.__tablename__} has lost its row"
            raise Unusable(what, "start beat and a worker: they write the row again")
        reconciled_at, now = beat
        failed = by_reason(failed_enterprises(session, now))
        enterprises = func.count(HeldLicense.enterprise_customer_uuid.distinct())
        held = select(HeldLicense.step, HeldLicense.reason, func.count(), enterprises)
        held = held.group_by(HeldLicense.step, HeldLicense.reason)
        lost = func.sum(case((Run.owner.is_not(None) & (Run.lease_until < DatabaseNow()), 1), else_=0))
        live = select(func.count(), func.min(Run.opened_at), lost).where(Run.live.is_not(None))
        number, since, without_worker = session.execute(live).one()
        stand = {wait.kind: wait for wait, _ in waits.standing(session)}
        named = [found.enterprise for of_reason in failed.values() for found in of_reason[:MOST_NAMED]]
        return Overview(
            now=now,
            reconciled_at=reconciled_at,
            nights=nights_since(session, now - MONTH),
            failed=failed,
            held=session.execute(held.order_by(func.count().desc())).all(),
            live=number,
            live_since=since,
            lost=int(without_worker or 0),
            waiting=_waiting(session),
            outage=stand.get(waits.OUTAGE),
            pause=stand.get(waits.PAUSE),
            names=names_of(session, named),
        )

    return read_once(database, work)


def failed_enterprises(session: Session, now: datetime) -> list[Failed]:
    """Return the enterprises whose newest ended run failed or was abandoned in the last month, newest first.

    Ignores dry runs. An enterprise without a run in the newest night had nothing due then, and is no longer failed.
    """
    whole = select(func.max(Night.opened_at)).where(Night.tries > 0, Night.lease_until.is_(None))
    since = max(now - MONTH, session.scalar(whole) or now - MONTH)
    later, live = aliased(Run), aliased(Run)
    newer = exists().where(
        later.enterprise_customer_uuid == Run.enterprise_customer_uuid,
        later.opened_at > Run.opened_at,
        later.dry_run.is_(False),
        later.live.is_(None),
    )
    going = select(live.id).where(live.live == Run.enterprise_customer_uuid, live.dry_run.is_(False)).scalar_subquery()
    columns = (Run.id, Run.enterprise_customer_uuid, Run.phase, Run.error, Run.ended_at, going.label("going"))
    bad = select(*columns).where(Run.phase.in_(order.WENT_WRONG), Run.dry_run.is_(False))
    bad = bad.where(Run.opened_at >= now - MONTH, ~newer, or_(Run.opened_at >= since, going.is_not(None)))
    return [Failed(*row) for row in session.execute(bad.order_by(Run.opened_at.desc(), Run.id))]


def by_reason(failed: Sequence[Failed]) -> dict[str, list[Failed]]:
    """Group these enterprises by the reason of their failure, the most frequent first."""
    found: dict[str, list[Failed]] = {}
    for one in failed:
        found.setdefault(one.reason, []).append(one)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def _waiting(session: Session) -> list[Waiting]:
    columns = (func.count(), func.min(Run.queued_at), func.min(Run.gives_up_at))
    found = session.execute(select(Run.waits_for, *columns).where(*runs.WAITING).group_by(Run.waits_for))
    waiting = [Waiting(str(reason), count, again_at, until) for reason, count, again_at, until in found]
    return sorted(waiting, key=lambda one: -one.runs)
