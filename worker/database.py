"""The database: the engine for each kind of it, whole transactions tried again, and what it lacks."""

import random
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Engine, MetaData, Table, create_engine, event, inspect, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    InternalError,
    NoSuchTableError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.orm import Session, sessionmaker

from worker.columns import DatabaseNow
from worker.errors import LicenseExpiryError, Unavailable, Unusable
from worker.models import Ledger, LicenseManager

PLAN_TABLE = "subscriptions_subscriptionplan"
PLAN_HISTORY_TABLE = "subscriptions_historicalsubscriptionplan"

TRIES = 8  # with waits that double up to 5 seconds: some 15 seconds, so that a restart is sat out
CONNECT_TIMEOUT = 10
# A process that is frozen within a transaction keeps its locks: the server is to end such a one, and others not to
# wait for it for ever. No transaction of ours is ever idle for as long.
IDLE_SECONDS = 60
LOCK_SECONDS = 10
# A server that is gone without a word, as after a failover, is noticed: within a minute; on MySQL, where only the
# answer's time can be limited, within what no statement of ours takes.
_KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
_SILENCE = {"read_timeout": 600, "write_timeout": 60}
_CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": 30},
    "postgresql": {"connect_timeout": CONNECT_TIMEOUT, **_KEEPALIVE},
    "mysql": {"connect_timeout": CONNECT_TIMEOUT, **_SILENCE},
    "mariadb": {"connect_timeout": CONNECT_TIMEOUT, **_SILENCE},
}

T = TypeVar("T")


def make_engine(url: str, connections: int = 5) -> Engine:
    """Make an engine; it connects when first used. Raises Unusable when its driver is not installed.

    Parameters are hidden in its errors, because e-mail addresses are among them.
    """
    kind = make_url(url).get_backend_name()
    options: dict[str, Any] = {} if kind == "sqlite" else {"pool_size": connections, "pool_recycle": IDLE_SECONDS - 10}
    if kind in ("mysql", "mariadb"):
        options["isolation_level"] = "READ COMMITTED"  # no gap locks, on tables that others write too
    try:
        engine = create_engine(url, hide_parameters=True, connect_args=_CONNECT_ARGUMENTS[kind], **options)
    except ImportError as error:
        extra = "postgresql" if kind == "postgresql" else "mysql"
        raise Unusable(
            f"DATABASE_URL: the driver {error.name} is not installed: pip install 'license-expiry[{extra}]'"
        ) from error
    if kind == "sqlite":
        # A transaction that reads and then writes must lock first, or SQLite refuses it without waiting.
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    else:
        event.listen(engine, "connect", partial(_limit_waits, kind))
    return engine


def _limit_waits(kind: str, connection: Any, _: Any) -> None:
    limits = f"SESSION wait_timeout = {IDLE_SECONDS}, innodb_lock_wait_timeout = {LOCK_SECONDS}"
    if kind == "postgresql":
        limits = f"idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'; SET lock_timeout = '{LOCK_SECONDS}s'"
    with connection.cursor() as cursor:
        cursor.execute(f"SET {limits}")
    connection.commit()


class Database:
    """Runs whole transactions on an engine, and again when the database asks for that."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._sessions = sessionmaker(engine, expire_on_commit=False, execution_options={"synchronize_session": False})
        self._history: tuple[Table, Table, list[str]] | None = None

    def transact(self, work: Callable[[Session], T]) -> T:
        """Run `work` in one transaction and commit.

        Deadlocks, locks and lost connections run all of it again, so `work` must do nothing but talk to the
        session. Raises Unavailable when the database stays away, Unusable when it lacks a table or column.
        """
        for attempt in range(1, TRIES + 1):
            try:
                with self._sessions.begin() as session:
                    return work(session)
            except (OperationalError, InterfaceError, InternalError) as error:
                if attempt == TRIES:
                    raise self._explain(error) from error
                time.sleep(random.uniform(0.5, 1.0) * min(5.0, 0.2 * 2**attempt))  # noqa: S311, jitter
            except ProgrammingError as error:
                raise self._explain(error) from error
        raise AssertionError("unreachable")

    def now(self) -> datetime:
        """The database's clock, UTC."""
        return self.transact(lambda session: session.execute(select(DatabaseNow())).scalar_one())

    def check(self, ledger: bool = True) -> None:
        """Raise Unusable, naming every table and column that we need and the database lacks.

        Without `ledger`, only license-manager's are looked for.
        """
        try:
            problems = self._lacking(ledger)
        except DBAPIError as error:
            raise Unusable(cannot_be_used(self.engine, error)) from error
        if problems:
            raise Unusable("\n".join(["The database cannot be used:", *(f"  {each}" for each in problems)]))

    def plan_history(self) -> tuple[Table, Table, list[str]]:
        """license-manager's tables of plans and of their history, and the names of the columns that both have.

        Looked at once: releases of license-manager differ in these columns.
        """
        if self._history is None:
            plan, history = (self.transact(partial(_reflect, name)) for name in (PLAN_TABLE, PLAN_HISTORY_TABLE))
            self._history = plan, history, [column.name for column in plan.columns if column.name in history.columns]
        return self._history

    def _explain(self, error: DBAPIError) -> LicenseExpiryError:
        try:
            self.check()
        except Unusable as unusable:
            if not isinstance(unusable.__cause__, DBAPIError):
                return unusable
        sentence = cannot_be_used(self.engine, error)
        return Unusable(sentence) if isinstance(error, ProgrammingError) else Unavailable("database", sentence)

    def _lacking(self, ledger: bool) -> list[str]:
        inspector = inspect(self.engine)
        wanted = {
            table.name: ([column.name for column in table.columns], remedy)
            for metadata, remedy in (
                (LicenseManager.metadata, "is DATABASE_URL license-manager's database, and migrated?"),
                (Ledger.metadata, "run license-expiry init-db"),
            )
            for table in metadata.sorted_tables
            if ledger or metadata is not Ledger.metadata
        }
        wanted[PLAN_HISTORY_TABLE] = ["history_type", "history_date", "uuid"], wanted[PLAN_TABLE][1]
        problems = []
        for table, (columns, remedy) in wanted.items():
            try:
                there = {column["name"] for column in inspector.get_columns(table)}
            except NoSuchTableError:
                problems.append(f"table {table} is missing: {remedy}")
                continue
            problems += [f"table {table} lacks column {name}: {remedy}" for name in columns if name not in there]
        return problems


def _reflect(name: str, session: Session) -> Table:
    return Table(name, MetaData(), autoload_with=session.connection(), resolve_fks=False)


def cannot_be_used(engine: Engine, error: DBAPIError) -> str:
    """One sentence about a database error, with neither a password nor a statement's parameters in it."""
    where = engine.url.set(query={}).render_as_string(hide_password=True)
    cause = " ".join(str(error.orig).split())
    return f"the database {where} cannot be used ({cause}): check DATABASE_URL, the account's rights and the server"
