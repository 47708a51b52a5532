"""Live runs that nobody gets on with: to be published again, given up, or ended as too old or because of a stop.

Also what a clock left behind that was wrong: a lease of the far future is cut short.
"""

from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, or_, select, update
from sqlalchemy.orm import Session

from worker.clock import LEEWAY
from worker.db.ledger_tables import Run
from worker.db.sql import DatabaseNow, changed
from worker.db.transactions import Database
from worker.ledger import confirmations
from worker.ledger.order import Phase

MAX_PUBLICATIONS = 6
# How long a published chain may lie in the broker before it is published again; doubles each time.
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


def release_stalled(database: Database, longest: int) -> tuple[list[Run], list[UUID]]:
    """Take runs whose lease has lapsed from their workers; return those to publish again, and ids of those ended.

    The fencing number rises, so that a worker that wakes too late is shut out at once. Each run has a transaction of
    its own: one that a frozen process keeps locked holds up no other. `longest` is in seconds: no worker's lease and
    no retry's wait is longer.
    """
    for run in _live(database, Run.lease_until > DatabaseNow(longest)):
        database.transact(partial(_shorten, run=run, longest=longest))
    outdated = _live(database, ~is_timely())
    ended = [run.id for run in outdated if database.transact(partial(_end, run=run, why=_OUTDATED, free=_free()))]
    lapsed = _live(database, _lapsed() & Run.stopped_by.is_(None))
    released = [run for run in lapsed if database.transact(partial(_release, run=run))]
    again = [run for run in released if run.publications < MAX_PUBLICATIONS]
    return again, ended + [run.id for run in released if run.publications >= MAX_PUBLICATIONS]


def _live(database: Database, which: ColumnElement[bool]) -> Sequence[Run]:
    found = select(Run).where(Run.live.is_not(None), which).order_by(Run.opened_at)
    return database.transact(lambda session: session.scalars(found).all())


def _lapsed() -> ColumnElement[bool]:
    return Run.lease_until < DatabaseNow()


def _free() -> ColumnElement[bool]:
    return or_(Run.owner.is_(None), _lapsed())


def _release(session: Session, run: Run) -> bool:
    if run.publications >= MAX_PUBLICATIONS:
        why = f"given up while {run.phase}: taken up {run.publications} times without getting further"
        return _end(session, run, why, _lapsed())
    values: dict[str, Any] = {"owner": None, "fence": run.fence + 1, "publications": run.publications + 1}
    return _change(session, run, _lapsed(), **values, lease_until=DatabaseNow(QUEUED_SECONDS * 2**run.publications))


def _end(session: Session, run: Run, why: str, free: ColumnElement[bool]) -> bool:
    error = why if run.error is None else f"{why}; last: {run.error}"
    return _end_as(session, run, Phase.ABANDONED, error, free)


def _end_as_stopped(session: Session, run: Run) -> bool:
    # Nor does a night that waits for its end begin then: who stops an enterprise wants it left alone.
    why = f"stopped by {run.stopped_by}: {run.stop_reason}"
    return _end_as(session, run, Phase.STOPPED, why, _free(), night_after=None)


def _end_as(session: Session, run: Run, phase: Phase, why: str, free: ColumnElement[bool], **more: Any) -> bool:
    values: dict[str, Any] = {"owner": None, "fence": run.fence + 1, "live": None, "lease_until": None}
    values |= {"phase": phase, "error": why[:500], "ended_at": DatabaseNow(), "waits_for": None}
    ended = _change(session, run, free, **values, **more)
    if ended:
        confirmations.drop_confirmations(session, run.enterprise_customer_uuid)
    return ended


def _shorten(session: Session, run: Run, longest: int) -> None:
    """Cut a lease short that nobody can have asked for: the clock that it was given by was wrong."""
    queued = 0 if run.owner else QUEUED_SECONDS * 2**run.publications
    _change(session, run, Run.lease_until > DatabaseNow(longest + queued), lease_until=DatabaseNow(QUEUED_SECONDS))


def _change(session: Session, run: Run, still: ColumnElement[bool], **values: Any) -> bool:
    """Change a run if this is still true of it, and nobody has changed it since it was read."""
    unchanged = (Run.fence == run.fence, Run.phase == run.phase, Run.publications == run.publications)
    return changed(session, update(Run).where(Run.id == run.id, still, *unchanged).values(values))
