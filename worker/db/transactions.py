"""The database: the engine for each kind of it, whole transactions tried again, and what is wrong with its tables."""

import random
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Inspector,
    Integer,
    TableClause,
    Uuid,
    column,
    create_engine,
    event,
    false,
    func,
    inspect,
    select,
    table,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    InternalError,
    NoSuchTableError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.orm import Session, sessionmaker

from worker.db.ledger_tables import Ledger, LicenseEvent, LicenseManager
from worker.db.types import DatabaseNow
from worker.errors import LicenseExpiryError, Unavailable, Unusable

PLAN_TABLE = "subscriptions_subscriptionplan"
PLAN_HISTORY_TABLE = "subscriptions_historicalsubscriptionplan"
EVENT_TABLE = LicenseEvent.__tablename__
_OF_HISTORY = {"history_type", "history_date"}  # what a night gives a row of it, beside the plan's columns

TRIES = 8  # with waits that double up to 5 seconds: some 15 seconds, so that a restart is sat out
CONNECT_TIMEOUT = 10
# A process that is frozen within a transaction keeps its locks: the server is to end such a one, and others not to
# wait for it for ever. No transaction of ours is ever idle for as long.
IDLE_SECONDS = 60
LOCK_SECONDS = 10
# Up to this size the learners of a customer, a few million, are kept in memory while a query compares with them. Of
# more, PostgreSQL would read all again for each license, and MariaDB make a file.
SET_BYTES = 256 * 1024 * 1024
# A server that is gone without a word, as after a failover, is noticed: within a minute; on MySQL, where only the
# answer's time can be limited, within what no statement of ours takes.
_KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
_SILENCE = {"read_timeout": 600, "write_timeout": 60}
_CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": 30},
    # Planned anew each time: a plan kept from when the ledger was empty would read all of what has come into it since.
    "postgresql": {"connect_timeout": CONNECT_TIMEOUT, "prepare_threshold": None, **_KEEPALIVE},
    "mysql": {"connect_timeout": CONNECT_TIMEOUT, **_SILENCE},
    "mariadb": {"connect_timeout": CONNECT_TIMEOUT, **_SILENCE},
}

_MYSQL_DEFAULT = text(
    "SELECT column_default FROM information_schema.columns"
    " WHERE table_schema = DATABASE() AND table_name = :table AND column_name = :column"
)

# No row, but the names of all columns of both tables.
_COLUMNS = select(text("*")).select_from(table(PLAN_TABLE).join(table(PLAN_HISTORY_TABLE), false()))

PlanHistory: TypeAlias = tuple[TableClause, TableClause, dict[str, ColumnElement[Any]]]
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
        event.listen(engine, "connect", partial(_set_up_session, kind))
    return engine


def _set_up_session(kind: str, connection: Any, _: Any) -> None:
    limits = f"SESSION wait_timeout = {IDLE_SECONDS}, innodb_lock_wait_timeout = {LOCK_SECONDS}"
    limits += f", tmp_table_size = {SET_BYTES}, max_heap_table_size = {SET_BYTES}"
    if kind == "postgresql":
        limits = f"idle_in_transaction_session_timeout = '{IDLE_SECONDS}s'; SET lock_timeout = '{LOCK_SECONDS}s'"
        limits += "; SET jit = off"  # which takes a page's query twenty times longer to compile than to carry out
        limits += f"; SET work_mem = '{SET_BYTES // 1024}kB'"
    with connection.cursor() as cursor:
        cursor.execute(f"SET {limits}")
    connection.commit()


class Database:
    """Runs whole transactions on an engine, and again when the database asks for that."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._history: tuple[tuple[str, ...], PlanHistory] | None = None
        self._sessions = sessionmaker(engine, expire_on_commit=False, execution_options={"synchronize_session": False})

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
        """Raise Unusable when the database does not answer, or as `require` does."""
        try:
            with self.engine.connect() as connection:
                require(connection, ledger)
        except DBAPIError as error:
            raise Unusable(cannot_be_used(self.engine, error)) from error

    def plan_history(self) -> PlanHistory:
        """license-manager's tables of plans and of their history, and what of a plan each column of a history row gets.

        Looked at each time, though closely only when they have changed: releases of license-manager differ in these
        columns, and it may be upgraded as we run.
        """

        def work(session: Session) -> PlanHistory:
            columns = tuple(session.execute(_COLUMNS).keys())
            if self._history is None or self._history[0] != columns:
                self._history = columns, _look_at_history(session.connection())
            return self._history[1]

        return self.transact(work)

    def _explain(self, error: DBAPIError) -> LicenseExpiryError:
        try:
            self.check()
        except Unusable as unusable:
            if not isinstance(unusable.__cause__, DBAPIError):
                return unusable
        sentence = cannot_be_used(self.engine, error)
        return Unusable(sentence) if isinstance(error, ProgrammingError) else Unavailable("database", sentence)


def _look_at_history(connection: Connection) -> PlanHistory:
    inspector = inspect(connection)
    of_plan, of_history = (
        {each["name"]: each for each in inspector.get_columns(name)} for name in (PLAN_TABLE, PLAN_HISTORY_TABLE)
    )
    plan, history = (
        table(name, *(column(each["name"], each["type"]) for each in columns.values()))
        for name, columns in ((PLAN_TABLE, of_plan), (PLAN_HISTORY_TABLE, of_history))
    )
    copied = {
        name: _in_form(plan.c[name], history.c[name])
        for name in of_plan
        if name in of_history and not _given(of_history[name])
    }
    return plan, history, copied


def require(connection: Connection, ledger: bool = True) -> None:
    """Raise Unusable, naming every table and column that we need and the database lacks, and those we cannot fill.

    Without `ledger`, only license-manager's are looked at.
    """
    inspector = inspect(connection)
    theirs = {each.name: set(each.columns.keys()) for each in LicenseManager.metadata.sorted_tables}
    theirs[PLAN_HISTORY_TABLE] = {"uuid", *_OF_HISTORY}
    remedy = "is DATABASE_URL license-manager's database, and migrated?"
    problems = {name: _lacking(inspector, name, columns, remedy) for name, columns in theirs.items()}
    # Where a column is missing, it may be there under another name.
    if not problems[PLAN_TABLE] and not problems[PLAN_HISTORY_TABLE]:
        known = {each["name"] for each in inspector.get_columns(PLAN_TABLE) if not each["nullable"]} | _OF_HISTORY
        problems[PLAN_HISTORY_TABLE] = _unknown(connection, inspector, PLAN_HISTORY_TABLE, known)
    if not problems[EVENT_TABLE]:
        problems[EVENT_TABLE] = _unknown(connection, inspector, EVENT_TABLE, theirs[EVENT_TABLE] - {"id"})
    for each in Ledger.metadata.sorted_tables if ledger else ():
        columns = set(each.columns.keys())
        problems[each.name] = _lacking(inspector, each.name, columns, "run license-expiry init-db")
    if told := [f"  {each}" for of_table in problems.values() for each in of_table]:
        raise Unusable("\n".join(["The database cannot be used:", *told]))


def _lacking(inspector: Inspector, name: str, wanted: set[str], remedy: str) -> list[str]:
    try:
        there = {each["name"] for each in inspector.get_columns(name)}
    except NoSuchTableError:
        return [f"table {name} is missing: {remedy}"]
    return [f"table {name} lacks column {each}: {remedy}" for each in sorted(wanted - there)]


def _unknown(connection: Connection, inspector: Inspector, name: str, known: set[str]) -> list[str]:
    """The columns that a row which we insert must have a value for, beside those that we know."""
    return [
        f"table {name} has column {each['name']}, which must be given a value that this release does not know: "
        "install a release of license-expiry that does, or give the column a default"
        for each in inspector.get_columns(name)
        if each["name"] not in known and not _filled_without_us(connection, name, each)
    ]


def _given(column: ReflectedColumn) -> bool:
    """Does the database insist on giving this column its value?"""
    return "computed" in column or bool(column.get("identity") and column["identity"]["always"])


def _filled_without_us(connection: Connection, table_name: str, column: ReflectedColumn) -> bool:
    seen = column["nullable"] or column["default"] is not None or column.get("autoincrement") is True
    if seen or _given(column):
        return True
    if connection.dialect.name == "sqlite":  # which numbers such a key, and says so nowhere
        return bool(column.get("primary_key")) and isinstance(column["type"], Integer)
    # SQLAlchemy does not see each default of MySQL's and MariaDB's that is an expression.
    names = {"table": table_name, "column": column["name"]}
    return connection.dialect.name != "postgresql" and connection.scalar(_MYSQL_DEFAULT, names) is not None


def _in_form(value: ColumnElement[Any], of: ColumnElement[Any]) -> ColumnElement[Any]:
    """A column's value in the form of another column: one MariaDB server can hold both forms of UUID.

    Its native type takes the 32 digits as they are.
    """
    shortened = isinstance(value.type, Uuid) and not isinstance(of.type, Uuid)
    return func.replace(value, "-", "") if shortened else value


def cannot_be_used(engine: Engine, error: DBAPIError) -> str:
    """One sentence about a database error, with neither a password nor a statement's parameters in it."""
    where = engine.url.set(query={}).render_as_string(hide_password=True)
    cause = " ".join(str(error.orig).split())
    return f"the database {where} cannot be used ({cause}): check DATABASE_URL, the account's rights and the server"
