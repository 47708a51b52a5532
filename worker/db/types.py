"""Column types for UUIDs, date-times and durations, stored exactly as Django does on each database."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, CHAR, BigInteger, DateTime, Dialect, Interval, String, Text, Uuid
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeDecorator, TypeEngine


class DjangoUUID(TypeDecorator[UUID]):
    """Django's UUIDField: native on PostgreSQL, 32 hex digits elsewhere.

    A MariaDB column of the native type accepts 32 digits too, and returns dashes; both forms are read.
    """

    impl = CHAR(32)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the column type (SQLAlchemy's hook)."""
        return dialect.type_descriptor(Uuid() if dialect.name == "postgresql" else CHAR(32))

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> Any:
        """Convert a UUID to the column's value (SQLAlchemy's hook)."""
        return value if value is None or dialect.name == "postgresql" else value.hex

    def process_result_value(self, value: Any, dialect: Dialect) -> UUID | None:
        """Convert the column's value to a UUID (SQLAlchemy's hook)."""
        return value if value is None or isinstance(value, UUID) else UUID(value)


class UUIDList(TypeDecorator[list[UUID]]):
    """A list of UUIDs as one parameter: an array on PostgreSQL, a JSON list of 32 hex digits elsewhere."""

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Choose the parameter's type (SQLAlchemy's hook)."""
        return dialect.type_descriptor(ARRAY(Uuid()) if dialect.name == "postgresql" else Text())

    def process_bind_param(self, value: Iterable[UUID] | None, dialect: Dialect) -> Any:
        """Convert UUIDs to the parameter's value (SQLAlchemy's hook)."""
        uuids = list(value or ())
        return uuids if dialect.name == "postgresql" else json.dumps([uuid.hex for uuid in uuids])


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
        """Convert an aware date-time to the column's value (SQLAlchemy's hook)."""
        if value is None or dialect.name == "postgresql":
            return value
        naive = value.astimezone(UTC).replace(tzinfo=None)
        return str(naive) if dialect.name == "sqlite" else naive

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        """Convert the column's value to an aware date-time in UTC (SQLAlchemy's hook)."""
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
        """Convert a duration to the column's value (SQLAlchemy's hook)."""
        return value if value is None or dialect.name == "postgresql" else value // timedelta(microseconds=1)

    def process_result_value(self, value: Any, dialect: Dialect) -> timedelta | None:
        """Convert the column's value to a duration (SQLAlchemy's hook)."""
        return value if value is None or isinstance(value, timedelta) else timedelta(microseconds=value)
