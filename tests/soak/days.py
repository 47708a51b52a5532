"""Days that pass: everything in the database gets older, and new plans expire."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, DateTime, Engine, bindparam, inspect, select, text, update

from simulator.data.rows import DAY, Agreement, Data
from worker.db.ledger_tables import Night

# So that LEDGER_KEEP_DAYS of 32, the least there can be, are over after the fourth night.
STEP = 8 * DAY
# When they were last seen, and what they belong to: not history.
AS_THEY_ARE = ("license_expiry_heartbeat", "license_expiry_throttle", "license_expiry_wait")
LEARNERS = 2  # of each plan


def let_days_pass(connection: Connection) -> None:
    """Let every moment in the database be STEP earlier; the present stays."""
    days = STEP // DAY
    past = f"- INTERVAL '{days} days'" if connection.dialect.name == "postgresql" else f"- INTERVAL {days} DAY"
    look = inspect(connection)
    for name in look.get_table_names():
        moments = [each["name"] for each in look.get_columns(name) if isinstance(each["type"], DateTime)]
        if name == Night.__tablename__:
            moments.remove("scheduled_for")
        if moments and name not in AS_THEY_ARE:
            connection.execute(text(f"UPDATE {name} SET {', '.join(f'{each} = {each} {past}' for each in moments)}"))
    # One after the other, or it would meet the one before it: it is their key.
    move = update(Night).where(Night.scheduled_for == bindparam("at")).values(scheduled_for=bindparam("to"))
    for moment in sorted(connection.scalars(select(Night.scheduled_for))):
        connection.execute(move, {"at": moment, "to": moment - STEP})


class Customers:
    """The enterprises; in each night one plan of each has just expired, and another did so 100 days ago."""

    def __init__(self, engine: Engine, count: int) -> None:
        self._data = Data(engine)
        self._agreements: list[Agreement] = [self._data.agreement() for _ in range(count)]
        for agreement in self._agreements:  # nobody is to harm these
            self._learners(agreement, 300 * DAY)
        self._data.flush()
        self.enterprises = [each.enterprise_customer_uuid for each in self._agreements]
        self._due_once: list[tuple[timedelta, set[UUID]]] = []

    def expire(self, connection: Connection, now: timedelta) -> tuple[set[UUID], set[UUID]]:
        """Lay down what is due tonight, `now` since the first night; give the licenses to downgrade and to unlink."""
        fresh: set[UUID] = set()
        old: set[UUID] = set()
        for agreement in self._agreements:
            fresh |= self._learners(agreement, -1 * DAY)
            old |= self._learners(agreement, -100 * DAY)
        self._data.write(connection)
        unlinks = {each for then, of in self._due_once if now - then > 89 * DAY for each in of} | old
        self._due_once = [(then, of) for then, of in self._due_once if now - then <= 89 * DAY] + [(now, fresh)]
        return fresh | old, unlinks

    def _learners(self, agreement: Agreement, expires: timedelta) -> set[UUID]:
        plan = self._data.plan(agreement, expires=self._data.now + expires)
        return {self._data.license(plan) for _ in range(LEARNERS)}
