"""How values are stored, exactly as Django does on each engine (docs/architecture.md); and the database's clock."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    CHAR,
    BigInteger,
    DateTime,
    Dialect,
    Interval,
    String,
    Uuid,
    bindparam,
    literal,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine


class DjangoUUID(TypeDecorator[UUID]):
    """Django's UUIDField: native on PostgreSQL, 32 hex digits elsewhere.

    A MariaDB column of the native type takes the 32 digits too, and answers with dashes; both are read.
    """

    impl = CHAR(32)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type (SQLAlchemy's hook)."""
        return dialect.type_descriptor(Uuid() if dialect.name == "postgresql" else CHAR(32))

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> Any:
        """Turn a UUID into what the column holds (SQLAlchemy's hook)."""
        return value if value is None or dialect.name == "postgresql" else value.hex

    def process_result_value(self, value: Any, dialect: Dialect) -> UUID | None:
        """Turn what the column holds into a UUID (SQLAlchemy's hook)."""
        return value if value is None or isinstance(value, UUID) else UUID(value)


class UTCDateTime(TypeDecorator[datetime]):
    """Django's DateTimeField: aware UTC in Python; `timestamptz`, `datetime(6)` or text below."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type (SQLAlchemy's hook)."""
        if dialect.name == "sqlite":
            return dialect.type_descriptor(String(26))
        if dialect.name == "postgresql":
            return dialect.type_descriptor(DateTime(timezone=True))
        return dialect.type_descriptor(mysql.DATETIME(fsp=6))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Turn an aware date-time into what the column holds (SQLAlchemy's hook)."""
        if value is None or dialect.name == "postgresql":
            return value
        naive = value.astimezone(UTC).replace(tzinfo=None)
        return str(naive) if dialect.name == "sqlite" else naive

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Turn what the column holds into an aware date-time in UTC (SQLAlchemy's hook)."""
        if value is None:
            return None
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class DjangoDuration(TypeDecorator[timedelta]):
    """Django's DurationField: `interval` on PostgreSQL, microseconds elsewhere."""

    impl = BigInteger
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type (SQLAlchemy's hook)."""
        return dialect.type_descriptor(Interval() if dialect.name == "postgresql" else BigInteger())

    def process_bind_param(self, value: timedelta | None, dialect: Dialect) -> Any:
        """Turn a duration into what the column holds (SQLAlchemy's hook)."""
        return value if value is None or dialect.name == "postgresql" else value // timedelta(microseconds=1)

    def process_result_value(self, value: Any, dialect: Dialect) -> timedelta | None:
        """Turn what the column holds into a duration (SQLAlchemy's hook)."""
        return value if value is None or isinstance(value, timedelta) else timedelta(microseconds=value)


class DatabaseNow(FunctionElement[datetime]):
    """The database's own clock, `seconds` from now: the only clock that leases and `as_of` go by."""

    type = UTCDateTime()
    inherit_cache = True

    def __init__(self, seconds: int = 0) -> None:
        super().__init__(literal(seconds))


@compiles(DatabaseNow, "postgresql")
def _postgresql_now(element: DatabaseNow, compiler: Any, **kw: Any) -> str:
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kw)}))"


@compiles(DatabaseNow, "mysql")
@compiles(DatabaseNow, "mariadb")
def _mysql_now(element: DatabaseNow, compiler: Any, **kw: Any) -> str:
    return f"(UTC_TIMESTAMP(6) + INTERVAL {compiler.process(element.clauses, **kw)} SECOND)"


@compiles(DatabaseNow, "sqlite")
def _sqlite_now(element: DatabaseNow, compiler: Any, **kw: Any) -> str:
    offset = compiler.process(element.clauses, **kw)
    moment = f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {offset} || ' seconds')"
    return f"replace({moment}, '.000000', '')"  # as Django writes it


class Digits(FunctionElement[UUID]):
    """A UUID column's value as any column of UUIDs takes it: one MariaDB server can hold both forms of UUID."""

    type = DjangoUUID()
    inherit_cache = True


@compiles(Digits)
def _digits(element: Digits, compiler: Any, **kw: Any) -> str:
    return str(compiler.process(element.clauses, **kw))


@compiles(Digits, "mysql")
@compiles(Digits, "mariadb")
def _mysql_digits(element: Digits, compiler: Any, **kw: Any) -> str:
    return f"replace({compiler.process(element.clauses, **kw)}, '-', '')"


class OneOf(FunctionElement[Any]):
    """Is this column one of the UUIDs of the parameter `name`?

    On PostgreSQL they are one array: its driver takes long over many parameters.
    """

    type = NullType()  # a Boolean would be compared with 1, and MariaDB then look no further
    inherit_cache = True

    def __init__(self, column: Any, name: str) -> None:
        super().__init__(column.in_(bindparam(name, None, DjangoUUID(), expanding=True)))


@compiles(OneOf)
def _one_of(element: OneOf, compiler: Any, **kw: Any) -> str:
    return str(compiler.process(element.clauses, **kw))


@compiles(OneOf, "postgresql")
def _postgresql_one_of(element: OneOf, compiler: Any, **kw: Any) -> str:
    (one_of,) = element.clauses
    array = bindparam(one_of.right.key, None, ARRAY(Uuid()))
    return f"{compiler.process(one_of.left, **kw)} = ANY ({compiler.process(array, **kw)})"
