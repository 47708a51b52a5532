"""Checks the database: the server, its clock, tables and rights, and each query of a night."""

from collections.abc import Iterator
from datetime import timedelta
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, literal, select, text
from sqlalchemy.exc import DBAPIError

from worker.cli.checks import rights
from worker.cli.checks.findings import NAMED, Finding, clock_finding, wrong
from worker.cli.checks.rights import Right
from worker.db.engine import address_of, cannot_be_used, cause_of, make_engine
from worker.db.license_manager_tables import CustomerAgreement
from worker.db.sql import Explain, Fingerprint, Mailbox, Rows
from worker.db.transactions import Database
from worker.db.writes import check_writes
from worker.due import downgrades, enterprises, plans, unlinks
from worker.due.scope import Scope, scope_of
from worker.errors import SeveralWrong, Unusable
from worker.ledger import migrations
from worker.lms.client import NOBODYS_LICENSE
from worker.runs.request import unknown_enterprises
from worker.settings import DatabaseSettings

POOLED_ROUNDS = 5
NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MySQL", "mariadb": "MariaDB"}


def check_database(settings: DatabaseSettings) -> Iterator[Finding]:
    """Look at the database of these settings. Raises LicenseExpiryError when it cannot be looked at."""
    database = Database(make_engine(settings.DATABASE_URL))
    try:
        with database.engine.connect() as connection:
            yield from _server(connection)
            yield clock_finding("the database's", database.now)
            yield from _pooled(connection)
            kind = connection.dialect.name
            missing = [] if kind == "sqlite" else rights.missing_rights(connection)
            unseen = {right.table for right in missing if right.verb == "SELECT" or right.table.startswith("SCHEMA")}
            seen = migrations.VERSION_TABLE not in unseen
            level = migrations.level(connection) if seen else None
            connection.rollback()
            stale = seen and level != migrations.revisions()[0]
            if kind != "sqlite":  # rights on tables that are still to be made can be given only then
                told = [right for right in missing if not (stale and rights.of_ledger(right.table))]
                yield from _rights(connection, told)
        if not any(table.startswith("SCHEMA") for table in unseen):
            yield from _tables(database, settings, level, unseen)
    except DBAPIError as error:
        raise Unusable(*cannot_be_used(database.engine, error)) from error
    finally:
        database.engine.dispose()


def _server(connection: Connection) -> Iterator[Finding]:
    """Check the version, that it takes writes, and its hash function."""
    dialect = connection.dialect
    kind = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
    version = ".".join(map(str, dialect.server_version_info or ()))
    yield Finding("database", "ok", f"{NAMES[kind]} {version} at {address_of(connection.engine)}")
    try:
        check_writes(connection)
    except Unusable as error:
        yield from wrong("database", error)
    hashed = sha256(b"ann@example.org").digest() if dialect.name in ("mysql", "mariadb") else "ann@example.org"
    try:
        found = connection.scalar(select(Fingerprint(Mailbox(literal(" Ann@Example.org ")))))
    except DBAPIError as error:
        found = cause_of(error)
    if found != hashed:
        what = f"its SHA2() or LOWER() returns wrong values, so learners would be matched wrongly: {found!r}"
        yield Finding("database", "wrong", what, "ask its administrator which setting changes them, such as FIPS")
    connection.rollback()


def _tables(database: Database, settings: DatabaseSettings, level: str | None, unseen: set[str]) -> Iterator[Finding]:
    """The faults of tables that can be seen, and of what is in them."""
    hidden = {table for table in unseen if rights.of_ledger(table)}
    bad = _bad_tables(database, ledger=False) if unseen == hidden else []
    for table in bad:
        yield from wrong("database", table)
    if unseen == hidden and not bad:
        yield Finding("database", "ok", "license-manager's tables have every column that is used")
    if migrations.VERSION_TABLE not in unseen:
        yield from _ledger(database, level, look=not unseen)
    if not bad and not unseen and level == migrations.revisions()[0]:
        yield from _questions(database, settings)
    yield from _kept_by(database)
    if unseen == hidden and CustomerAgreement.__tablename__ not in [error.table for error in bad]:
        yield from _unlinking(settings, database)


def _ledger(database: Database, level: str | None, look: bool) -> Iterator[Finding]:
    head = migrations.revisions()[0]
    if level is None:
        yield Finding("ledger", "wrong", "its tables do not exist", "run license-expiry init-db")
    elif level != head:
        newer = level not in migrations.revisions()
        remedy = "install the release that made it" if newer else "run license-expiry init-db"
        yield Finding("ledger", "wrong", f"its tables are at {level}, and this release has {head}", remedy)
    elif look:
        bad = [error for error in _bad_tables(database, ledger=True) if rights.of_ledger(error.table)]
        ours = [finding for error in bad for finding in wrong("ledger", error)] or list(_forms(database))
        yield from ours or [Finding("ledger", "ok", f"its tables are at {level}, as this release has them")]


def _questions(database: Database, settings: DatabaseSettings) -> Iterator[Finding]:
    """Check that the database accepts every query of a night. Runs EXPLAIN only, never the query."""
    scope = scope_of(database, settings, database.now())
    with database.engine.connect() as connection:
        for name, question in _asked(scope):
            try:
                connection.execute(Explain(question)).close()
            except DBAPIError as error:
                what = f"its EXPLAIN fails for the query of {name} ({cause_of(error)})"
                yield Finding("database", "wrong", what, "see docs/reference/database.md for the supported servers")
                return
            finally:
                connection.rollback()
        undated = connection.execute(plans.plans_without_date(scope)).all()
    yield Finding("database", "ok", "it accepts every query of a night")
    if undated:
        named = ", ".join(str(plan) for plan, _ in undated[:NAMED])
        what = f"the expiration date of {len(undated)} plans cannot be read, and no night touches these: {named}"
        yield Finding("database", "warning", what, "correct the date in subscriptions_subscriptionplan")


def _asked(scope: Scope) -> Iterator[tuple[str, Rows]]:
    nobody = NOBODYS_LICENSE
    yield "the enterprises with work", enterprises.perhaps_due_enterprises(scope)
    yield "the due plans", plans.due_plans(scope)
    yield "the plans that are done", plans.done_and_unmarked(scope)
    yield "the plans that wait for a renewal", plans.plans_waiting_for_renewal(scope)
    yield "the licenses to downgrade", downgrades.downgrade_page(scope, nobody, False, 1, nobody)
    yield "the licenses to downgrade alone", downgrades.downgrade_page(scope, nobody, True, 1, nobody)
    yield "the learners to unlink", unlinks.unlink_page(scope, 1, nobody)
    yield "the learners who are protected", unlinks.protected(scope)


def _kept_by(database: Database) -> Iterator[Finding]:
    """MySQL and MariaDB: are the tables InnoDB's, and is there memory enough for them?"""
    if database.engine.dialect.name not in ("mysql", "mariadb"):
        return
    question = text(
        "SELECT table_name, engine, data_length + index_length, @@innodb_buffer_pool_size"
        " FROM information_schema.tables WHERE table_schema = DATABASE() AND engine IS NOT NULL"
    )
    with database.engine.connect() as connection:
        ours = [row for row in connection.execute(question) if row[0] in {**rights.RIGHTS, **rights.OPTIONAL}]
    for name, kept_by, *_ in ours:
        if kept_by != "InnoDB":
            what = f"{name} is kept by {kept_by}, which has no transactions: what is half done stays so"
            remedy = f"stop the workers, then ALTER TABLE {name} ENGINE = InnoDB"
            yield Finding("ledger" if rights.of_ledger(name) else "database", "wrong", what, remedy)
    size, pool = sum(int(row[2] or 0) for row in ours), max((int(row[3]) for row in ours), default=0)
    if size > pool:
        what = f"innodb_buffer_pool_size is {pool >> 20} MB, and the tables that a night reads take {size >> 20} MB"
        yield Finding("database", "warning", f"{what}: it reads them from disk", f"give it {size >> 19} MB or more")


def _pooled(one: Connection) -> Iterator[Finding]:
    """Warn if connections share server sessions, as in PgBouncer's transaction mode.

    On a server itself each connection that is open has one session, which nobody else has. A pool that others use as
    well may hand out another session by chance, so it is asked several times.
    """
    if one.dialect.name != "postgresql":
        return
    one.rollback()
    session = text("SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()")
    with one.engine.connect() as other:
        seen = {one: set[Any](), other: set[Any]()}
        for connection in [one, other] * POOLED_ROUNDS:
            seen[connection].add(tuple(connection.execute(session).one()))
            connection.rollback()
    if any(len(sessions) > 1 for sessions in seen.values()) or seen[one] & seen[other]:
        what = (
            "a pool such as PgBouncer shares server sessions between clients: our session settings (lock_timeout, "
            "work_mem and others) can apply to other clients, such as license-manager, and may not apply to us"
        )
        remedy = "set DATABASE_URL to the server itself, or to a pool with pool_mode = session"
        yield Finding("database", "wrong", what, remedy)


def _forms(database: Database) -> Iterator[Finding]:
    with database.engine.connect() as connection:
        if unlike := migrations.unlike(connection):
            names = ", ".join(f"{column.table.name}.{column.name}" for column in unlike)
            what = f"its UUIDs are of another type or collation than subscriptions_license.uuid: {names}"
            yield Finding("ledger", "wrong", what, "stop the workers and run license-expiry init-db")


def _bad_tables(database: Database, ledger: bool) -> list[Unusable]:
    try:
        database.require_schema(ledger=ledger)
        return []
    except SeveralWrong as error:
        return error.parts


def _rights(connection: Connection, missing: list[Right]) -> Iterator[Finding]:
    account = rights.account(connection)
    ours = [right for right in missing if rights.of_ledger(right.table)]
    if len(ours) == sum(len(verbs) for table, verbs in rights.RIGHTS.items() if rights.of_ledger(table)):
        remedy = "run license-expiry init-db with an account that may, then the GRANTs of docs/how-to/accounts.md"
        yield Finding(
            "rights", "wrong", f"{account} has no right on the ledger's tables, or the tables do not exist", remedy
        )
        named = [right for right in missing if right not in ours]
    else:
        named = missing
    for right in named:
        yield rights.lacks(account, right, connection)
    if not missing:
        yield Finding("rights", "ok", f"{account} has each right that is needed")
    for right in rights.missing_optional_rights(connection):
        what = (
            f"{account} lacks {right.verb} on {right.table}: licenses that are moved into a processed plan after its "
            "mark are not noticed, and their learners are unlinked without a downgrade"
        )
        yield Finding("rights", "warning", what, right.grant(connection))
    remedy = "give the nights an account of their own, with the GRANTs of docs/how-to/accounts.md"
    yield from rights.surplus(connection, "a night needs", remedy)


def _unlinking(settings: DatabaseSettings, database: Database) -> Iterator[Finding]:
    enabled, after = settings.CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED, settings.UNLINK_AFTER_DAYS
    unknown = unknown_enterprises(settings, database).values()
    found = [finding for error in unknown for finding in wrong("unlinking", error)]
    query = enterprises.purged_too_early(enabled, timedelta(days=after))
    if purged := database.transact(lambda session: session.execute(query).all()):
        named = ", ".join(f"{enterprise} ({kept.days})" for enterprise, kept in purged[:NAMED])
        what = (
            f"{len(purged)} of the {len(enabled)} enterprises on the unlink list may have learners who are never "
            f"unlinked: license-manager clears their e-mails before a plan has been expired for more than "
            f"{after} days. These, after days: "
            f"{named}{f' and {len(purged) - NAMED} more' if purged[NAMED:] else ''}"
        )
        remedy = f"set license_duration_before_purge of their customer agreements to more than {after} days"
        found.append(Finding("unlinking", "wrong", what, remedy))
    listed = f"{len(enabled)} enterprises are on the unlink list, and keep e-mails for longer than {after} days"
    empty = "nobody is unlinked: CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED is empty"
    yield from found or [Finding("unlinking", "ok", listed if enabled else empty)]
