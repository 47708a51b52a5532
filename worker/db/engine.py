"""Creates the SQLAlchemy engine for each kind of database, and describes its errors for operators."""

from typing import Any

from sqlalchemy import Dialect, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DataError, DBAPIError

from worker.db import sessions
from worker.errors import Unusable, WrongSetting

CONNECT_TIMEOUT = 10
# Error codes for a missing privilege: MySQL's and MariaDB's numbers, and PostgreSQL's SQLSTATE.
DENIED: set[object] = {1044, 1142, 1143, "42501"}
# Detect within a minute that the server has gone without closing the connection, as after a failover.
_KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
# MySQL can only limit how long an answer takes: 600 s, longer than any statement of ours.
_MYSQL = {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": 600, "write_timeout": 60, "charset": "utf8mb4"}
_CONNECT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "sqlite": {"timeout": 30},
    # No prepared statements: a plan made while the ledger was empty would scan a table that has grown since.
    "postgresql": {
        "connect_timeout": CONNECT_TIMEOUT,
        "prepare_threshold": None,
        "client_encoding": "utf8",
        **_KEEPALIVE,
    },
    "mysql": _MYSQL,
    "mariadb": _MYSQL,
}
# Errors of these codes are about connections, accounts, privileges, tables, locks or limits. Their text contains no
# value of a row, so it can be shown.
_CLASSES_OF_POSTGRESQL = ("08", "25", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58")
_NUMBERS_OF_MYSQL = {
    *(1005, 1020, 1021, 1030, 1040, 1041, 1042, 1043, 1044, 1045, 1046, 1049, 1050, 1051, 1053, 1054, 1071, 1091, 1103),
    *(1114, 1129, 1130, 1142, 1143, 1146, 1158, 1159, 1160, 1161, 1184, 1203, 1205, 1206, 1213, 1226, 1227, 1251, 1290),
    *(1317, 1356, 1370, 1412, 1419, 1637, 1665, 1678, 1698, 1792, 1820, 1836, 1862, 1927, 1969, 3024, 3118, 3159, 3168),
}
_WORDS_OF_SQLITE = (
    *("no such ", "unable to open", "database is locked", "database table is locked", "file is not a database"),
    *("disk I/O error", "database or disk is full", "attempt to write a readonly", "database disk image is malformed"),
    *("database schema has changed", "authorization denied", "locking protocol"),
)


def make_engine(url: str, connections: int = 5) -> Engine:
    """Create an engine with a pool of `connections`; it connects at first use.

    Its errors hide the parameters of statements, because these include e-mail addresses. Raises Unusable if the driver
    is missing, WrongSetting if an option of the URL is wrong.
    """
    kind = make_url(url).get_backend_name()
    pool = {"pool_size": connections, "pool_recycle": sessions.IDLE_SECONDS - 10}
    options: dict[str, Any] = {} if kind == "sqlite" else pool
    arguments = _CONNECT_ARGUMENTS[kind]
    if kind in ("mysql", "mariadb"):
        options["isolation_level"] = "READ COMMITTED"  # no gap locks on tables that license-manager writes too
        arguments = arguments | {"init_command": sessions.mysql_command()}
    try:
        engine = create_engine(url, hide_parameters=True, connect_args=arguments, **options)
    except ImportError as error:
        extra = "postgresql" if kind == "postgresql" else "mysql"
        what = f"DATABASE_URL: the driver {error.name} is not installed"
        raise Unusable(what, f"in the release's folder, run: pip install '.[{extra}]'") from error
    except (ValueError, TypeError, ArgumentError):
        names = ", ".join(make_url(url).query)
        what = f"DATABASE_URL: one of its options has an invalid value ({names})"
        raise WrongSetting(what, "Correct it, or remove it") from None
    event.listen(engine, "do_connect", _connect)
    if kind == "sqlite":
        # BEGIN IMMEDIATE: SQLite fails a transaction that reads before it takes the write lock, without waiting.
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    elif kind == "postgresql":
        event.listen(engine, "connect", sessions.set_up_on_postgresql)
    return engine


def _connect(dialect: Dialect, _: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
    """Connect (SQLAlchemy's hook). An exception other than the driver's own errors means wrong connection options."""
    try:
        return dialect.connect(*arguments, **named)
    except dialect.loaded_dbapi.Error:
        raise
    except Exception as error:
        what = f"the driver of DATABASE_URL cannot connect ({type(error).__name__}: {' '.join(str(error).split())})"
        raise Unusable(what, "check the options of DATABASE_URL, and install the packages its driver needs") from error


def address_of(engine: Engine) -> str:
    """Return the database's URL for display, without password and options."""
    return engine.url.set(query={}).render_as_string(hide_password=True)


def cause_of(error: DBAPIError) -> str:
    """Return a database error on one line. Includes the database's text only if that is about the server.

    The text of other errors may quote a row, with an e-mail address.
    """
    if isinstance(error, DataError):
        return f"{type(error.orig).__name__}: a value has the wrong type or range"
    if _is_about_the_server(error):
        return " ".join(str(error.orig).split())
    return f"{type(error.orig).__name__} {code_of(error) or ''}".strip()


def _is_about_the_server(error: DBAPIError) -> bool:
    driver, code = type(error.orig).__module__.partition(".")[0], code_of(error)
    if driver == "sqlite3":
        return str(error.orig).startswith(_WORDS_OF_SQLITE)
    if driver == "psycopg":  # connection errors have no code
        return not isinstance(code, str) or code.startswith(_CLASSES_OF_POSTGRESQL)
    return isinstance(code, int) and (2000 <= code < 3000 or code in _NUMBERS_OF_MYSQL)


def cannot_be_used(engine: Engine, error: DBAPIError) -> tuple[str, str]:
    """Return the message and the remedy for a database error, without password or parameters of a statement."""
    what = f"the database {address_of(engine)} cannot be used ({cause_of(error)})"
    return what, "check DATABASE_URL, the account's rights and the server"


def code_of(error: DBAPIError) -> object:
    """Return MySQL's and MariaDB's error number, SQLite's error name or PostgreSQL's SQLSTATE; None without one."""
    numbers = [number for number in getattr(error.orig, "args", ())[:1] if type(number) is int]
    names = (getattr(error.orig, name, None) for name in ("sqlite_errorname", "sqlstate"))
    return next(filter(None, (*numbers, *names)), None)
