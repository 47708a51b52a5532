"""The LMS has a throttle for each call: the ledger books those of all workers, so that none meets it."""

from collections.abc import Mapping
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
# What an unlink asks before it, it books with it.
_ROWS = {"downgrade": 1, "unlink": 2, "learners": 2}
_SETTINGS = {1: "LMS_DOWNGRADES_PER_MINUTE", 2: "LMS_UNLINKS_PER_MINUTE"}


def book_next_call(database: Database, calls_per_minute: Mapping[str, float | None], kind: str, within: float) -> float:
    """Book the next LMS call of this kind of all workers; return the seconds to wait for it, 0 without a limit.

    Raises Postponed, and books nothing, when it may not begin `within` so many seconds, or two intervals of the rate.
    Raises Unusable when the row is gone by which calls are booked; and as `transact` does.
    """
    per_minute = calls_per_minute.get(kind)
    if not per_minute:
        return 0.0
    number = _ROWS[kind]
    interval = timedelta(minutes=1 / per_minute)
    within = max(within, 2 * interval.total_seconds())

    def work(session: Session) -> float:
        found = select(Throttle.next_call_at, DatabaseNow()).where(Throttle.id == number).with_for_update()
        row = session.execute(found).one_or_none()
        if row is None:
            table = Throttle.__tablename__
            remedy = f"INSERT INTO {table} (id, next_call_at) VALUES ({number}, '2000-01-01 00:00:00')"  # noqa: S608
            raise Unusable(f"the ledger's table {table} has lost its row, by which LMS calls are booked", remedy)
        booked, now = row
        farthest = now + LEEWAY + BOOKED * interval  # what is booked for later, was so by a clock that was wrong
        slot = max(booked, now) if booked <= farthest else now
        seconds = float((slot - now).total_seconds())
        if seconds <= within:
            following = update(Throttle).where(Throttle.id == number)
            session.execute(following.values(next_call_at=slot + interval))
        return seconds

    seconds = database.transact(work)
    if seconds > within:
        what = f"{_SETTINGS[number]} is {per_minute:g}, and others call first"
        raise Postponed("booked", what, "", seconds)
    return seconds
