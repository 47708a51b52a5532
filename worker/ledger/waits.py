"""Waits that hold all runs: an outage of the LMS, which one run at a time probes, and a pause set by an operator.

Each is one row in the database, so that the workers of all hosts see it in their check before each LMS call.
"""

from collections.abc import Sequence
from datetime import datetime
from math import ceil
from uuid import UUID

from sqlalchemy import ColumnElement, delete, exists, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from worker.db.ledger_tables import Retry, Run, Wait
from worker.db.sql import DatabaseNow, changed
from worker.db.transactions import Database
from worker.errors import BadArgument, Paused, Postponed, Unavailable
from worker.ledger.order import Step
from worker.ledger.stalled import MAX_RUN_AGE, is_newest, queued

OUTAGE, PAUSE = "outage", "pause"
PAUSED = "paused"
RESUME = "license-expiry resume ends the pause"
# How often a step checks whether the pause is over.
PAUSE_SECONDS = 60
# The longest time between two probes, in seconds. A later probe was scheduled with a wrong clock.
LONGEST = 24 * 3600
_OF_OUTAGE = update(Wait).where(Wait.kind == OUTAGE)
NONE_STANDS: ColumnElement[bool] = ~exists(select(Wait.kind))


def standing(session: Session) -> Sequence[tuple[Wait, datetime]]:
    """Return the present pause and outage, the pause first; each with the database's time (UTC)."""
    found = session.execute(select(Wait, DatabaseNow()).order_by(Wait.kind.desc()))
    return [(wait, now) for wait, now in found]


def postponement(session: Session) -> Postponed | None:
    """Return the present wait of all runs as an error, with its reason and seconds; None if there is none."""
    waits = standing(session)
    if not waits:
        return None
    wait, now = waits[0]
    if wait.kind == PAUSE:
        return Postponed(PAUSED, told_of_pause(wait), RESUME, PAUSE_SECONDS)
    since = f"since {wait.since:%Y-%m-%d %H:%M:%S} UTC"
    assert wait.again_at is not None  # noqa: S101, for the type checker
    seconds = min(max(1.0, (wait.again_at - now).total_seconds()), LONGEST)
    return Postponed(wait.reason, f"all runs wait for the LMS {since}: {wait.error}", "", seconds)


def pause(database: Database, set_by: str, reason: str) -> Wait:
    """Pause everything; return the present pause, which may have been set before."""

    def work(session: Session) -> Wait:
        if not standing_pause(session):
            row = {"kind": PAUSE, "since": DatabaseNow(), "set_by": set_by, "reason": reason, "tries": 0}
            session.execute(insert(Wait).values(row))
        return session.get_one(Wait, PAUSE)

    try:
        return database.transact(work)
    except IntegrityError:  # another process has just set one
        return database.transact(work)


def standing_pause(session: Session) -> Wait | None:
    """Return the present pause, or None."""
    return session.get(Wait, PAUSE)


def standing_outage(session: Session) -> Wait | None:
    """Return the present outage, or None."""
    return session.get(Wait, OUTAGE)


def refuse_while_paused(session: Session) -> None:
    """Raise Paused if everything is paused."""
    if wait := standing_pause(session):
        raise Paused(told_of_pause(wait), RESUME)


def told_of_pause(wait: Wait) -> str:
    """Describe a pause in one sentence: its time, who set it, and the reason."""
    return f"everything is paused since {wait.since:%Y-%m-%d %H:%M:%S} UTC by {wait.set_by}: {wait.reason}"


def resume(database: Database, since: datetime | None = None) -> Wait | None:
    """End the pause; return it, or None if there was none.

    Raises BadArgument if `since` is given and the pause has another start.
    """

    def work(session: Session) -> Wait | None:
        wait = session.get(Wait, PAUSE)
        if wait is None:
            return None
        if since and wait.since != since:
            raise BadArgument(f"nothing was resumed: {told_of_pause(wait)}", "reload the page, and resume this pause")
        session.execute(delete(Wait).where(Wait.kind == PAUSE, Wait.since == wait.since))
        return wait

    return database.transact(work)


def take_probe(database: Database, seconds: int) -> bool:
    """Return whether the caller is to probe now: a probe is due and nothing is paused. Reserves it for `seconds`."""
    due = or_(Wait.again_at <= DatabaseNow(), Wait.again_at > DatabaseNow(LONGEST + 3600))
    paused = select(Wait.kind).where(Wait.kind == PAUSE)

    def work(session: Session) -> bool:
        if session.scalar(paused):
            return False
        taken = _OF_OUTAGE.where(due).values(again_at=DatabaseNow(seconds))
        return changed(session, taken)

    return database.transact(work)


def begin_outage(database: Database, error: Unavailable, seconds: int) -> bool:
    """Make all runs wait because of this error, with the next probe in `seconds`; return whether the outage is new."""

    def work(session: Session) -> bool:
        later = _OF_OUTAGE.where(Wait.again_at < DatabaseNow(seconds))
        if changed(session, _OF_OUTAGE.values(**_why(error))):
            session.execute(later.values(again_at=DatabaseNow(seconds)))
            return False
        row = {"kind": OUTAGE, "since": DatabaseNow(), "again_at": DatabaseNow(seconds), "tries": 0}
        session.execute(insert(Wait).values(row | _why(error)))
        return True

    try:
        return database.transact(work)
    except IntegrityError:  # another process has just recorded it
        return False


def prolong_outage(database: Database, error: Unavailable, seconds: int) -> None:
    """Record that a probe failed with this error, and that the next one is in `seconds`."""
    longer = _OF_OUTAGE.values(**_why(error), again_at=DatabaseNow(seconds), tries=Wait.tries + 1)
    database.transact(lambda session: session.execute(longer))


def end_outage(database: Database) -> Wait | None:
    """End the outage; return it, or None if there was none."""

    def work(session: Session) -> Wait | None:
        wait = session.get(Wait, OUTAGE)
        session.execute(delete(Wait).where(Wait.kind == OUTAGE))
        return wait

    return database.transact(work)


def answered_since(database: Database, seconds: float) -> bool:
    """Return whether the LMS has answered a call of any live run in the last `seconds`."""
    recently = exists().where(Run.live.is_not(None), Run.confirmed_at > DatabaseNow(-ceil(seconds)))
    return bool(database.transact(lambda session: session.scalar(select(recently))))


def postpone(
    database: Database, run_id: UUID, step: Step, wait: Postponed, seconds: int, message: int | None = None
) -> Run | None:
    """Record that this run waits `seconds` before a step; return the run, or None if it does not wait.

    A run does not wait if a worker has it, if it is not ready for the step, or if its `message` (number) was replaced.
    A dry run does not wait for the LMS.
    """

    def work(session: Session) -> Run | None:
        ready = Run.phase.in_((step.starts_from, step.runs_as))
        free = select(Run).where(Run.id == run_id, ready, Run.owner.is_(None), Run.stopped_by.is_(None))
        run = session.scalar(free.where(is_newest(message)).with_for_update())
        if run is None or (run.dry_run and wait.reason != PAUSED):
            return None
        fence = run.fence + 1  # the primary key of the wait's row needs a new number
        new = note_wait(session, run, fence, step, wait.reason, seconds, joined=True)
        values = {"waits_for": wait.reason, "error": str(wait)[:500], "retries": Run.retries + int(new), "fence": fence}
        values |= queued(seconds)
        session.execute(update(Run).where(Run.id == run_id).values(**values, gives_up_at=run.opened_at + MAX_RUN_AGE))
        return run

    return database.transact(work)


def note_wait(session: Session, run: Run, fence: int, step: Step, reason: str, seconds: int, *, joined: bool) -> bool:
    """Record for the run's page that it waits `seconds`; return whether this is a new wait.

    It is not new if `joined` is true and the wait before had the same reason: that wait is then prolonged. `run` is
    the run before this wait, `fence` its fencing number now.
    """
    of_run = Retry.run_id == run.id
    same = joined and run.waits_for == reason
    newest = session.scalar(select(func.max(Retry.fence)).where(of_run)) if same else None
    if newest is not None:
        times = func.coalesce(Retry.times, 1) + 1
        longer = update(Retry).where(of_run, Retry.fence == newest)
        session.execute(longer.values(again_at=DatabaseNow(seconds), times=times))
        return False
    session.execute(delete(Retry).where(of_run, Retry.fence == fence))  # ours, if only the commit's answer was lost
    row = {"run_id": run.id, "fence": fence, "step": step.name, "reason": reason, "times": 1}
    session.execute(insert(Retry).values(row | {"at": DatabaseNow(), "again_at": DatabaseNow(seconds)}))
    return True


def _why(error: Unavailable) -> dict[str, str]:
    return {"reason": error.reason, "error": str(error)[:500]}
