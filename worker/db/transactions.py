"""Runs transactions: retries them after deadlocks and lost connections, and turns database errors into ours."""

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

# Error codes for a missing table or column.
MISSING: set[object] = {1054, 1146, "42P01", "42703"}
# Error codes for a statement that exceeded a time limit, or was canceled. Our sessions set no limit, so an
# administrator or a proxy did. Not retried: it would take as long again.
_TOOK_TOO_LONG: set[object] = {3024, 1969, "57014"}
READABLE_SECONDS = 60.0
TRIES = 5  # with waits that double, about 4.5 s in all; for a longer outage the caller retries its task

T = TypeVar("T")


class Database:
    """Runs transactions on an engine, and retries them after a temporary error."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._readable: dict[type[DeclarativeBase], tuple[float, bool]] = {}
        self._sessions = sessionmaker(engine, expire_on_commit=False, execution_options={"synchronize_session": False})

    def transact(self, work: Callable[[Session], T]) -> T:
        """Run `work` in one transaction and commit; return its result.

        After a deadlock, a lock time-out or a lost connection, the whole of `work` runs again, so it must have no
        effect outside the session. Raises Unavailable if the database stays unreachable, Unusable if a table or column
        is missing; IntegrityError is passed on.
        """
        for attempt in range(1, TRIES + 1):
            try:
                with self._sessions.begin() as session:
                    return work(session)
            except IntegrityError:  # callers handle it
                raise
            except DBAPIError as error:
                if attempt == TRIES or not _may_pass(error):
                    raise self._explain(error) from error
                time.sleep(random.uniform(0.5, 1.0) * 0.2 * 2**attempt)  # noqa: S311, jitter
            except UnicodeDecodeError as error:  # PostgreSQL's encoding SQL_ASCII accepts any bytes
                what = f"the database {address_of(self.engine)} holds a text that is not UTF-8"
                raise Unusable(what, "convert the text to UTF-8") from error.with_traceback(None)
        raise AssertionError("unreachable")

    def now(self) -> datetime:
        """Return the database's time (UTC). Raises as `transact` does."""
        moment: datetime = self.transact(lambda session: session.execute(select(DatabaseNow())).scalar_one())
        return moment

    def may_read(self, table: type[DeclarativeBase]) -> bool:
        """Return whether this table exists with the columns that we use, and the account may read it.

        The answer is cached for READABLE_SECONDS. Raises as `transact` does.
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
        """Raise Unusable if the database does not answer or lacks a table or column that we need.

        Without `ledger`, checks only license-manager's tables.
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
            remedy = "find out what canceled the statement: an administrator, or a limit of a proxy or the server"
        if isinstance(error, ProgrammingError | DataError):
            return Unusable(what, remedy)
        return Unavailable("database", what, remedy)


def _may_pass(error: DBAPIError) -> bool:
    """Return whether a retry may help: after a deadlock, a lock, a lost connection, a restart or a failover."""
    passing = isinstance(error, OperationalError | InterfaceError | InternalError)
    return passing and code_of(error) not in _TOOK_TOO_LONG


def cannot_be_seen(error: DBAPIError) -> bool:
    """Return whether the error means that a table or column is missing, or that the account may not use it."""
    of_sqlite = str(error.orig).startswith("no such ")
    return of_sqlite or code_of(error) in DENIED | MISSING
