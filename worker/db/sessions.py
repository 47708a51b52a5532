"""What our sessions set for themselves: limits, and all by which an answer is read, whatever the server's defaults."""

from typing import Any

# A process that is frozen within a transaction keeps its locks. So the server ends such a transaction, and others do
# not wait for its locks for ever. No transaction of ours is idle for this long.
IDLE_SECONDS = 60
LOCK_SECONDS = 10
# Up to this size the learners of a customer, a few million, are kept in memory while a query compares with them.
# Above this size PostgreSQL rescans the set for every license and MariaDB spills it to disk.
SET_BYTES = 256 * 1024 * 1024

# Of these names each server sets those that it knows: some are newer than the oldest PostgreSQL.
_SET_ON_POSTGRESQL = """
SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS wanted (name, value)
WHERE EXISTS (SELECT FROM pg_settings known WHERE lower(known.name) = lower(wanted.name))
"""


def postgresql_settings() -> dict[str, str]:
    """What a session on PostgreSQL sets. (The client's encoding is given as it connects: the first answers are text)"""
    return {
        "DateStyle": "ISO, YMD",
        "IntervalStyle": "postgres",
        "TimeZone": "UTC",  # else what is near the end of a driver's calendar is beyond it in another zone
        "standard_conforming_strings": "on",
        "transform_null_equals": "off",
        "extra_float_digits": "1",
        "row_security": "off",  # an error instead of rows that are silently left out
        "default_transaction_isolation": "read committed",
        "default_transaction_deferrable": "off",
        "statement_timeout": "0",
        "transaction_timeout": "0",
        "idle_session_timeout": "0",
        "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s",
        "lock_timeout": f"{LOCK_SECONDS}s",
        "jit": "off",  # which takes twenty times longer to compile a query than to execute it
        "work_mem": f"{SET_BYTES // 1024}kB",
    }


def set_up_on_postgresql(connection: Any, _: Any) -> None:
    """Set these on a new connection of the driver's (SQLAlchemy's hook)."""
    settings = postgresql_settings()
    with connection.cursor() as cursor:
        cursor.execute(_SET_ON_POSTGRESQL, [list(settings), list(settings.values())])
    connection.commit()


def mysql_settings() -> dict[str, str]:
    """What a session on MySQL and MariaDB sets, as SQL."""
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
    """The command that sets these as a driver connects: before SQLAlchemy looks how the session quotes names.

    The limit of a statement's time has another name on each: what stands in such a comment is read by one alone.
    """
    settings = ", ".join(f"{name} = {value}" for name, value in mysql_settings().items())
    return f"SET SESSION {settings} /*!50708 , max_execution_time = 0 */ /*M! , max_statement_time = 0 */"
