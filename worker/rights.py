"""Which rights the database account needs on each table, which of them it lacks, and what it could do besides.

A right is looked for by having the database explain a statement that needs it: that is refused as the statement
itself would be, whichever way the right is granted, and nothing is executed. docs/security.md has the GRANTs.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Dialect, text
from sqlalchemy.exc import DBAPIError

from worker.database import EVENT_TABLE, PLAN_HISTORY_TABLE, PLAN_TABLE
from worker.migrations import VERSION_TABLE
from worker.models import CustomerAgreement, Ledger, License, LicenseManager, SubscriptionPlanRenewal

_MARKED = ["expiration_processed", "modified"]
MARK = f"UPDATE ({', '.join(_MARKED)})"
RIGHTS: dict[str, tuple[str, ...]] = {
    CustomerAgreement.__tablename__: ("SELECT",),
    PLAN_TABLE: ("SELECT", MARK),
    SubscriptionPlanRenewal.__tablename__: ("SELECT",),
    License.__tablename__: ("SELECT",),
    EVENT_TABLE: ("SELECT", "INSERT"),
    PLAN_HISTORY_TABLE: ("SELECT", "INSERT"),
    "license_expiry_run": ("SELECT", "INSERT", "UPDATE"),
    "license_expiry_downgrade": ("SELECT", "INSERT", "DELETE"),
    "license_expiry_held": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "license_expiry_night": ("SELECT", "INSERT", "UPDATE"),
    "license_expiry_throttle": ("SELECT", "UPDATE"),
    "license_expiry_heartbeat": ("SELECT", "INSERT", "UPDATE"),
    "license_expiry_retry": ("SELECT", "INSERT", "DELETE"),
    "license_expiry_lms_call": ("SELECT", "INSERT", "DELETE"),
    VERSION_TABLE: ("SELECT",),
}
LEDGERS = "license_expiry_"
# Before Django 4.1 license-manager numbered rows by a sequence, whose use is a right of its own.
NUMBERED = ((EVENT_TABLE, "id"), (PLAN_HISTORY_TABLE, "history_id"))

_DENIED = {1044, 1142, 1143, "42501"}  # MySQL's and MariaDB's numbers; PostgreSQL's SQLSTATE
_ON_COLUMNS = ["SELECT", "INSERT", "UPDATE", "REFERENCES"]
_ON_TABLES = ["DELETE", "TRUNCATE", "TRIGGER"]
_COLUMNS = {
    each.name: each.columns.keys() for base in (LicenseManager, Ledger) for each in base.metadata.sorted_tables
} | {PLAN_HISTORY_TABLE: ["uuid", "history_type", "history_date"]}


@dataclass(frozen=True)
class Right:
    """What may be done, on a table or (PostgreSQL) a sequence."""

    verb: str
    table: str

    def grant(self, dialect: str, database: str, account: str) -> str:
        """The statement that gives it to this account; `database` is MySQL's and MariaDB's name for the schema."""
        return (
            f"GRANT {self.verb} ON {self.table if dialect == 'postgresql' else f'{database}.{self.table}'} TO {account}"
        )


def account(connection: Connection) -> str:
    """The account of this connection as a GRANT names it."""
    if connection.dialect.name == "postgresql":
        name = str(connection.execute(text("SELECT current_user")).scalar_one())
        return connection.dialect.identifier_preparer.quote(name)
    user, _, host = str(connection.execute(text("SELECT CURRENT_USER()")).scalar_one()).rpartition("@")
    return f"'{user}'@'{host}'"


def lacking(connection: Connection) -> list[Right]:
    """The rights of RIGHTS that the account does not have; tables and columns that are not there are passed over."""
    if connection.dialect.name == "postgresql" and not connection.scalar(text("SELECT current_schema()")):
        return [Right("USAGE", "SCHEMA public")]
    lacks = [
        Right(verb, table) for table, verbs in RIGHTS.items() for verb in verbs if not _may(connection, verb, table)
    ]
    return lacks + (list(_sequences(connection)) if connection.dialect.name == "postgresql" else [])


def besides(connection: Connection) -> list[str]:
    """What the account may do besides, but for making and changing the ledger's tables: "DELETE on …" and the like."""
    if connection.dialect.name == "postgresql":
        return _besides_on_postgresql(connection)
    found = []
    for (line,) in connection.execute(text("SHOW GRANTS")):
        granted = re.match(r"GRANT (.+) ON (?:TABLE )?(\S+) TO ", line)
        if granted:
            where = granted[2].replace("`", "").replace("\\", "")
            table = where.removeprefix(f"{connection.engine.url.database}.")
            verbs = [_normal(verb) for verb in re.findall(r"[^,(]+(?:\([^)]*\))?", granted[1])]
            more = [verb for verb in verbs if verb not in ("USAGE", *RIGHTS.get(table, ()))]
            if more and not table.startswith(LEDGERS):
                found.append(_told(more, where))
    return found


def _normal(verb: str) -> str:
    name, _, columns = verb.replace("`", "").strip().partition(" (")
    return f"{name} ({', '.join(sorted(columns.rstrip(')').split(', ')))})" if columns else name


def _told(verbs: list[str], where: str) -> str:
    return f"{', '.join(verbs[:3])}{f' and {len(verbs) - 3} more' if verbs[3:] else ''} on {where}"


def _may(connection: Connection, verb: str, table: str) -> bool:
    try:
        connection.exec_driver_sql(f"EXPLAIN {_needing(verb, table, connection.dialect)}").close()
        return True
    except DBAPIError as error:
        return not {getattr(error.orig, "sqlstate", None), *getattr(error.orig, "args", ())} & _DENIED
    finally:
        connection.rollback()


def _needing(verb: str, table: str, dialect: Dialect) -> str:
    """A statement that needs this right; of a table that is copied whole, each column."""
    whole = table in (PLAN_TABLE, VERSION_TABLE)
    columns = ["*"] if whole else [dialect.identifier_preparer.quote(name) for name in _COLUMNS[table]]
    changed = ", ".join(f"{name} = NULL" for name in (_MARKED if verb == MARK else columns))
    words = {
        "SELECT": ("SELECT", ", ".join(columns), "FROM", table, "WHERE FALSE"),
        "INSERT": ("INSERT INTO", table, "DEFAULT VALUES" if dialect.name == "postgresql" else "() VALUES ()"),
        "UPDATE": ("UPDATE", table, "SET", changed, "WHERE FALSE"),
        "DELETE": ("DELETE FROM", table, "WHERE FALSE"),
    }
    return " ".join(words[verb.split()[0]])


def _sequences(connection: Connection) -> Iterator[Right]:
    numbered = text(
        "SELECT pg_get_serial_sequence(:table, :column) FROM information_schema.columns"
        " WHERE table_schema = current_schema() AND table_name = :table AND column_name = :column"
        " AND column_default LIKE 'nextval(%'"
    )
    for table, column in NUMBERED:
        sequence = connection.execute(numbered, {"table": table, "column": column}).scalar()
        allowed = text("SELECT has_sequence_privilege(:sequence, 'USAGE')")
        if sequence and not connection.execute(allowed, {"sequence": sequence}).scalar_one():
            yield Right("USAGE", f"SEQUENCE {sequence}")


def _besides_on_postgresql(connection: Connection) -> list[str]:
    if connection.execute(text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")).scalar_one():
        return ["everything, being a superuser"]
    question = text(
        "SELECT c.relname, p FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " CROSS JOIN unnest(CAST(:verbs AS text[])) p"
        " WHERE c.relkind IN ('r', 'p') AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'"
        " AND CASE WHEN p = ANY(CAST(:on_columns AS text[])) THEN has_any_column_privilege(c.oid, p)"
        " ELSE has_table_privilege(c.oid, p) END ORDER BY c.relname, p"
    )
    found: dict[str, list[str]] = {}
    for table, verb in connection.execute(question, {"verbs": _ON_TABLES + _ON_COLUMNS, "on_columns": _ON_COLUMNS}):
        if not table.startswith(LEDGERS) and verb not in RIGHTS.get(table, ()):
            found.setdefault(table, []).append(verb)
    others = text(
        "SELECT count(*) FROM pg_attribute a WHERE a.attrelid = to_regclass(:plan) AND a.attnum > 0"
        " AND a.attname <> ALL(CAST(:marked AS text[])) AND has_column_privilege(a.attrelid, a.attnum, 'UPDATE')"
    )
    if not connection.execute(others, {"marked": _MARKED, "plan": PLAN_TABLE}).scalar_one():
        found[PLAN_TABLE] = [verb for verb in found.get(PLAN_TABLE, ()) if verb != "UPDATE"]
    return [_told(verbs, table) for table, verbs in found.items() if verbs]
