"""The engine for each kind of database: drivers, time-outs, session settings."""

import re
from functools import partial
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError

from worker.errors import Away, Unusable

CONNECT_TIMEOUT = 10
# A process that is frozen within a transaction keeps its locks. So the server ends such a transaction, and others do
# not wait for its locks for ever. No transaction of ours is idle for this long.
IDLE_SECONDS = 60
LOCK_SECONDS = 10
# Up to this size the learners of a customer, a few million, are kept in memory while a query compares with them.
# Above this size PostgreSQL rescans the set for every license and MariaDB spills it to disk.
SET_BYTES = 256 * 1024 * 1024
# These notice a server that vanished without a word, as after a failover, within a minute.
_KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
# MySQL can only limit how long an answer takes: 600 s, longer than any statement of ours.
_MYSQL = {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": 600, "write_timeout": 60}
_CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": 30},
    # Without prepared plans: one from when the ledger was empty would scan all that has come into it since.
    "postgresql": {"connect_timeout": CONNECT_TIMEOUT, "prepare_threshold": None, **_KEEPALIVE},
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}
# How a server says that this account or this database will not do. MySQL and MariaDB have numbers for it; PostgreSQL
# tells a client that is not yet connected no SQLSTATE.
_NOT_THIS_ACCOUNT, _NOT_THIS_DATABASE = {1045, 1130, 1698}, {1044, 1049}
_WORDS = re.compile(
    r"(authentication failed|role .* does not exist|no pg_hba.conf entry|no password supplied|not permitted to log in)"
    r"|(database .* does not exist|permission denied for database|unable to open database file)"
)
READ_ONLY = ("takes no writes: it is read-only, as a replica is", "let DATABASE_URL lead to the server that takes them")
_ACCOUNT = "correct the user and the password in DATABASE_URL, or let this account in from this host"
_DATABASE = "correct the database's name in DATABASE_URL, or give its account access to it"


def make_engine(url: str, connections: int = 5) -> Engine:
    """Make an engine; it connects when first used. Raises Unusable when its driver is not installed.

    Its errors hide the parameters of statements, because e-mail addresses are among them.
    """
    kind = make_url(url).get_backend_name()
    options: dict[str, Any] = {} if kind == "sqlite" else {"pool_size": connections, "pool_recycle": IDLE_SECONDS - 10}
    if kind in ("mysql", "mariadb"):
        options["isolation_level"] = "READ COMMITTED"  # no gap locks, on tables that others write too
    try:
        engine = create_engine(url, hide_parameters=True, connect_args=_CONNECT_ARGUMENTS[kind], **options)
    except ImportError as error:
        extra = "postgresql" if kind == "postgresql" else "mysql"
        what = f"DATABASE_URL: the driver {error.name} is not installed"
        raise Unusable(what, f"pip install 'license-expiry[{extra}]'") from error
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
        limits += "; SET jit = off"  # which takes twenty times longer to compile a query than to execute it
        limits += f"; SET work_mem = '{SET_BYTES // 1024}kB'"
    with connection.cursor() as cursor:
        cursor.execute(f"SET {limits}")
    connection.commit()


def address_of(engine: Engine) -> str:
    """The database's URL for people: without password and options."""
    return engine.url.set(query={}).render_as_string(hide_password=True)


def cannot_be_used(engine: Engine, error: DBAPIError) -> tuple[str, str]:
    """What and remedy for a database error, with neither a password nor a statement's parameters in it."""
    cause = " ".join(str(error.orig).split())
    what = f"the database {address_of(engine)} cannot be used ({cause})"
    return what, "check DATABASE_URL, the account's rights and the server"


def check_answers(engine: Engine) -> None:
    """Connect once. Raises Unusable when the server refuses us or takes no writes, Away when it does not answer."""
    try:
        with engine.connect() as connection:
            if is_read_only(connection):
                raise Unusable(f"the database {address_of(engine)} {READ_ONLY[0]}", READ_ONLY[1])
    except DBAPIError as error:
        what, remedy = cannot_be_used(engine, error)
        code, words = next(iter(getattr(error.orig, "args", ())), None), _WORDS.search(str(error.orig))
        if code in _NOT_THIS_ACCOUNT or (words and words[1]):
            raise Unusable(what, _ACCOUNT) from error
        if code in _NOT_THIS_DATABASE or words:
            raise Unusable(what, _DATABASE) from error
        raise Away(what, remedy) from error
    finally:
        engine.dispose()


def is_read_only(connection: Connection) -> bool:
    """Does this server, or this session, take no writes?"""
    asked = {"postgresql": "SELECT current_setting('transaction_read_only') = 'on'", "sqlite": "SELECT 0"}
    return bool(connection.scalar(text(asked.get(connection.dialect.name, "SELECT @@global.read_only"))))
