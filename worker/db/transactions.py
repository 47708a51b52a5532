"""Whole transactions on the database: run again when the database asks for it, and explained when they fail."""

import random
import time
from collections.abc import Callable
from datetime import datetime
from math import inf
from typing import TypeVar

from sqlalchemy import Engine, false, select
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from worker.clock import steady
from worker.db.engine import DENIED, address_of, cannot_be_used, code_of
from worker.db.schema_check import require_schema
from worker.db.sql import DatabaseNow
from worker.errors import LicenseExpiryError, Unavailable, Unusable

# How they say that something is not there.
MISSING: set[object] = {1054, 1146, "42P01", "42703"}
# How they say that a statement took longer than is allowed: by an administrator or a proxy, since our sessions set no
# limit of their own. It would take as long again.
_TOOK_TOO_LONG: set[object] = {3024, 1969, "57014"}
READABLE_SECONDS = 60.0
TRIES = 5  # with waits that double: 4.5 s in all. What lasts longer is waited for by the caller, not in place

T = TypeVar("T")


class Database:
    """Runs whole transactions on an engine, and again when the database asks for that."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._readable: dict[type[DeclarativeBase], tuple[float, bool]] = {}
        self._sessions = sessionmaker(engine, expire_on_commit=False, execution_options={"synchronize_session": False})

    def transact(self, work: Callable[[Session], T]) -> T:
        """Run `work` in one transaction and commit; return its result.

        Deadlocks, locks and lost connections run all of it again, so `work` must do nothing but talk to the
        session. Raises Unavailable when the database stays away, Unusable when it lacks a table or column.
        """
        for attempt in range(1, TRIES + 1):
            try:
                with self._sessions.begin() as session:
                    return work(session)
            except IntegrityError:  # for the caller, who expects it
                raise
            except DBAPIError as error:
                if attempt == TRIES or not _may_pass(error):
                    raise self._explain(error) from error
                time.sleep(random.uniform(0.5, 1.0) * 0.2 * 2**attempt)  # noqa: S311, jitter
            except UnicodeDecodeError as error:  # a text of a database in SQL_ASCII, which takes any bytes
                what = f"the database {address_of(self.engine)} holds a text that is not UTF-8"
                raise Unusable(what, "store it as UTF-8") from error.with_traceback(None)
        raise AssertionError("unreachable")

    def now(self) -> datetime:
        """The database's clock, UTC."""
        moment: datetime = self.transact(lambda session: session.execute(select(DatabaseNow())).scalar_one())
        return moment

    def may_read(self, table: type[DeclarativeBase]) -> bool:
        """Is this table there, with the columns that we know, and may we read it?

        An answer is remembered for READABLE_SECONDS. Raises as `transact` does.
        """
        until, readable = self._readable.get(table, (-inf, False))
        if steady() >= until:
            readable = self._may_read(table)
            self._readable[table] = steady() + READABLE_SECONDS, readable
        return readable

    def _may_read(self, table: type[DeclarativeBase]) -> bool:
        rows = select(*table.__table__.columns).where(false())
        try:
            with self.engine.connect() as connection:
                connection.execute(rows)
        except DBAPIError as error:
            if cannot_be_seen(error):
                return False
            self.transact(lambda session: session.execute(rows))
        return True

    def require_schema(self, ledger: bool = True) -> None:
        """Raise Unusable when the database does not answer or lacks a table or column that we need.

        Without `ledger`, only license-manager's tables are looked at.
        """
        try:
            with self.engine.connect() as connection:
                require_schema(connection, ledger)
        except DBAPIError as error:
            raise Unusable(*cannot_be_used(self.engine, error)) from error

    def _explain(self, error: DBAPIError) -> LicenseExpiryError:
        try:
            self.require_schema()
        except Unusable as unusable:
            if not isinstance(unusable.__cause__, DBAPIError):
                return unusable
        what, remedy = cannot_be_used(self.engine, error)
        if code_of(error) in _TOOK_TOO_LONG:
            remedy = "see who ended the statement: an administrator, or a limit of a proxy or the server"
        if isinstance(error, ProgrammingError | DataError):
            return Unusable(what, remedy)
        return Unavailable("database", what, remedy)


def _may_pass(error: DBAPIError) -> bool:
    """Is this a deadlock, a lock, a connection that was lost, a server that is away or changes places?"""
    passing = isinstance(error, OperationalError | InterfaceError | InternalError)
    return passing and code_of(error) not in _TOOK_TOO_LONG


def cannot_be_seen(error: DBAPIError) -> bool:
    """Is this about a table or column that is not there, or that this account may not touch?"""
    of_sqlite = str(error.orig).startswith("no such ")
    return of_sqlite or code_of(error) in DENIED | MISSING
