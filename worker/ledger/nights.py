"""Scheduled nights: each is begun once, by whoever comes first, and a missed one is found and run late.

A night is begun by inserting its row: the primary key decides between two beats, a beat and `reconcile`, or a
message that came twice. It has a lease until all of its runs are opened, as a run has.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import and_, delete, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from worker.clock import LEEWAY
from worker.db.ledger_tables import Heartbeat, Night, Run
from worker.db.sql import DatabaseNow, changed
from worker.db.transactions import Database

NIGHT_LEASE_SECONDS = 300
MAX_TRIES = 6
_ABANDONED = (Night.lease_until < DatabaseNow(), Night.tries < MAX_TRIES)


def begin(database: Database, scheduled_for: datetime) -> bool:
    """Begin the night of this moment; return whether this call may open its runs.

    True if the night is new; if its lease has lapsed (at most MAX_TRIES times); or if it was only recorded by
    `note_and_find_overdue` as the baseline of a new ledger.
    """
    row = {"scheduled_for": scheduled_for, "opened_at": DatabaseNow(), "lease_until": DatabaseNow(NIGHT_LEASE_SECONDS)}
    try:
        database.transact(lambda session: session.execute(insert(Night).values(row | {"tries": 1})))
        return True
    except IntegrityError:
        again = update(Night).where(Night.scheduled_for == scheduled_for, or_(and_(*_ABANDONED), Night.tries == 0))
        again = again.values(tries=Night.tries + 1, lease_until=DatabaseNow(NIGHT_LEASE_SECONDS))
        return database.transact(lambda session: changed(session, again))


def opened(database: Database, scheduled_for: datetime) -> None:
    """Record that all runs of this night are opened."""
    _set_lease(database, scheduled_for, None)


def give_back(database: Database, scheduled_for: datetime) -> None:
    """Let anybody resume this night: not all of its runs could be opened."""
    _set_lease(database, scheduled_for, DatabaseNow(-1))


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
        if not changed(session, update(Heartbeat).values(reconciled_at=DatabaseNow())):  # a table that was emptied
            session.execute(insert(Heartbeat).values(id=1, reconciled_at=DatabaseNow()))

    database.transact(work)


def note_and_find_overdue(database: Database, latest: datetime) -> list[datetime]:
    """Find the nights whose runs may still have to be opened: abandoned ones, and the `latest` scheduled one if missed.

    Missed is one that is later than all that are known, so that a changed schedule does not look back. A ledger that
    knows no night is new: the latest one is then recorded, with no tries, as its baseline. Nights of the future, which
    a wrong clock has begun, are dropped: they are still to come.
    """

    def work(session: Session) -> list[datetime]:
        session.execute(delete(Night).where(Night.scheduled_for > DatabaseNow(LEEWAY // timedelta(seconds=1))))
        found = list(session.scalars(select(Night.scheduled_for).where(*_ABANDONED)))
        newest = session.scalar(select(func.max(Night.scheduled_for)))
        if newest is None:
            session.execute(insert(Night).values(scheduled_for=latest, opened_at=DatabaseNow(), tries=0))
        return [*found, latest] if newest and newest < latest else found

    try:
        return database.transact(work)
    except IntegrityError:  # another has just recorded it
        return []


def _set_lease(database: Database, scheduled_for: datetime, until: DatabaseNow | None) -> None:
    night = update(Night).where(Night.scheduled_for == scheduled_for)
    database.transact(lambda session: session.execute(night.values(lease_until=until)))
