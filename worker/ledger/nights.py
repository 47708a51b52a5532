"""Scheduled nights: each is begun once, by whoever comes first, and a missed one is found and run late.

One that a pause holds back is noted: its row has no tries, and a lease that has lapsed. After the pause the newest of
these is begun; older ones are passed over, and so is one with a later night.

A night is begun by inserting its row: the primary key decides between two beats, a beat and `reconcile`, or a
message that came twice. It has a lease until all of its runs are opened, as a run has.
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
PASSED_OVER = -1  # its `tries`
HELD_BACK = and_(Night.tries == 0, Night.lease_until.is_not(None))
_ABANDONED = (Night.lease_until < DatabaseNow(), Night.tries < MAX_TRIES)


def begin(database: Database, scheduled_for: datetime) -> bool:
    """Begin the night of this moment; return whether this call may open its runs.

    True if the night is new; if its lease has lapsed (at most MAX_TRIES times); or if it was only recorded, by
    `note` or as the baseline of a new ledger.
    """
    row = {"scheduled_for": scheduled_for, "opened_at": DatabaseNow(), "lease_until": DatabaseNow(NIGHT_LEASE_SECONDS)}
    try:
        database.transact(lambda session: session.execute(insert(Night).values(row | {"tries": 1})))
        return True
    except IntegrityError:
        again = update(Night).where(Night.scheduled_for == scheduled_for, or_(and_(*_ABANDONED), Night.tries == 0))
        # Stands before `tries` in the table: MySQL sets one column after the other.
        opened_at = case((Night.tries == 0, DatabaseNow()), else_=Night.opened_at)
        values = {"opened_at": opened_at, "lease_until": DatabaseNow(NIGHT_LEASE_SECONDS), "tries": Night.tries + 1}
        again = again.values(values)
        return database.transact(lambda session: changed(session, again))


def opened(database: Database, scheduled_for: datetime) -> None:
    """Record that all runs of this night are opened."""
    _set_lease(database, scheduled_for, None)


def give_back(database: Database, scheduled_for: datetime) -> None:
    """Let anybody resume this night: not all of its runs could be opened."""
    _set_lease(database, scheduled_for, DatabaseNow(-1))


def note(database: Database, scheduled_for: datetime) -> None:
    """Record that a pause holds this night back, unless it has begun: it is overdue from now on."""
    row = {"scheduled_for": scheduled_for, "opened_at": DatabaseNow(), "lease_until": DatabaseNow(-1), "tries": 0}
    try:
        database.transact(lambda session: session.execute(insert(Night).values(row)))
    except IntegrityError:
        known = update(Night).where(Night.scheduled_for == scheduled_for, Night.tries == 0)
        database.transact(lambda session: session.execute(known.values(lease_until=DatabaseNow(-1))))


def note_missed(database: Database, latest: datetime) -> None:
    """`note` the `latest` scheduled night if it is later than all that are known."""
    try:
        newest = database.transact(partial(_newest_known, latest=latest))
    except IntegrityError:  # another has just recorded it
        return
    if newest < latest:
        note(database, latest)


def postponed(database: Database) -> Sequence[Run]:
    """The ended runs whose enterprise is still to get the run of a night that found them live."""
    ended = select(Run).where(Run.night_after.is_not(None), Run.live.is_(None)).order_by(Run.night_after)
    return database.transact(lambda session: session.scalars(ended).all())


def not_postponed(database: Database, run_id: UUID) -> None:
    """Record that the enterprise of this run has got the run of the night that found it live, or needs none."""
    database.transact(lambda session: session.execute(update(Run).where(Run.id == run_id).values(night_after=None)))


def record_heartbeat(database: Database) -> None:
    """Record the heartbeat: `reconcile` finished, so beat is running."""

    def work(session: Session) -> None:
        beat = update(Heartbeat).where(Heartbeat.id == 1)
        if not changed(session, beat.values(reconciled_at=DatabaseNow())):  # a table that was emptied
            session.execute(insert(Heartbeat).values(id=1, reconciled_at=DatabaseNow()))

    database.transact(work)


def note_and_find_overdue(database: Database, latest: datetime) -> list[datetime]:
    """Find the nights whose runs may still have to be opened: abandoned ones, and the `latest` scheduled one if missed.

    Missed is one that is later than all that are known, so that a changed schedule does not look back. A ledger that
    knows no night is new: the latest one is then recorded, with no tries, as its baseline. Nights of the future, which
    a wrong clock has begun, are dropped: they are still to come. Of those that a pause has held back, only the newest
    is found, and only if no night is later: the others are recorded as passed over.
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
    """The newest night that is known, those of the future dropped; a new ledger's baseline is recorded first."""
    session.execute(delete(Night).where(Night.scheduled_for > DatabaseNow(LEEWAY // timedelta(seconds=1))))
    newest = session.scalar(select(func.max(Night.scheduled_for)))
    if newest is None:
        session.execute(insert(Night).values(scheduled_for=latest, opened_at=DatabaseNow(), tries=0))
    return newest or latest


def _set_lease(database: Database, scheduled_for: datetime, until: DatabaseNow | None) -> None:
    night = update(Night).where(Night.scheduled_for == scheduled_for)
    database.transact(lambda session: session.execute(night.values(lease_until=until)))
