"""Finds live runs that make no progress, and publishes them again or ends them: abandoned, too old, or stopped.

A run that only waits in the queue is left alone, however long it waits. It is published again only if its message can
no longer be in the broker. Also shortens leases that a wrong clock set far into the future.
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
# For this many seconds, a message that can be received is assumed to be in the broker.
QUEUED_SECONDS = 600
# Less than the time between two nights: no run may use an `as_of` that is days old.
MAX_RUN_AGE = timedelta(hours=20)
_HOUR = timedelta(hours=1)
_SECOND = timedelta(seconds=1)
_OUTDATED = f"ended because it was opened more than {MAX_RUN_AGE // _HOUR} hours ago, or with a wrong clock"


def is_timely() -> ColumnElement[bool]:
    """Condition: the Run was opened at most MAX_RUN_AGE ago, and not in the future (by a wrong clock)."""
    oldest, latest = DatabaseNow(-(MAX_RUN_AGE // _SECOND)), DatabaseNow(LEEWAY // _SECOND)
    return and_(Run.opened_at >= oldest, Run.opened_at <= latest)


# The columns of a run whose message could not be sent: its lease has lapsed already.
UNSENT = {"queued_at": DatabaseNow(), "lease_until": DatabaseNow(-1)}


# The columns of a run that has ended, except its phase and `ended_at`.
ENDED_COLUMNS: dict[str, Any] = {"live": None, "owner": None, "slots": None, "lease_until": None}


def is_newest(message: int | None) -> ColumnElement[bool]:
    """Condition: no newer message has replaced this one of the Run; always true for None, a message posted by hand."""
    return true() if message is None else func.coalesce(Run.message_number, 1) <= message


def queued(seconds: int = 0) -> dict[str, Any]:
    """Return the columns of a run that is in the broker and can be received after this many seconds."""
    return {
        "owner": None,
        "slots": None,
        "queued_at": DatabaseNow(seconds),
        "lease_until": DatabaseNow(seconds + QUEUED_SECONDS),
    }


def end_outdated(session: Session, *which: ColumnElement[bool]) -> list[UUID]:
    """End those of these live runs that are too old and that no worker has; return their ids."""
    outdated = select(Run).where(Run.live.is_not(None), ~is_timely(), *which)
    return [run.id for run in session.scalars(outdated).all() if _end(session, run, _OUTDATED, _free())]


def end_stopped(session: Session, *which: ColumnElement[bool]) -> list[UUID]:
    """End those of these live runs that an operator has stopped and that no worker has; return their ids."""
    asked = select(Run).where(Run.live.is_not(None), Run.stopped_by.is_not(None), _free(), *which)
    return [run.id for run in session.scalars(asked).all() if _end_as_stopped(session, run)]


def end_lost_stops(database: Database) -> list[UUID]:
    """End the stopped runs whose worker was lost before it ended them; return their ids.

    Ends each in its own transaction, as `release_stalled` does.
    """
    lost = _live(database, Run.stopped_by.is_not(None) & _free())
    return [run.id for run in lost if database.transact(partial(_end_as_stopped, run=run))]


def release_stalled(database: Database, longest: int, messages: int | None) -> tuple[list[Run], list[UUID]]:
    """Release the runs whose worker or message is lost; return those to publish again, and the ids of those ended.

    Releasing increases the message number, so that the old message is refused, and the fencing number, so that the
    old worker cannot write any more. Each run has its own transaction, so that one locked by a frozen process does not
    block the others. `longest` (seconds) is the longest possible lease or retry wait. `messages` is the number of
    messages in the broker's queue; if None (unknown), no run is released.
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
    """Condition: the message of the Run can no longer be in the broker. The Run has no worker and a lapsed lease.

    It is lost if it was never sent; if a message that became receivable QUEUED_SECONDS later was received, because the
    queue is first in, first out; or if the queue is empty and no worker has a run. A message that a killed worker had
    received counts as lost: Redis delivers it again only after VISIBILITY_TIMEOUT_SECONDS.
    """
    owned = (Run.live.is_not(None), Run.owner.is_not(None), Run.lease_until >= DatabaseNow())
    if not messages and session.scalar(select(Run.id).where(*owned).limit(1)) is None:
        return true()
    received = select(Run.queued_at, func.max(Retry.again_at)).outerjoin(Retry, Retry.run_id == Run.id)
    received = received.where(*owned, Run.queued_at <= DatabaseNow()).group_by(Run.id, Run.queued_at)
    newest = max((at for at, again_at in session.execute(received) if at and not _retried(at, again_at)), default=None)
    return or_(Run.lease_until < Run.queued_at, Run.lease_until < newest if newest else false())


def _retried(queued_at: datetime, again_at: datetime | None) -> bool:
    """True if this was the message of a retry, which waited in its worker's memory and so overtakes the queue."""
    return again_at is not None and again_at + timedelta(seconds=QUEUED_SECONDS / 10) > queued_at


def _given_up(run: Run) -> bool:
    return run.owner is not None and run.publications >= MAX_PUBLICATIONS


def _release(session: Session, run: Run) -> bool:
    if _given_up(run):
        why = f"given up while {run.phase}: resumed {run.publications} times without progress"
        return _end(session, run, why, _lapsed())
    number = (run.message_number or 1) + 1  # NULL: opened by a worker of an older release
    values: dict[str, Any] = queued() | {"fence": run.fence + 1, "message_number": number}
    values["publications"] = run.publications + (run.owner is not None)
    released = _change(session, run, _lapsed(), **values)
    run.message_number = number
    return released


def _end(session: Session, run: Run, why: str, free: ColumnElement[bool]) -> bool:
    error = why if run.error is None else f"{why}; last: {run.error}"
    return _end_as(session, run, Phase.ABANDONED, error, free)


def _end_as_stopped(session: Session, run: Run) -> bool:
    # Clears night_after: an operator who stops an enterprise does not want a waiting night to start it again.
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
    """Shorten a lease that is longer than any worker can have asked for: it was set by a wrong clock."""
    too_long = Run.lease_until > DatabaseNow(longest if run.owner else longest + QUEUED_SECONDS)
    _change(session, run, too_long, **({"lease_until": DatabaseNow(QUEUED_SECONDS)} if run.owner else queued()))


def _change(session: Session, run: Run, still: ColumnElement[bool], **values: Any) -> bool:
    """Set these columns of a run if `still` holds and it was not changed since it was read; return whether it was."""
    unchanged = (Run.fence == run.fence, Run.phase == run.phase, Run.publications == run.publications)
    return changed(session, update(Run).where(Run.id == run.id, still, *unchanged).values(values))
