"""How often, and how many at once, all workers together may call the LMS."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from math import inf
from typing import Any
from uuid import UUID

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from worker.clock import LEEWAY, steady
from worker.db.ledger_tables import Run, Throttle
from worker.db.sql import DatabaseNow
from worker.db.transactions import Database
from worker.errors import Postponed, Unusable

# More calls than all workers together have booked at once.
BOOKED = 1000
# What an unlink asks before it, it books with it.
_ROWS = {"downgrade": 1, "unlink": 2, "learners": 2}
_SETTINGS = {1: "LMS_DOWNGRADES_PER_MINUTE", 2: "LMS_UNLINKS_PER_MINUTE"}
# How often a run that has slots looks whether others need them, or have left some; and one that waits for its first.
LOOK_SECONDS = 1.0
FIRST_SECONDS, LONGEST_SECONDS = 0.05, 0.5
_HELD = (
    select(Run.id, Run.slots)
    .where(Run.slots.is_not(None), Run.lease_until >= DatabaseNow())
    .order_by(Run.queued_at, Run.id)
)


def entitled(place: int, runs: int, limit: int) -> int:
    """Slots due to the run at this place of the queue, from 0, when `runs` runs share them: equal parts."""
    return limit // runs + (place < limit % runs)


def _held(session: Session) -> Any:
    return session.connection().execute(_HELD).all()


class Slots:
    """How many LMS calls one claim may have in flight, so that all workers together have at most `limit`.

    A claim writes the slots that it takes into its run's row, commits, and then reads all rows. It uses them only after
    such a reading whose sum is within the limit: of two claims that take the last slot at the same moment, the later
    commit sees both. A sum above the limit, or a run without a slot, tells those that have more than their equal part
    to give some back. Runs beyond the limit wait in the order of the queue. A run whose lease has lapsed does not
    count: no call of its worker is in flight then.
    """

    def __init__(self, database: Database, limit: int, run_id: UUID, write: Callable[[int], None]) -> None:
        """Take the slots of a claim that has just taken one. `write` sets another number in its run's row."""
        self._database, self._limit, self._run_id, self._write = database, limit, run_id, write
        self._taken = 1
        self.usable: int | None = None  # before the first look
        self._again, self._wait = -inf, FIRST_SECONDS

    @property
    def seconds(self) -> float:
        """Seconds until the next look is due; 0 or less when it is."""
        return self._again - steady()

    def look(self, wants: int, in_flight: int) -> None:
        """Take what this run may have of the slots that it wants; give back what others need. Sets `usable`.

        It never takes more than the limit. `in_flight` calls of it are on their way: their slots are kept. A run that
        wants none keeps one, until it has found that nothing is left. Raises what `write` raises, and as `transact`.
        """
        wants, self.usable = max(1, min(wants, self._limit)), self.usable or 0
        if self._share(wants, in_flight):
            self._share(wants, in_flight)  # what was taken just now is usable once it was seen beside the others'
        if self.usable:
            content = self._taken == self.usable == wants == 1
            self._again, self._wait = inf if content else steady() + LOOK_SECONDS, FIRST_SECONDS
        else:
            self._take(in_flight)  # so that two that wait do not keep each other from the last slot
            self._again, self._wait = steady() + self._wait, min(2 * self._wait, LONGEST_SECONDS)

    def _share(self, wants: int, in_flight: int) -> bool:
        """Read what all have, and change this run's part; return whether it has taken more."""
        held: dict[UUID, int] = dict(self._database.transact(_held))
        if self._run_id not in held:  # the lease has lapsed: whether the run is still ours, its renewal will tell
            self.usable = 0
            return False
        spare, waiting = self._limit - sum(held.values()), 0 in held.values()
        if spare >= 0:
            self.usable = self._taken
        part = entitled(list(held).index(self._run_id), len(held), self._limit)
        most = part if waiting or spare < 0 else max(part, self._taken + spare)
        if waiting:
            most = min(most, max(self._taken, self._taken + spare))
        return self._take(max(min(wants, most), in_flight))

    def _take(self, count: int) -> bool:
        before = self._taken
        if count != before:
            self._write(count)
            self._taken, self.usable = count, min(self.usable or 0, count)
        return count > before


def book_next_call(database: Database, calls_per_minute: Mapping[str, float | None], kind: str, within: float) -> float:
    """Book the next LMS call of this kind of all workers; return the seconds to wait for it, 0 without a limit.

    Raises Postponed, and books nothing, when it may not begin within `within` seconds, or two intervals of the rate.
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
