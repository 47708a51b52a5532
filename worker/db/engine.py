"""The engine for each kind of database: its driver, how it connects, and what is said when it cannot be used."""

from typing import Any

from sqlalchemy import Dialect, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DataError, DBAPIError

from worker.db import sessions
from worker.errors import Unusable

CONNECT_TIMEOUT = 10
# These notice a server that vanished without a word, as after a failover, within a minute.
_KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
# MySQL can only limit how long an answer takes: 600 s, longer than any statement of ours.
_MYSQL = {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": 600, "write_timeout": 60, "charset": "utf8mb4"}
_CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": 30},
    # Without prepared plans: one from when the ledger was empty would scan all that has come into it since.
    "postgresql": {
        "connect_timeout": CONNECT_TIMEOUT,
        "prepare_threshold": None,
        "client_encoding": "utf8",
        **_KEEPALIVE,
    },
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}


def make_engine(url: str, connections: int = 5) -> Engine:
    """Make an engine; it connects when first used. Raises Unusable when its driver is not installed.

    Its errors hide the parameters of statements, because e-mail addresses are among them.
    """
    kind = make_url(url).get_backend_name()
    pool = {"pool_size": connections, "pool_recycle": sessions.IDLE_SECONDS - 10}
    options: dict[str, Any] = {} if kind == "sqlite" else pool
    arguments = _CONNECT_ARGUMENTS[kind]
    if kind in ("mysql", "mariadb"):
        options["isolation_level"] = "READ COMMITTED"  # no gap locks, on tables that others write too
        arguments = arguments | {"init_command": sessions.mysql_command()}
    try:
        engine = create_engine(url, hide_parameters=True, connect_args=arguments, **options)
    except ImportError as error:
        extra = "postgresql" if kind == "postgresql" else "mysql"
        what = f"DATABASE_URL: the driver {error.name} is not installed"
        raise Unusable(what, f"pip install 'license-expiry[{extra}]'") from error
    event.listen(engine, "do_connect", _connect)
    if kind == "sqlite":
        # A transaction that reads and then writes must lock first, or SQLite refuses it without waiting.
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    elif kind == "postgresql":
        event.listen(engine, "connect", sessions.set_up_on_postgresql)
    return engine


def _connect(dialect: Dialect, _: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
    """Connect (SQLAlchemy's hook). What a driver raises beside its own errors is about how it is to connect."""
    try:
        return dialect.connect(*arguments, **named)
    except dialect.loaded_dbapi.Error:
        raise
    except Exception as error:
        what = f"the driver of DATABASE_URL cannot connect ({type(error).__name__}: {' '.join(str(error).split())})"
        raise Unusable(what, "check the options of DATABASE_URL, and install what its driver needs") from error


def address_of(engine: Engine) -> str:
    """The database's URL for people: without password and options."""
    return engine.url.set(query={}).render_as_string(hide_password=True)


def cause_of(error: DBAPIError) -> str:
    """A database error in the database's own words, on one line; but for one that would show the value it is about."""
    if isinstance(error, DataError):
        return f"{type(error.orig).__name__}: it holds, or was to hold, a value that cannot be"
    return " ".join(str(error.orig).split())


def cannot_be_used(engine: Engine, error: DBAPIError) -> tuple[str, str]:
    """What and remedy for a database error, with neither a password nor a statement's parameters in it."""
    what = f"the database {address_of(engine)} cannot be used ({cause_of(error)})"
    return what, "check DATABASE_URL, the account's rights and the server"
