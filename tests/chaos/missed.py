"""A night that beat sleeps through: its row is not there when beat comes back, and `reconcile` has to begin it."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, delete, func, insert, select

from chaos.session import ChaosSession
from worker.db.ledger_tables import Night

Wait = Callable[[Callable[[], bool], float, str], None]


def miss_a_night(session: ChaosSession, wait: Wait) -> float:
    """Have beat be away over a scheduled moment; give the seconds from its return until the night is begun."""
    session.processes.beat.kill(None)
    session.processes.forget_schedule(session.processes.beat)
    wait(lambda: session.messages.queued == 0 and session.messages.taken == 0, 60, "reconciles that were sent before")
    began = _forget_recent(session.watching)
    session.processes.beat.start()
    wait(lambda: session.processes.beat.up, 20, "beat's return")
    back = datetime.now(UTC)
    wait(lambda: _newest(session.watching) > began, 60, "the missed night to be begun by reconcile")
    with session.watching.connect() as connection:
        opened = connection.scalars(select(func.max(Night.opened_at))).one()
    return max(0.0, (opened - back).total_seconds())


def _forget_recent(engine: Engine) -> datetime:
    """Leave only a night of an hour ago: a ledger that knows of none at all is new, and has missed nothing."""
    hour_ago = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(hours=1)
    with engine.begin() as connection:
        connection.execute(delete(Night))
        row = {"scheduled_for": hour_ago, "opened_at": hour_ago, "lease_until": None, "tries": 1}
        connection.execute(insert(Night).values(row))
    return hour_ago


def _newest(engine: Engine) -> datetime:
    with engine.connect() as connection:
        newest: datetime = connection.scalars(select(func.max(Night.scheduled_for))).one()
        return newest
