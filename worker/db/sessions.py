"""Settings of our database sessions: limits, and everything that affects results, so that no server default does."""

from typing import Any

# Seconds. A process that is frozen within a transaction keeps its locks, so the server ends an idle transaction, and
# others wait only a limited time for locks. No transaction of ours is idle for this long.
IDLE_SECONDS = 60
LOCK_SECONDS = 10
# The memory for the set of a customer's learners (a few million) that a query compares with.
# Above this size PostgreSQL rescans the set for every license and MariaDB spills it to disk.
SET_BYTES = 256 * 1024 * 1024

# Sets only the names that the server knows: some are newer than the oldest supported PostgreSQL.
_SET_ON_POSTGRESQL = """
SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS wanted (name, value)
WHERE EXISTS (SELECT FROM pg_settings known WHERE lower(known.name) = lower(wanted.name))
"""


def postgresql_settings() -> dict[str, str]:
    """Return the settings of a session on PostgreSQL. The engine sets the client encoding, needed to connect."""
    return {
        "DateStyle": "ISO, YMD",
        "IntervalStyle": "postgres",
        "TimeZone": "UTC",  # another zone can move a date near year 1 or 9999 out of the driver's range
        "standard_conforming_strings": "on",
        "transform_null_equals": "off",
        "extra_float_digits": "1",
        "row_security": "off",  # raises an error instead of silently leaving rows out
        "default_transaction_isolation": "read committed",
        "default_transaction_deferrable": "off",
        "statement_timeout": "0",
        "transaction_timeout": "0",
        "idle_session_timeout": "0",
        "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
        "lock_timeout": f"{LOCK_SECONDS}s",
        "jit": "off",  # compiling our queries takes 20 times longer than executing them
        "work_mem": f"{SET_BYTES // 1024}kB",
    }


def set_up_on_postgresql(connection: Any, _: Any) -> None:
    """Apply the settings to a new connection (SQLAlchemy's hook)."""
    settings = postgresql_settings()
    with connection.cursor() as cursor:
        cursor.execute(_SET_ON_POSTGRESQL, [list(settings), list(settings.values())])
    connection.commit()


def mysql_settings() -> dict[str, str]:
    """Return the settings of a session on MySQL and MariaDB, as SQL values."""
    return {
        "time_zone": "'+00:00'",
        "sql_mode": "'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION'",
        "sql_safe_updates": "0",
        "sql_select_limit": "18446744073709551615",
        "sql_big_selects": "1",
        "sql_auto_is_null": "0",
        "completion_type": "'NO_CHAIN'",
        "foreign_key_checks": "1",
        "unique_checks": "1",
        "default_storage_engine": "'InnoDB'",
        "wait_timeout": str(IDLE_SECONDS),
        "innodb_lock_wait_timeout": str(LOCK_SECONDS),
        "tmp_table_size": str(SET_BYTES),
        "max_heap_table_size": str(SET_BYTES),
    }


def mysql_command() -> str:
    """Return the command that applies the settings on connect, before SQLAlchemy reads the session's quoting mode.

    The statement time limit has different names on MySQL and MariaDB; each server reads only its own kind of comment.
    """
    settings = ", ".join(f"{name} = {value}" for name, value in mysql_settings().items())
    return f"SET SESSION {settings} /*!50708 , max_execution_time = 0 */ /*M! , max_statement_time = 0 */"
