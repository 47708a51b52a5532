"""`license-expiry doctor`: is all there that a night needs? Changes nothing; its calls to the LMS concern nobody."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from worker.cli import rights
from worker.cli.broker import celery_app
from worker.cli.findings import Finding, explained, wrong
from worker.cli.lms_check import check_calls, check_owner
from worker.cli.rights import Right
from worker.clock import BEAT_AHEAD
from worker.db.engine import READ_ONLY, address_of, cannot_be_used, is_read_only, make_engine
from worker.db.license_manager_tables import CustomerAgreement
from worker.db.transactions import Database
from worker.deps import make_lms_client
from worker.due import enterprises
from worker.errors import SeveralWrong, Unusable
from worker.ledger import migrations
from worker.ledger.identity import ledger_at
from worker.lms.patience import Patience
from worker.runs.request import unknown_enterprises
from worker.settings import CelerySettings, DatabaseSettings, Settings, load_settings
from worker.settings_sources import load

POOLED_ROUNDS = 5
NEEDED = ("settings", "database", "ledger", "rights", "broker")  # to know whose the workers on the broker are
ANSWER_SECONDS = 2.0  # for workers, whose main process is in no step
NAMED = 3  # the most enterprises that one finding names
NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL", "mysql": "MySQL", "mariadb": "MariaDB"}


def examine() -> list[Finding]:
    """Look at one thing after the other; leave out what depends on something that is wrong."""
    both = [*_look("database", DatabaseSettings, _database), *_look("broker", CelerySettings, _broker)]
    if not any(finding.status == "wrong" and finding.subject in NEEDED for finding in both):
        both += _look("broker", DatabaseSettings, _ledgers)
    found = chain(_settings(), both, _look("LMS", Settings, _lms))
    return list(dict.fromkeys(found))  # a wrong schedule is met twice


def _settings() -> Iterator[Finding]:
    try:
        settings = load_settings(broker=True)
        celery_app()
        yield Finding("settings", "ok", f"all {len(Settings.model_fields)} can be used")
        calls = max(settings.BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS, settings.BULK_UNLINK_REQUEST_TIMEOUT_SECONDS)
        ends = (calls, settings.LEASE_SECONDS, settings.TASK_TIME_LIMIT_SECONDS, settings.VISIBILITY_TIMEOUT_SECONDS)
        in_order = "the time-outs of call, lease, task and message are in order: {} < {} < {} < {} s".format(*ends)
        yield Finding("settings", "ok", in_order)
    except Unusable as error:
        yield from wrong("settings", error)


def _look(subject: str, model: Any, look: Callable[[Any], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        settings = load(model)
    except Unusable:  # reported with the others
        return
    yield from explained(subject, look(settings))


def _database(settings: DatabaseSettings) -> Iterator[Finding]:
    database = Database(make_engine(settings.DATABASE_URL))
    try:
        with database.engine.connect() as connection:
            dialect = connection.dialect
            kind = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
            version = ".".join(map(str, dialect.server_version_info or ()))
            yield Finding("database", "ok", f"{NAMES[kind]} {version} at {address_of(database.engine)}")
            yield _clock("the database's", database.now)
            if is_read_only(connection):
                yield Finding("database", "wrong", f"it {READ_ONLY[0]}", READ_ONLY[1])
            yield from _pooled(connection)
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
    if unseen == hidden and CustomerAgreement.__tablename__ not in [error.table for error in bad]:
        yield from _unlinking(settings, database)


def _ledger(database: Database, level: str | None, look: bool) -> Iterator[Finding]:
    head = migrations.revisions()[0]
    if level is None:
        yield Finding("ledger", "wrong", "its tables are not made", "run license-expiry init-db")
    elif level != head:
        newer = level not in migrations.revisions()
        remedy = "install the release that made it" if newer else "run license-expiry init-db"
        yield Finding("ledger", "wrong", f"its tables are at {level}, and this release has {head}", remedy)
    elif look:
        bad = [error for error in _bad_tables(database, ledger=True) if rights.of_ledger(error.table)]
        ours = [finding for error in bad for finding in wrong("ledger", error)] or list(_forms(database))
        yield from ours or [Finding("ledger", "ok", f"its tables are at {level}, as this release has them")]


def _pooled(one: Connection) -> Iterator[Finding]:
    """Is one session of the server lent to several connections in turn, as PgBouncer's transaction mode does?

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
            "PgBouncer (or its like) lends one session of the server to several connections in turn: what we set for "
            "ours (lock_timeout, work_mem and others) comes to other clients', license-manager's too, and is lost to us"
        )
        remedy = "let DATABASE_URL lead to the server itself, or to a pool with pool_mode = session"
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
        remedy = "run license-expiry init-db with an account that may, then the GRANTs of docs/security.md"
        yield Finding("rights", "wrong", f"{account} has no right on the ledger's tables, or they are not made", remedy)
        named = [right for right in missing if right not in ours]
    else:
        named = missing
    for right in named:
        yield Finding("rights", "wrong", f"{account} lacks {right.verb} on {right.table}", right.grant(connection))
    if not missing:
        yield Finding("rights", "ok", f"{account} has each right that is needed")
    for right in rights.missing_optional_rights(connection):
        what = (
            f"{account} lacks {right.verb} on {right.table}: licenses that are moved into a processed plan after its "
            "mark are not noticed, and their learners are unlinked without a downgrade"
        )
        yield Finding("rights", "warning", what, right.grant(connection))
    if more := rights.surplus_rights(connection):
        shown = "; ".join(more[:4]) + (f"; and on {len(more) - 4} more" if more[4:] else "")
        remedy = "give the nights an account of their own, with the GRANTs of docs/security.md"
        yield Finding("rights", "warning", f"{account} may do more than a night needs: {shown}", remedy)


def _unlinking(settings: DatabaseSettings, database: Database) -> Iterator[Finding]:
    enabled, after = settings.CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED, settings.UNLINK_AFTER_DAYS
    unknown = unknown_enterprises(settings, database).values()
    found = [finding for error in unknown for finding in wrong("unlinking", error)]
    query = enterprises.purged_too_early(enabled, timedelta(days=after))
    if purged := database.transact(lambda session: session.execute(query).all()):
        named = ", ".join(f"{enterprise} ({kept.days})" for enterprise, kept in purged[:NAMED])
        what = (
            f"{len(purged)} of the {len(enabled)} enterprises on the unlink list may lose the unlink: license-manager "
            f"clears their e-mails before a plan has been expired for more than {after} days. These, after days: "
            f"{named}{f' and {len(purged) - NAMED} more' if purged[NAMED:] else ''}"
        )
        remedy = f"set license_duration_before_purge of their customer agreements to more than {after} days"
        found.append(Finding("unlinking", "wrong", what, remedy))
    listed = f"{len(enabled)} enterprises are on the unlink list, and keep e-mails for longer than {after} days"
    empty = "nobody is unlinked: CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED is empty"
    yield from found or [Finding("unlinking", "ok", listed if enabled else empty)]


def _clock(whose: str, clock: Callable[[], datetime]) -> Finding:
    before = datetime.now(UTC)
    there = clock()
    ahead = before + (datetime.now(UTC) - before) / 2 - there
    told = f"this machine's is {abs(ahead.total_seconds()):.1f} s {'ahead of' if ahead > timedelta() else 'behind'}"
    if abs(ahead) <= BEAT_AHEAD:
        return Finding("clock", "ok", f"{told} {whose}")
    return Finding("clock", "warning", f"{told} {whose}", "let NTP keep both clocks")


def _broker(settings: CelerySettings) -> Iterator[Finding]:
    if not settings.CELERY_BROKER_URL:
        return
    from tasks.broker import check_broker

    app = celery_app()
    check_broker(app)
    with app.connection_for_write() as connection:
        yield Finding("broker", "ok", f"{connection.as_uri()} takes messages and hands them on")
        if connection.transport.driver_type == "redis":
            yield from _redis(connection.default_channel.client)


def _ledgers(settings: DatabaseSettings) -> Iterator[Finding]:
    """Are the workers that use this broker all of this database? Nothing is said when none answers."""
    if not settings.CELERY_BROKER_URL:
        return
    from tasks import OTHER_LEDGER

    ours = str(ledger_at(settings.DATABASE_URL))
    answers = celery_app().control.broadcast("license_expiry_ledger", reply=True, timeout=ANSWER_SECONDS) or []
    ledgers = {host: told["ledger"] for answer in answers for host, told in answer.items() if "ledger" in told}
    if others := {host: ledger for host, ledger in ledgers.items() if ledger != ours}:
        named = ", ".join(f"{host} ({ledger})" for host, ledger in sorted(others.items())[:NAMED])
        what = f"workers of another ledger than this database's ({ours}) take tasks from it: {named}"
        yield Finding("broker", "warning", what, OTHER_LEDGER)
    elif ledgers:
        yield Finding("broker", "ok", f"the {len(ledgers)} workers that answer are of this database's ledger")


def _redis(client: Any) -> Iterator[Finding]:
    try:
        policy, kept = client.info("memory")["maxmemory_policy"], client.info("persistence")["aof_enabled"]
    except (RedisError, KeyError) as error:
        what = f"whether Redis evicts keys and keeps them over a restart cannot be seen ({type(error).__name__})"
        yield Finding("broker", "warning", what, "let its account use INFO, or look at its configuration yourself")
        return
    if policy == "noeviction":
        yield Finding("broker", "ok", "Redis evicts no keys (noeviction)")
    else:
        what = f"Redis evicts keys when its memory is full ({policy}), and tasks are lost with them"
        yield Finding("broker", "wrong", what, "set maxmemory-policy to noeviction in redis.conf")
    if kept:
        yield Finding("broker", "ok", "Redis keeps an append-only file")
    else:
        what = "Redis keeps no append-only file: when it ends, tasks wait until reconcile finds what they were of"
        yield Finding("broker", "warning", what, "set appendonly to yes in redis.conf")


def _lms(settings: Settings) -> Iterator[Finding]:
    owner = list(check_owner(settings))
    yield from owner
    if any(finding.status == "wrong" for finding in owner):
        return
    # Two tries, because a slow LMS may take the whole time-out of a call.
    client = make_lms_client(settings, patience=Patience(tries=2))
    try:
        date = client.lms_now()
        yield Finding("LMS", "ok", f"{settings.LMS_URL} is there, and we are given a token")
        if date:
            yield _clock("the LMS's", lambda: date + timedelta(seconds=0.5))  # a Date is to the second
        yield from check_calls(client, settings)
    finally:
        client.close()
