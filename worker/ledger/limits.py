"""Limits how often, and how many at once, all workers together call the LMS."""

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

# More than the number of calls that all workers together can have booked at once.
BOOKED = 1000
# The address lookup before an unlink shares the unlink's limit.
_ROWS = {"downgrade": 1, "unlink": 2, "learners": 2}
_SETTINGS = {1: "LMS_DOWNGRADES_PER_MINUTE", 2: "LMS_UNLINKS_PER_MINUTE"}
# Seconds between two looks of a run with slots, whether other runs need some or have left some; and of a run without.
LOOK_SECONDS = 1.0
FIRST_SECONDS, LONGEST_SECONDS = 0.05, 0.5
_HELD = (
    select(Run.id, Run.slots)
    .where(Run.slots.is_not(None), Run.lease_until >= DatabaseNow())
    .order_by(Run.queued_at, Run.id)
)


def entitled(place: int, runs: int, limit: int) -> int:
    """Return the slots of the run at this place of the queue (from 0) if `runs` runs share them in equal parts."""
    return limit // runs + (place < limit % runs)


def _held(session: Session) -> Any:
    return session.connection().execute(_HELD).all()


class Slots:
    """The LMS calls that one claim may have in flight, so that all workers together have at most `limit`.

    A claim writes the slots that it takes into its run's row, commits, and then reads all rows. It uses the slots only
    if the sum it reads is within the limit: if two claims take the last slot at once, the later commit sees both. If
    the sum exceeds the limit, or a run has no slot, claims with more than their equal part give some back. Runs beyond
    the limit wait in the order of the queue. A run whose lease has lapsed does not count: its worker has no call in
    flight then.
    """

    def __init__(self, database: Database, limit: int, run_id: UUID, write: Callable[[int], None]) -> None:
        """Manage the slots of a claim that has just taken one. `write` sets their number in the run's row."""
        self._database, self._limit, self._run_id, self._write = database, limit, run_id, write
        self._taken = 1
        self.usable: int | None = None  # before the first look
        self._again, self._wait = -inf, FIRST_SECONDS

    @property
    def seconds(self) -> float:
        """Seconds until the next look is due; 0 or less if it is due now."""
        return self._again - steady()

    def look(self, wants: int, in_flight: int) -> None:
        """Take as many of the wanted slots as this run may have; give back those that others need. Sets `usable`.

        Never takes more than the limit. Keeps the slots of the `in_flight` calls. A run that wants none keeps one slot
        until it has found that nothing is left. Raises as `write` and as `transact`.
        """
        wants, self.usable = max(1, min(wants, self._limit)), self.usable or 0
        if self._share(wants, in_flight):
            self._share(wants, in_flight)  # slots just taken are usable after a read together with the others'
        if self.usable:
            content = self._taken == self.usable == wants == 1
            self._again, self._wait = inf if content else steady() + LOOK_SECONDS, FIRST_SECONDS
        else:
            self._take(in_flight)  # else two waiting runs could keep each other from the last slot
            self._again, self._wait = steady() + self._wait, min(2 * self._wait, LONGEST_SECONDS)

    def _share(self, wants: int, in_flight: int) -> bool:
        """Read the slots of all runs and change this run's; return whether it has taken more."""
        held: dict[UUID, int] = dict(self._database.transact(_held))
        if self._run_id not in held:  # the lease has lapsed; its renewal finds out whether the run is still ours
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
    """Book the next LMS call of this kind for all workers; return the seconds to wait for it, 0 without a limit.

    Raises Postponed, and books nothing, if the wait is longer than `within` seconds and than 2 intervals of the rate.
    Raises Unusable if the table has lost the row for this kind; and as `transact` does.
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
            raise Unusable(f"the ledger's table {table} has lost its row, which limits the rate of LMS calls", remedy)
        booked, now = row
        farthest = now + LEEWAY + BOOKED * interval  # a later booking was made with a wrong clock
        slot = max(booked, now) if booked <= farthest else now
        seconds = float((slot - now).total_seconds())
        if seconds <= within:
            following = update(Throttle).where(Throttle.id == number)
            session.execute(following.values(next_call_at=slot + interval))
        return seconds

    seconds = database.transact(work)
    if seconds > within:
        what = f"{_SETTINGS[number]} is {per_minute:g}: earlier calls have used it up"
        raise Postponed("booked", what, "", seconds)
    return seconds
