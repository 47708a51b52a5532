"""What is wrong with the database's tables: those that are missing, and columns that we cannot fill."""

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
_OF_HISTORY = {"history_type", "history_date"}  # what a row of it gets beside the plan's columns

_MYSQL_DEFAULT = text(
    "SELECT column_default FROM information_schema.columns"
    " WHERE table_schema = DATABASE() AND table_name = :table AND column_name = :column"
)


def require_schema(connection: Connection, ledger: bool = True) -> None:
    """Raise SeveralWrong, naming every table and column that we need and the database lacks or that we cannot fill.

    Without `ledger`, only license-manager's tables are looked at.
    """
    inspector = inspect(connection)
    theirs = {table.name: set(table.columns.keys()) for table in LicenseManager.metadata.sorted_tables}
    remedy = "is DATABASE_URL license-manager's database, and migrated?"
    problems = {name: _lacking(inspector, name, columns, remedy) for name, columns in theirs.items()}
    # Where a column is missing, it may be there under another name.
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
        return []  # MySQL and MariaDB show no table to an account that may read some of its columns, as serve's may
    return [Unusable(f"table {name} lacks column {column}", remedy, name) for column in sorted(wanted - there)]


def _unknown(connection: Connection, inspector: Inspector, name: str, known: set[str]) -> list[Unusable]:
    """The columns that a row which we insert must have a value for, beside those that we know."""
    return [
        Unusable(
            f"table {name} has column {column['name']}, which must be given a value that this release does not know",
            "install a release of license-expiry that does, or give the column a default",
            name,
        )
        for column in inspector.get_columns(name)
        if column["name"] not in known and not _filled_without_us(connection, name, column)
    ]


def is_generated(column: ReflectedColumn) -> bool:
    """Does the database insist on giving this column its value?"""
    return "computed" in column or bool(column.get("identity") and column["identity"]["always"])


def _filled_without_us(connection: Connection, table_name: str, column: ReflectedColumn) -> bool:
    seen = column["nullable"] or column["default"] is not None or column.get("autoincrement") is True
    if seen or is_generated(column):
        return True
    if connection.dialect.name == "sqlite":  # which numbers such a key, and says so nowhere
        return bool(column.get("primary_key")) and isinstance(column["type"], Integer)
    # SQLAlchemy does not see each default of MySQL's and MariaDB's that is an expression.
    names = {"table": table_name, "column": column["name"]}
    return connection.dialect.name != "postgresql" and connection.scalar(_MYSQL_DEFAULT, names) is not None
