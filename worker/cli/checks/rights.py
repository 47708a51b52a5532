"""The rights that the database account needs on each table, lacks, or has in excess.

A right is tested by an EXPLAIN of a statement that needs it. The database refuses that as it would refuse the
statement, whichever way the right is granted, and nothing is executed. docs/how-to/accounts.md has the GRANTs.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import Connection, Dialect, text
from sqlalchemy.exc import DBAPIError

from worker.cli.checks.findings import Finding
from worker.db.engine import DENIED, code_of
from worker.db.ledger_tables import Ledger
from worker.db.license_manager_tables import (
    CustomerAgreement,
    HistoricalLicense,
    Histories,
    License,
    LicenseManager,
    SubscriptionPlanRenewal,
)
from worker.db.schema_check import EVENT_TABLE, PLAN_HISTORY_TABLE, PLAN_TABLE
from worker.ledger.migrations import VERSION_TABLE

_MARKED = ["expiration_processed", "modified"]
MARK = f"UPDATE ({', '.join(_MARKED)})"
Wanted: TypeAlias = dict[str, tuple[str, ...]]  # by table
RIGHTS: Wanted = {
    CustomerAgreement.__tablename__: ("SELECT",),
    PLAN_TABLE: ("SELECT", MARK),
    SubscriptionPlanRenewal.__tablename__: ("SELECT",),
    License.__tablename__: ("SELECT",),
    EVENT_TABLE: ("SELECT", "INSERT"),
    PLAN_HISTORY_TABLE: ("SELECT", "INSERT"),
    "license_expiry_run": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "license_expiry_downgrade": ("SELECT", "INSERT", "DELETE"),
    "license_expiry_held": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "license_expiry_night": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "license_expiry_lms": ("SELECT", "INSERT", "UPDATE"),
    "license_expiry_throttle": ("SELECT", "UPDATE"),
    "license_expiry_heartbeat": ("SELECT", "INSERT", "UPDATE"),
    "license_expiry_retry": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "license_expiry_wait": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "license_expiry_ledger": ("SELECT",),
    "license_expiry_lms_call": ("SELECT", "INSERT", "DELETE"),
    "license_expiry_pruned": ("SELECT", "INSERT", "UPDATE"),
    VERSION_TABLE: ("SELECT",),
}
# By these columns /metrics counts the work due; the pages need the others alone.
PERSONAL = ("lms_user_id", "user_email")
_SEEN = ", ".join(sorted({*License.__table__.columns.keys()} - {*PERSONAL}))
OF_SERVE: Wanted = {**dict.fromkeys(RIGHTS, ("SELECT",)), License.__tablename__: (f"SELECT ({_SEEN})",)}
# A night does without these, and then knows less.
OPTIONAL: Wanted = {HistoricalLicense.__tablename__: ("SELECT",)}
# Before Django 4.1 license-manager numbered rows by a sequence, whose use is a right of its own.
NUMBERED = ((EVENT_TABLE, "id"), (PLAN_HISTORY_TABLE, "history_id"))

_ON_COLUMNS = ["SELECT", "INSERT", "UPDATE", "REFERENCES"]
_ON_TABLES = ["DELETE", "TRUNCATE", "TRIGGER"]
_COLUMNS = {
    table.name: table.columns.keys()
    for base in (LicenseManager, Histories, Ledger)
    for table in base.metadata.sorted_tables
}
_WHOLE = (PLAN_TABLE, VERSION_TABLE)  # read with all columns that there may be


@dataclass(frozen=True)
class Right:
    """A privilege on a table or (PostgreSQL) a sequence."""

    verb: str
    table: str

    def grant(self, connection: Connection) -> str:
        """The statement that gives it to the account of this connection."""
        database = connection.dialect.identifier_preparer.quote(str(connection.engine.url.database))
        where = self.table if connection.dialect.name == "postgresql" else f"{database}.{self.table}"
        return f"GRANT {self.verb} ON {where} TO {account(connection)}"


def of_ledger(table: str) -> bool:
    """Is this the name of a table of the ledger's?"""
    return table.startswith("license_expiry_")


def lacks(whose: str, right: Right, connection: Connection) -> Finding:
    """The finding for a right that this account lacks, with its GRANT."""
    return Finding("rights", "wrong", f"{whose} lacks {right.verb} on {right.table}", right.grant(connection))


def surplus(connection: Connection, than: str, remedy: str, wanted: Wanted = RIGHTS) -> Iterator[Finding]:
    """A warning where the account may do more `than` is wanted."""
    if more := surplus_rights(connection, wanted):
        shown = "; ".join(more[:4]) + (f"; and on {len(more) - 4} more" if more[4:] else "")
        yield Finding("rights", "warning", f"{account(connection)} may do more than {than}: {shown}", remedy)


def account(connection: Connection) -> str:
    """The account of this connection as a GRANT names it."""
    if connection.dialect.name == "postgresql":
        name = str(connection.execute(text("SELECT current_user")).scalar_one())
        return connection.dialect.identifier_preparer.quote(name)
    name = str(connection.execute(text("SELECT CURRENT_USER()")).scalar_one())
    user, _, host = name.replace("'", "''").rpartition("@")
    return f"'{user}'@'{host}'"


def missing_rights(connection: Connection, wanted: Wanted = RIGHTS) -> list[Right]:
    """The rights of these that the account does not have; tables and columns that are not there are passed over."""
    if connection.dialect.name == "postgresql" and not connection.scalar(text("SELECT current_schema()")):
        path = str(connection.scalar(text("SELECT current_setting('search_path')"))).split(",")
        return [Right("USAGE", f"SCHEMA {next((name.strip() for name in path if '$user' not in name), 'public')}")]
    numbered = connection.dialect.name == "postgresql" and wanted is RIGHTS
    return _lacking(connection, wanted) + (list(_sequences(connection)) if numbered else [])


def missing_optional_rights(connection: Connection) -> list[Right]:
    """The rights of OPTIONAL that the account does not have."""
    return _lacking(connection, OPTIONAL)


def _lacking(connection: Connection, wanted: Wanted) -> list[Right]:
    return [
        Right(verb, table) for table, verbs in wanted.items() for verb in verbs if not _may(connection, verb, table)
    ]


def may_read_emails(connection: Connection) -> bool:
    """May the account read who has a license?"""
    return _may(connection, f"SELECT ({', '.join(PERSONAL)})", License.__tablename__)


def surplus_rights(connection: Connection, wanted: Wanted = RIGHTS) -> list[str]:
    """Privileges that the account has beyond these and those in OPTIONAL, such as "DELETE on …".

    Reading more of a table that it reads is not reported; nor, of RIGHTS, is anything on the ledger's tables.
    """
    if connection.dialect.name == "postgresql":
        return _surplus_on_postgresql(connection, wanted)
    database = f"{connection.engine.url.database}."
    found = []
    for (line,) in connection.execute(text("SHOW GRANTS")):
        granted = re.match(r"GRANT (.+) ON (.+) TO [`'].*?( WITH GRANT OPTION)?$", line)
        if granted:  # else it makes the account a member of a role, whose rights have lines of their own
            where = granted[2].replace("`", "").replace("\\", "")
            table = where.removeprefix(database) if where.startswith(database) else ""
            verbs = [_normal(verb) for verb in re.findall(r"[^,(]+(?:\([^)]*\))?", granted[1])]
            verbs += ["GRANT OPTION"] if granted[3] else []
            if more := [verb for verb in verbs if verb != "USAGE" and not _is_allowed(verb, table, wanted)]:
                found.append(_told(more, where))
    return found


def _is_allowed(verb: str, table: str, wanted: Wanted) -> bool:
    allowed = (wanted | OPTIONAL).get(table, ())
    reads = verb.startswith("SELECT") and bool(allowed)
    return reads or verb in allowed or (of_ledger(table) and wanted is RIGHTS)


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
        if error.connection_invalidated:
            raise
        return code_of(error) not in DENIED
    finally:
        connection.rollback()


def _needing(verb: str, table: str, dialect: Dialect) -> str:
    """A statement that needs this right, on each column that we use."""
    names = [dialect.identifier_preparer.quote(name) for name in _COLUMNS.get(table, ())]
    numbered = table in (EVENT_TABLE, PLAN_HISTORY_TABLE)  # by the database, in the first column
    _, of_columns, listed = verb.rstrip(")").partition(" (")
    written = listed.split(", ") if of_columns else names[numbered:]
    read = listed if of_columns else "*" if table in _WHOLE else ", ".join(names)
    words = {
        "SELECT": ("SELECT", read, "FROM", table, "WHERE FALSE"),
        "INSERT": ("INSERT INTO", table, f"({', '.join(written)}) VALUES ({', '.join(['NULL'] * len(written))})"),
        "UPDATE": ("UPDATE", table, "SET", ", ".join(f"{name} = NULL" for name in written), "WHERE FALSE"),
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


def _surplus_on_postgresql(connection: Connection, wanted: Wanted) -> list[str]:
    about = text(
        "SELECT rolsuper, rolcreaterole, rolcreatedb, has_schema_privilege(current_schema(), 'CREATE')"
        " FROM pg_roles WHERE rolname = current_user"
    )
    superuser, *others = connection.execute(about).one()
    if others[-1] is None:  # it may use no schema
        return []
    if superuser:
        return ["everything, being a superuser"]
    attributes = ("make roles", "make databases", "make tables of its own")
    found: dict[str, list[str]] = {}
    marked = _MARKED if MARK in wanted[PLAN_TABLE] else []
    asked = {"verbs": _ON_TABLES + _ON_COLUMNS, "on_columns": _ON_COLUMNS, "plan": PLAN_TABLE, "marked": marked}
    for table, verb in connection.execute(text(_SURPLUS), asked):
        if not _is_allowed(verb, table, wanted):
            found.setdefault(table, []).append(verb)
    told = [_told(verbs, table) for table, verbs in found.items()]
    return [what for what, may in zip(attributes, others, strict=True) if may] + told


# Each right on each table, view or column of them, except the columns of a plan that we mark.
_SURPLUS = """
SELECT CASE WHEN n.nspname = current_schema() THEN '' ELSE n.nspname || '.' END || c.relname AS name, verb
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN unnest(CAST(:verbs AS text[])) verb
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'
AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
AND CASE WHEN verb <> ALL(CAST(:on_columns AS text[])) THEN has_table_privilege(c.oid, verb) ELSE EXISTS (
    SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    AND NOT (verb = 'UPDATE' AND c.oid = to_regclass(:plan) AND a.attname = ANY(CAST(:marked AS text[])))
    AND has_column_privilege(c.oid, a.attnum, verb)
) END ORDER BY 1, 2
"""
