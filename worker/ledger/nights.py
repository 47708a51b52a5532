"""Scheduled nights: each begins once; a missed night is run late.

A night begins when its row is inserted. The primary key makes it unique among two beats, beat and `reconcile`, and a
message delivered twice. Until all of its runs are opened, the night has a lease, as a run has.

A night that a pause holds back is recorded with 0 tries and a lapsed lease. After the pause only the newest of these
begins, and only if no later night has begun; the others are skipped.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

from sqlalchemy import and_, case, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from worker.clock import LEEWAY
from worker.db.ledger_tables import Heartbeat, Night, Run
from worker.db.sql import DatabaseNow, changed
from worker.db.transactions import Database

NIGHT_LEASE_SECONDS = 300
MAX_TRIES = 6
PASSED_OVER = -1  # `tries` of a night that is skipped
HELD_BACK = and_(Night.tries == 0, Night.lease_until.is_not(None))
_ABANDONED = (Night.lease_until < DatabaseNow(), Night.tries < MAX_TRIES)


def begin(database: Database, scheduled_for: datetime) -> bool:
    """Begin the night of this moment (UTC); return whether this call may open its runs.

    True if the night is new; if its lease has lapsed (at most MAX_TRIES times); or if it was only recorded, by
    `note` or as the baseline of a new ledger.
    """
    row = {"scheduled_for": scheduled_for, "opened_at": DatabaseNow(), "lease_until": DatabaseNow(NIGHT_LEASE_SECONDS)}
    try:
        database.transact(lambda session: session.execute(insert(Night).values(row | {"tries": 1})))
        return True
    except IntegrityError:
        again = update(Night).where(Night.scheduled_for == scheduled_for, or_(and_(*_ABANDONED), Night.tries == 0))
        # `opened_at` precedes `tries` in the table: MySQL assigns columns in that order.
        opened_at = case((Night.tries == 0, DatabaseNow()), else_=Night.opened_at)
        values = {"opened_at": opened_at, "lease_until": DatabaseNow(NIGHT_LEASE_SECONDS), "tries": Night.tries + 1}
        again = again.values(values)
        return database.transact(lambda session: changed(session, again))


def opened(database: Database, scheduled_for: datetime) -> None:
    """Record that all runs of this night are opened."""
    _set_lease(database, scheduled_for, None)


def give_back(database: Database, scheduled_for: datetime) -> None:
    """Let the lease of this night lapse, so that it is resumed: not all of its runs could be opened."""
    _set_lease(database, scheduled_for, DatabaseNow(-1))


def note(database: Database, scheduled_for: datetime) -> None:
    """Record that a pause holds this night back, unless it has begun. It is overdue from now on."""
    row = {"scheduled_for": scheduled_for, "opened_at": DatabaseNow(), "lease_until": DatabaseNow(-1), "tries": 0}
    try:
        database.transact(lambda session: session.execute(insert(Night).values(row)))
    except IntegrityError:
        known = update(Night).where(Night.scheduled_for == scheduled_for, Night.tries == 0)
        database.transact(lambda session: session.execute(known.values(lease_until=DatabaseNow(-1))))


def note_missed(database: Database, latest: datetime) -> None:
    """`note` the `latest` scheduled night if no later or equal one is recorded."""
    try:
        newest = database.transact(partial(_newest_known, latest=latest))
    except IntegrityError:  # another has just recorded it
        return
    if newest < latest:
        note(database, latest)


def postponed(database: Database) -> Sequence[Run]:
    """Return the ended runs that a night found live: their enterprises still need a run of that night."""
    ended = select(Run).where(Run.night_after.is_not(None), Run.live.is_(None)).order_by(Run.night_after)
    return database.transact(lambda session: session.scalars(ended).all())


def not_postponed(database: Database, run_id: UUID) -> None:
    """Record that the enterprise of this run has its run of the night that found it live, or needs none."""
    database.transact(lambda session: session.execute(update(Run).where(Run.id == run_id).values(night_after=None)))


def record_heartbeat(database: Database) -> None:
    """Record the heartbeat: `reconcile` finished, so beat is running."""

    def work(session: Session) -> None:
        beat = update(Heartbeat).where(Heartbeat.id == 1)
        if not changed(session, beat.values(reconciled_at=DatabaseNow())):  # somebody emptied the table
            session.execute(insert(Heartbeat).values(id=1, reconciled_at=DatabaseNow()))

    database.transact(work)


def note_and_find_overdue(database: Database, latest: datetime) -> list[datetime]:
    """Return the nights to begin or resume: abandoned ones, and the `latest` scheduled one if it was missed.

    The latest night is missed if it is later than every recorded one; so a changed schedule starts no past night.
    A ledger without nights is new: the latest night is recorded as its baseline, with 0 tries. Nights in the future,
    begun with a wrong clock, are deleted. Of the nights that a pause held back, only the newest is returned, and only
    if no later one is recorded; the others are marked as skipped.
    """

    def work(session: Session) -> list[datetime]:
        newest = _newest_known(session, latest)
        older = update(Night).where(HELD_BACK, Night.scheduled_for < max(newest, latest))
        session.execute(older.values(tries=PASSED_OVER, lease_until=None))
        found = list(session.scalars(select(Night.scheduled_for).where(*_ABANDONED)))
        return [*found, latest] if newest < latest else found

    try:
        return database.transact(work)
    except IntegrityError:  # another has just recorded it
        return []


def _newest_known(session: Session, latest: datetime) -> datetime:
    """Return the newest recorded night. Deletes nights in the future; records `latest` as a new ledger's baseline."""
    session.execute(delete(Night).where(Night.scheduled_for > DatabaseNow(LEEWAY // timedelta(seconds=1))))
    newest = session.scalar(select(func.max(Night.scheduled_for)))
    if newest is None:
        session.execute(insert(Night).values(scheduled_for=latest, opened_at=DatabaseNow(), tries=0))
    return newest or latest


def _set_lease(database: Database, scheduled_for: datetime, until: DatabaseNow | None) -> None:
    night = update(Night).where(Night.scheduled_for == scheduled_for)
    database.transact(lambda session: session.execute(night.values(lease_until=until)))
