"""Live runs that nobody gets on with: to be published again, given up, or ended as too old or because of a stop.

A run that only waits its turn is none of these, however long that takes: it is published again only if its message
cannot be in the broker any more. Also what a clock left behind that was wrong: a lease of the far future is cut short.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, false, func, or_, select, true, update
from sqlalchemy.orm import Session

from worker.clock import LEEWAY
from worker.db.ledger_tables import Retry, Run
from worker.db.sql import DatabaseNow, changed
from worker.db.transactions import Database
from worker.ledger import confirmations
from worker.ledger.order import Phase

MAX_PUBLICATIONS = 6
# For so long nobody asks whether a message that can be received is still in the broker.
QUEUED_SECONDS = 600
# Less than nights are apart: nobody is to be treated as the database was days ago.
MAX_RUN_AGE = timedelta(hours=20)
_HOUR = timedelta(hours=1)
_SECOND = timedelta(seconds=1)
_OUTDATED = f"ended because it was opened more than {MAX_RUN_AGE // _HOUR} hours ago, or by a clock that was wrong"


def is_timely() -> ColumnElement[bool]:
    """Is the Run at hand no older than MAX_RUN_AGE, and not of the future, which a wrong clock had it opened in?"""
    oldest, latest = DatabaseNow(-(MAX_RUN_AGE // _SECOND)), DatabaseNow(LEEWAY // _SECOND)
    return and_(Run.opened_at >= oldest, Run.opened_at <= latest)


# The columns of a run whose message could not be sent: its lease ends before it began.
UNSENT = {"queued_at": DatabaseNow(), "lease_until": DatabaseNow(-1)}


# The columns of a run that has ended, besides its phase and the moment.
ENDED_COLUMNS: dict[str, Any] = {"live": None, "owner": None, "slots": None, "lease_until": None}


def is_newest(message: int | None) -> ColumnElement[bool]:
    """Was the message of this number not replaced, at the Run at hand? One that was posted by hand has no number."""
    return true() if message is None else func.coalesce(Run.message_number, 1) <= message


def queued(seconds: int = 0) -> dict[str, Any]:
    """The columns of a run that is handed to the broker, from which it can be received in so many seconds."""
    return {
        "owner": None,
        "slots": None,
        "queued_at": DatabaseNow(seconds),
        "lease_until": DatabaseNow(seconds + QUEUED_SECONDS),
    }


def end_outdated(session: Session, *which: ColumnElement[bool]) -> list[UUID]:
    """End those of these live runs that are not timely, unless a worker is at one; return their ids."""
    outdated = select(Run).where(Run.live.is_not(None), ~is_timely(), *which)
    return [run.id for run in session.scalars(outdated).all() if _end(session, run, _OUTDATED, _free())]


def end_stopped(session: Session, *which: ColumnElement[bool]) -> list[UUID]:
    """End those of these live runs that an operator has stopped, unless a worker is at one; return their ids."""
    asked = select(Run).where(Run.live.is_not(None), Run.stopped_by.is_not(None), _free(), *which)
    return [run.id for run in session.scalars(asked).all() if _end_as_stopped(session, run)]


def end_lost_stops(database: Database) -> list[UUID]:
    """End the stopped runs whose worker was lost before it could; return their ids.

    Each has a transaction of its own, as in `release_stalled`.
    """
    lost = _live(database, Run.stopped_by.is_not(None) & _free())
    return [run.id for run in lost if database.transact(partial(_end_as_stopped, run=run))]


def release_stalled(database: Database, longest: int, messages: int | None) -> tuple[list[Run], list[UUID]]:
    """Find the runs whose worker or message is lost; return those to publish again, and ids of those ended.

    The number of its message rises, so that the one before it does nothing, and the fencing number, so that a worker
    that wakes too late is shut out at once. Each run has a transaction of its own: one that a frozen process keeps
    locked holds up no other. `longest` is in seconds: no worker's lease and no retry's wait is longer. `messages` is
    how many wait in the broker's queue; None when that is not known, and then nothing is to be published again.
    """
    for run in _live(database, Run.lease_until > DatabaseNow(longest)):
        database.transact(partial(_shorten, run=run, longest=longest))
    outdated = _live(database, ~is_timely())
    ended = [run.id for run in outdated if database.transact(partial(_end, run=run, why=_OUTDATED, free=_free()))]
    if messages is None:
        return [], ended
    lost = or_(Run.owner.is_not(None), database.transact(partial(_message_lost, messages=messages)))
    lapsed = _live(database, _lapsed() & lost & Run.stopped_by.is_(None))
    released = [run for run in lapsed if database.transact(partial(_release, run=run))]
    again = [run for run in released if not _given_up(run)]
    return again, ended + [run.id for run in released if _given_up(run)]


def _live(database: Database, which: ColumnElement[bool]) -> Sequence[Run]:
    found = select(Run).where(Run.live.is_not(None), which).order_by(Run.opened_at)
    return database.transact(lambda session: session.scalars(found).all())


def _lapsed() -> ColumnElement[bool]:
    return Run.lease_until < DatabaseNow()


def _free() -> ColumnElement[bool]:
    return or_(Run.owner.is_(None), _lapsed())


def _message_lost(session: Session, messages: int) -> ColumnElement[bool]:
    """Can the message of the Run at hand, which nobody has and whose lease has lapsed, not be in the broker any more?

    So it is when it was never sent; when it was overtaken, by one that could be received QUEUED_SECONDS after it, for
    the queue is first in, first out; and when the queue is empty and no worker is at a run. What a killed worker had
    received does not count as in the queue: Redis gives it out again only after VISIBILITY_TIMEOUT_SECONDS.
    """
    owned = (Run.live.is_not(None), Run.owner.is_not(None), Run.lease_until >= DatabaseNow())
    if not messages and session.scalar(select(Run.id).where(*owned).limit(1)) is None:
        return true()
    received = select(Run.queued_at, func.max(Retry.again_at)).outerjoin(Retry, Retry.run_id == Run.id)
    received = received.where(*owned, Run.queued_at <= DatabaseNow()).group_by(Run.id, Run.queued_at)
    newest = max((at for at, again_at in session.execute(received) if at and not _retried(at, again_at)), default=None)
    return or_(Run.lease_until < Run.queued_at, Run.lease_until < newest if newest else false())


def _retried(queued_at: datetime, again_at: datetime | None) -> bool:
    """Was this a retry's message? It has waited in its worker's memory, and overtakes whatever is in the queue."""
    return again_at is not None and again_at + timedelta(seconds=QUEUED_SECONDS / 10) > queued_at


def _given_up(run: Run) -> bool:
    return run.owner is not None and run.publications >= MAX_PUBLICATIONS


def _release(session: Session, run: Run) -> bool:
    if _given_up(run):
        why = f"given up while {run.phase}: taken up {run.publications} times without getting further"
        return _end(session, run, why, _lapsed())
    number = (run.message_number or 1) + 1  # NULL: opened by a worker of the release before
    values: dict[str, Any] = queued() | {"fence": run.fence + 1, "message_number": number}
    values["publications"] = run.publications + (run.owner is not None)
    released = _change(session, run, _lapsed(), **values)
    run.message_number = number
    return released


def _end(session: Session, run: Run, why: str, free: ColumnElement[bool]) -> bool:
    error = why if run.error is None else f"{why}; last: {run.error}"
    return _end_as(session, run, Phase.ABANDONED, error, free)


def _end_as_stopped(session: Session, run: Run) -> bool:
    # Nor does a night that waits for its end begin then: who stops an enterprise wants it left alone.
    why = f"stopped by {run.stopped_by}: {run.stop_reason}"
    return _end_as(session, run, Phase.STOPPED, why, _free(), night_after=None)


def _end_as(session: Session, run: Run, phase: Phase, why: str, free: ColumnElement[bool], **more: Any) -> bool:
    values = ENDED_COLUMNS | {
        "fence": run.fence + 1,
        "phase": phase,
        "error": why[:500],
        "ended_at": DatabaseNow(),
        "waits_for": None,
    }
    ended = _change(session, run, free, **values, **more)
    if ended:
        confirmations.drop_confirmations(session, run.enterprise_customer_uuid)
    return ended


def _shorten(session: Session, run: Run, longest: int) -> None:
    """Cut a lease short that nobody can have asked for: the clock that it was given by was wrong."""
    too_long = Run.lease_until > DatabaseNow(longest if run.owner else longest + QUEUED_SECONDS)
    _change(session, run, too_long, **({"lease_until": DatabaseNow(QUEUED_SECONDS)} if run.owner else queued()))


def _change(session: Session, run: Run, still: ColumnElement[bool], **values: Any) -> bool:
    """Change a run if this is still true of it, and nobody has changed it since it was read."""
    unchanged = (Run.fence == run.fence, Run.phase == run.phase, Run.publications == run.publications)
    return changed(session, update(Run).where(Run.id == run.id, still, *unchanged).values(values))
