"""LMS_REQUESTS_PER_MINUTE: the ledger books each LMS call of all workers."""

from datetime import timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from worker.clock import LEEWAY
from worker.db.ledger_tables import Throttle
from worker.db.sql import DatabaseNow
from worker.db.transactions import Database
from worker.errors import Postponed, Unusable

# More calls than all workers together have booked at once.
BOOKED = 1000


def book_next_call(database: Database, per_minute: float | None, within: float) -> float:
    """Book the next LMS call of all workers; return the seconds to wait for it, 0 without a limit.

    Raises Postponed, and books nothing, when it may not begin `within` so many seconds; Unusable when the row is gone
    by which calls are booked; and as `transact` does.
    """
    if not per_minute:
        return 0.0
    interval = timedelta(minutes=1 / per_minute)

    def work(session: Session) -> float:
        found = select(Throttle.next_call_at, DatabaseNow()).where(Throttle.id == 1).with_for_update()
        row = session.execute(found).one_or_none()
        if row is None:
            table = Throttle.__tablename__
            remedy = f"INSERT INTO {table} (id, next_call_at) VALUES (1, '2000-01-01 00:00:00')"  # noqa: S608
            raise Unusable(f"the ledger's table {table} has lost its row, by which LMS calls are booked", remedy)
        booked, now = row
        farthest = now + LEEWAY + BOOKED * interval  # what is booked for later, was so by a clock that was wrong
        slot = max(booked, now) if booked <= farthest else now
        seconds = float((slot - now).total_seconds())
        if seconds <= within:
            following = update(Throttle).where(Throttle.id == 1)
            session.execute(following.values(next_call_at=slot + interval))
        return seconds

    seconds = database.transact(work)
    if seconds > within:
        raise Postponed("booked", f"LMS_REQUESTS_PER_MINUTE is {per_minute:g}, and others call first", "", seconds)
    return seconds
