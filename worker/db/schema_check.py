"""Checks the database's tables: finds missing tables and columns, and columns that we cannot fill."""

from sqlalchemy import Connection, Inspector, Integer, inspect, text
from sqlalchemy.engine.interfaces import ReflectedColumn
from sqlalchemy.exc import DBAPIError, NoSuchTableError

from worker.db.engine import DENIED, code_of
from worker.db.ledger_tables import Ledger
from worker.db.license_manager_tables import License, LicenseEvent, LicenseManager
from worker.errors import SeveralWrong, Unusable

PLAN_TABLE = "subscriptions_subscriptionplan"
PLAN_HISTORY_TABLE = "subscriptions_historicalsubscriptionplan"
EVENT_TABLE = LicenseEvent.__tablename__
_OF_HISTORY = {"history_type", "history_date"}  # columns of a history row that the plan does not have

_MYSQL_DEFAULT = text(
    "SELECT column_default FROM information_schema.columns"
    " WHERE table_schema = DATABASE() AND table_name = :table AND column_name = :column"
)


def require_schema(connection: Connection, ledger: bool = True) -> None:
    """Raise SeveralWrong with every table and column that is missing, and every column that we cannot fill.

    Without `ledger`, checks only license-manager's tables.
    """
    inspector = inspect(connection)
    theirs = {table.name: set(table.columns.keys()) for table in LicenseManager.metadata.sorted_tables}
    remedy = "check that DATABASE_URL is license-manager's database and that its migrations have run"
    problems = {name: _lacking(inspector, name, columns, remedy) for name, columns in theirs.items()}
    # Unknown columns are reported only if none is missing: a missing one may have been renamed.
    if not problems[PLAN_TABLE] and not problems[PLAN_HISTORY_TABLE]:
        known = {column["name"] for column in inspector.get_columns(PLAN_TABLE) if not column["nullable"]} | _OF_HISTORY
        problems[PLAN_HISTORY_TABLE] = _unknown(connection, inspector, PLAN_HISTORY_TABLE, known)
    if not problems[EVENT_TABLE]:
        problems[EVENT_TABLE] = _unknown(connection, inspector, EVENT_TABLE, theirs[EVENT_TABLE] - {"id"})
    for table in Ledger.metadata.sorted_tables if ledger else ():
        columns = set(table.columns.keys())
        problems[table.name] = _lacking(inspector, table.name, columns, "run license-expiry init-db")
    if found := [problem for of_table in problems.values() for problem in of_table]:
        raise SeveralWrong("The database cannot be used", found)


def _lacking(inspector: Inspector, name: str, wanted: set[str], remedy: str) -> list[Unusable]:
    try:
        there = {column["name"] for column in inspector.get_columns(name)}
    except NoSuchTableError:
        return [Unusable(f"table {name} is missing", remedy, name)]
    except DBAPIError as error:
        if name != License.__tablename__ or code_of(error) not in DENIED:
            raise
        return []  # MySQL and MariaDB hide a table from an account with column privileges only, such as serve's
    return [Unusable(f"table {name} lacks column {column}", remedy, name) for column in sorted(wanted - there)]


def _unknown(connection: Connection, inspector: Inspector, name: str, known: set[str]) -> list[Unusable]:
    """Return an error for each column that needs a value when we insert a row, and that is not `known`."""
    return [
        Unusable(
            f"table {name} has column {column['name']}, which needs a value that this release does not know",
            "install a release of license-expiry that knows it, or give the column a default",
            name,
        )
        for column in inspector.get_columns(name)
        if column["name"] not in known and not _filled_without_us(connection, name, column)
    ]


def is_generated(column: ReflectedColumn) -> bool:
    """Return whether the database always generates this column's value."""
    return "computed" in column or bool(column.get("identity") and column["identity"]["always"])


def _filled_without_us(connection: Connection, table_name: str, column: ReflectedColumn) -> bool:
    seen = column["nullable"] or column["default"] is not None or column.get("autoincrement") is True
    if seen or is_generated(column):
        return True
    if connection.dialect.name == "sqlite":  # numbers an integer primary key, but does not report a default
        return bool(column.get("primary_key")) and isinstance(column["type"], Integer)
    # SQLAlchemy does not report some default expressions of MySQL and MariaDB.
    names = {"table": table_name, "column": column["name"]}
    return connection.dialect.name != "postgresql" and connection.scalar(_MYSQL_DEFAULT, names) is not None
