"""License-manager's jobs and people at work in a night: what they do to its tables, and to what they add at the LMS.

Each deed is one transaction, with the rows of history that license-manager would write. Which row it strikes is drawn
by its number alone, from the rows of its enterprise at that moment.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, create_engine, event, select
from sqlalchemy.pool import NullPool

from chaos.timeline import Deed, Row, Rows, Timeline, read
from simulator.data.rows import Agreement, Data
from simulator.data.schema import table
from simulator.lms.server import Simulator

LEARNERS = ("assigned", "activated")


class Desk:
    """One enterprise's rows in a transaction, and what is needed to change them as license-manager does."""

    def __init__(self, engine: Engine, connection: Connection, enterprise: UUID, pick: int) -> None:
        self.engine, self.connection = engine, connection
        self.enterprise, self.random = enterprise, Random(pick)
        self.now = datetime.now(UTC)
        self.saved = self.now + timedelta(milliseconds=1)  # Django dates a row of history later than `modified`
        self.rows: Rows = read(engine, connection, enterprise)
        agreements = table(engine, "customeragreement")
        found = connection.execute(select(agreements).where(agreements.c.enterprise_customer_uuid == enterprise)).one()
        self.agreement = Agreement(found.uuid, enterprise, f"{found.enterprise_customer_slug}.example")
        self.data = Data(engine, pick, self.now)
        self.history: list[UUID] = []
        self.given: list[tuple[UUID, str | None, int | None]] = []
        self.name = f"somebody-{pick}"

    def choose(self, rows: Sequence[Row]) -> Row | None:
        """One of these rows; None when there is none."""
        return self.random.choice(rows) if rows else None

    def learners(self, plan: UUID | None = None) -> list[Row]:
        """The licenses that learners have, of one plan or of all."""
        of_plan = (row for row in self.rows.licenses if plan in (None, row["subscription_plan_id"]))
        return [row for row in of_plan if row["status"] in LEARNERS]

    def expired(self, days: float = 0) -> list[Row]:
        """The plans that expired more than so many days ago."""
        return [row for row in self.rows.plans if row["expiration_date"] < self.now - timedelta(days=days)]

    def current(self) -> list[Row]:
        """The plans that have not expired."""
        return [row for row in self.rows.plans if row["expiration_date"] > self.now]

    def change_plan(self, plan: Row, **values: Any) -> None:
        """Save a plan with these values, as its admin page does."""
        self._update("subscriptionplan", plan, {"modified": self.now, **values})
        self._note("subscriptionplan", plan | {"modified": self.now, **values})
        self.history.append(plan["uuid"])

    def change_license(self, license: Row, *, touch: bool = True, **values: Any) -> None:
        """Save a license with these values; its `modified` too, but for a bulk job that does not `touch` it."""
        values = {**({"modified": self.now} if touch else {}), **values}
        self._begin_history(license)
        self._update("license", license, values)
        self._note("license", license | values)

    def add_plan(self, days: float = 365) -> UUID:
        """Add a plan that began an hour ago and runs for so many days."""
        times: Row = {"created": self.now, "modified": self.now}
        starts, expires = self.now - timedelta(hours=1), self.now + timedelta(days=days)
        plan = self.data.plan(self.agreement, starts, expires, title=self.name, **times)
        self.data.plan_history(plan, self.now, processed=False, history_type="+")
        self.history.append(plan)
        return plan

    def add_license(self, plan: UUID, email: str | None, lms_user_id: int | None, status: Any = "activated") -> UUID:
        """Add a license that was assigned just now; its learner is linked at the LMS."""
        times: Row = {"created": self.now, "modified": self.now, "assigned_date": self.now}
        license = self.data.license(plan, email, lms_user_id, status, **times)
        self.data.license_history(license, self.now, plan, history_type="+")
        self.given.append((license, email, lms_user_id))
        return license

    def delete(self, name: str, where: Any) -> None:
        """Delete rows."""
        self.connection.execute(table(self.engine, name).delete().where(where))

    def end_history(self, license: Row) -> None:
        """Note that a license is deleted."""
        self._begin_history(license)
        self._note("license", license, "-")

    def set_renewal(self, renewal: Row, **values: Any) -> None:
        """Save a renewal."""
        into = table(self.engine, "subscriptionplanrenewal")
        values = {"modified": self.now, **values}
        self.connection.execute(into.update().where(into.c.id == renewal["id"]).values(**values))

    def _update(self, name: str, row: Row, values: Row) -> None:
        into = table(self.engine, name)
        self.connection.execute(into.update().where(into.c.uuid == row["uuid"]).values(**values))

    def _note(self, name: str, row: Row, kind: str = "~", moment: datetime | None = None) -> None:
        """Add a row to a history, of the columns that it shares with its table."""
        into = table(self.engine, f"historical{name}")
        now = self.connection.execute(
            select(table(self.engine, name)).where(table(self.engine, name).c.uuid == row["uuid"])
        ).one_or_none()
        whole = row if now is None or moment else dict(now._mapping)  # a worker may have marked the plan meanwhile
        blank = {column.name: None for column in into.c if column.name != "history_id"}
        values = blank | {key: value for key, value in whole.items() if key in blank}
        values |= {"history_type": kind, "history_date": moment or self.saved}
        self.connection.execute(into.insert(), values)

    def _begin_history(self, license: Row) -> None:
        """Each license has a row from when it was made; those that were laid do without until somebody asks."""
        history = table(self.engine, "historicallicense")
        known = select(history.c.history_id).where(history.c.uuid == license["uuid"]).limit(1)
        if self.connection.execute(known).first() is None:
            self._note("license", license, "+", license["created"])


Hand = Callable[[Desk], Sequence[UUID] | None]
"""Does something at a desk; gives the rows that it is about, None when there is nothing for it to do."""


class People:
    """Does one deed at a time, and notes it in a night's timeline."""

    def __init__(self, url: str, lms: Simulator, timeline: Timeline, hands: dict[str, Hand]) -> None:
        self._lms, self._timeline, self._hands = lms, timeline, hands
        isolation = {} if url.startswith("sqlite") else {"isolation_level": "READ COMMITTED"}
        # No deed waits for long at a lock: who does it also wakes what is frozen with the lock in hand.
        self._engine = create_engine(url, hide_parameters=True, poolclass=NullPool, **isolation)
        waits = {"postgresql": "SET lock_timeout = '300ms'", "sqlite": "PRAGMA busy_timeout = 300"}
        statement = waits.get(self._engine.dialect.name, "SET SESSION innodb_lock_wait_timeout = 1")
        event.listen(self._engine, "connect", lambda connection, _: _run(connection, statement))

    def do(self, kind: str, enterprise: str, pick: int) -> bool:
        """Do a deed; False when there is nothing for it to do. Raises DBAPIError when the database is away or busy."""
        began, of = datetime.now(UTC), UUID(enterprise)
        with self._engine.connect() as connection:
            desk = Desk(self._engine, connection, of, pick)
            about = self._hands[kind](desk)
            if about is None:
                return False
            desk.data.write(connection)
            after = read(self._engine, connection, of)
            self._link(desk)
            connection.commit()
        self._timeline.note(Deed(kind, of, began, datetime.now(UTC), tuple(about)), after)
        self._timeline.history |= {(plan, at) for plan in desk.history for at in (desk.now, desk.saved)}
        return True

    def _link(self, desk: Desk) -> None:
        """Who is given a license is linked at the LMS, and may enroll with it."""
        for license, email, user in desk.given:
            self._lms.state.add_license(license, desk.enterprise)
            if email is not None and user is not None:
                self._lms.state.add_learner(user, email.strip())
            if email is not None:
                self._lms.state.linked[desk.enterprise].add(email.strip())
                self._timeline.linked.add((desk.enterprise, email.strip()))


def _run(connection: Any, statement: str) -> None:
    cursor = connection.cursor()
    cursor.execute(statement)
    cursor.close()
    connection.commit()
