"""Scheduled nights: each is begun once, by whoever comes first, and one that nobody began is found.

A night is begun by inserting its row: the primary key decides between two beats, a beat and `reconcile`, or a
message that came twice. It has a lease until all of its runs are opened, as a run has.
"""

from datetime import datetime

from sqlalchemy import and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from worker.db.ledger_tables import Heartbeat, Night
from worker.db.transactions import Database
from worker.db.types import DatabaseNow
from worker.ledger.confirmations import changed

LEASE_SECONDS = 300
MAX_TRIES = 6
_LET_DOWN = (Night.lease_until < DatabaseNow(), Night.tries < MAX_TRIES)


def begin(database: Database, scheduled_for: datetime) -> bool:
    """Take up the night of this moment; return whether it is ours to open its runs.

    It is when nobody has begun it, or when whoever did has let it down (MAX_TRIES times at most); and when it was only
    noted by `overdue` as before the ledger's time, but beat sends it all the same.
    """
    row = {"scheduled_for": scheduled_for, "opened_at": DatabaseNow(), "lease_until": DatabaseNow(LEASE_SECONDS)}
    try:
        database.transact(lambda session: session.execute(insert(Night).values(row | {"tries": 1})))
        return True
    except IntegrityError:
        again = update(Night).where(Night.scheduled_for == scheduled_for, or_(and_(*_LET_DOWN), Night.tries == 0))
        again = again.values(tries=Night.tries + 1, lease_until=DatabaseNow(LEASE_SECONDS))
        return database.transact(lambda session: changed(session, again))


def opened(database: Database, scheduled_for: datetime) -> None:
    """Note that all runs of this night are opened."""
    _set_lease(database, scheduled_for, None)


def let_down(database: Database, scheduled_for: datetime) -> None:
    """Let anybody take this night up again: not all of its runs could be opened."""
    _set_lease(database, scheduled_for, DatabaseNow(-1))


def reconciled(database: Database) -> None:
    """Note that `reconcile` has ended well: somebody sends it, so beat is there."""

    def work(session: Session) -> None:
        if not changed(session, update(Heartbeat).values(reconciled_at=DatabaseNow())):  # a table that was emptied
            session.execute(insert(Heartbeat).values(id=1, reconciled_at=DatabaseNow()))

    database.transact(work)


def overdue(database: Database, latest: datetime) -> list[datetime]:
    """Which nights may have runs to be opened: those let down half-way, and the `latest` scheduled one if missed.

    Missed is one that is later than all that are known, so that a changed schedule does not look back. A ledger that
    knows of none is new: the latest one is then noted, with no tries, as before its time.
    """

    def work(session: Session) -> list[datetime]:
        found = list(session.scalars(select(Night.scheduled_for).where(*_LET_DOWN)))
        newest = session.scalar(select(func.max(Night.scheduled_for)))
        if newest is None:
            session.execute(insert(Night).values(scheduled_for=latest, opened_at=DatabaseNow(), tries=0))
        return [*found, latest] if newest and newest < latest else found

    try:
        return database.transact(work)
    except IntegrityError:  # another has just noted it
        return []


def _set_lease(database: Database, scheduled_for: datetime, until: DatabaseNow | None) -> None:
    night = update(Night).where(Night.scheduled_for == scheduled_for)
    database.transact(lambda session: session.execute(night.values(lease_until=until)))
