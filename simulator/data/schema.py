"""Creates license-manager's tables from a record of the real ones, and stores values as Django does.

`license_manager_schema.csv` holds every column as each database engine reported it. The tables made here have
the same types, keys and indexes. Like Django's, they have no defaults: each insert gives every value.
"""

import csv
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from sqlalchemy import (
    Column,
    Dialect,
    Engine,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeEngine, UserDefinedType

UuidForm = Literal["char32", "native"]
Kind = Literal["uuid", "datetime", "boolean", "duration", "plain"]
Row = dict[str, str]

CSV = Path(__file__).with_name("license_manager_schema.csv")
KINDS: dict[str, Kind] = {
    "uuid": "uuid",
    "timestamp with time zone": "datetime",
    "boolean": "boolean",
    "interval": "duration",
}
MICROSECOND = timedelta(microseconds=1)

_known: WeakKeyDictionary[Engine, MetaData] = WeakKeyDictionary()


class Stored(UserDefinedType[Any]):
    """A column type named as the engine names it; values are converted as Django converts them."""

    cache_ok = True

    def __init__(self, spec: str, kind: Kind) -> None:
        """`spec` is the engine's name of the type, `kind` the kind of its Python values."""
        self.spec = spec
        self.kind = kind

    def get_col_spec(self, **_: Any) -> str:
        """Return the type as CREATE TABLE has it."""
        return self.spec

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any] | None:
        """Return the function that turns a Python value into the stored form."""
        if self.kind == "plain":
            return None
        return lambda value: to_db(dialect.name, self, value)

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any] | None:
        """Return the function that turns the stored form into a Python value."""
        if self.kind == "plain":
            return None
        return lambda value: from_db(self, value)


def to_db(dialect: str, column_type: Stored, value: Any) -> Any:
    """Turn a Python value into what Django would pass to the driver.

    Takes the dialect's name ("sqlite", "postgresql", "mysql", "mariadb"), the column's type and the value: a
    UUID, an aware datetime, a bool, a timedelta or any other. Returns the value to bind; None stays None.
    """
    if value is None or dialect == "postgresql":
        return value
    if column_type.kind == "uuid":
        return str(value) if column_type.spec == "uuid" else value.hex
    if column_type.kind == "datetime":
        naive = value.astimezone(UTC).replace(tzinfo=None)
        return naive.isoformat(sep=" ") if dialect == "sqlite" else naive
    if column_type.kind == "boolean":
        return int(value)
    if column_type.kind == "duration":
        return value // MICROSECOND
    return value


def from_db(column_type: Stored, value: Any) -> Any:
    """Turn an engine's stored value into a UUID, an aware UTC datetime, a bool, a timedelta or itself."""
    if value is None:
        return None
    if column_type.kind == "uuid":
        return value if isinstance(value, uuid.UUID) else uuid.UUID(_text(value))
    if column_type.kind == "datetime":
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    if column_type.kind == "boolean":
        return bool(value)
    if column_type.kind == "duration":
        return value if isinstance(value, timedelta) else value * MICROSECOND
    return value


def create_tables(engine: Engine, uuid_form: UuidForm = "char32") -> None:
    """Create license-manager's tables in an empty database.

    Takes the engine and, for MariaDB and MySQL, the form of the UUID columns: "char32" as Django made them
    before MariaDB 10.7 and on MySQL, "native" since. The other engines have one form only.
    """
    _known[engine] = _metadata(engine.dialect.name, uuid_form)
    _known[engine].create_all(engine)


def drop_tables(engine: Engine) -> None:
    """Drop those of license-manager's tables that exist."""
    _tables(engine).drop_all(engine)
    _known.pop(engine, None)


def table(engine: Engine, name: str) -> Table:
    """Return a table, named with or without its `subscriptions_` prefix, for selects and inserts.

    On every engine its values are Python's UUID, aware UTC datetime, bool and timedelta.
    """
    return _tables(engine).tables["subscriptions_" + name.removeprefix("subscriptions_")]


def _tables(engine: Engine) -> MetaData:
    if engine in _known:
        return _known[engine]
    form = _uuid_form(engine)
    metadata = _metadata(engine.dialect.name, form or "char32")
    if form is not None:
        _known[engine] = metadata
    return metadata


def _uuid_form(engine: Engine) -> UuidForm | None:
    """Return the column's type, as a MariaDB server can have tables of both forms. None if the table is missing."""
    if engine.dialect.name not in ("mysql", "mariadb"):
        return "char32"
    question = text(
        "SELECT data_type FROM information_schema.columns WHERE table_schema = database()"
        " AND table_name = 'subscriptions_license' AND column_name = 'uuid'"
    )
    with engine.connect() as connection:
        answer = connection.execute(question).scalar()
    if answer is None:
        return None
    return "native" if _text(answer).lower() == "uuid" else "char32"


@cache
def _metadata(dialect: str, uuid_form: UuidForm) -> MetaData:
    metadata = MetaData()
    type_column = {"sqlite": "sqlite_type", "postgresql": "postgres_type"}.get(
        dialect, "mariadb107_type" if uuid_form == "native" else "mysql_type"
    )
    with CSV.open(newline="") as source:
        rows = list(csv.DictReader(source))
    names = {row["table"] for row in rows}
    for name, columns in groupby(rows, key=lambda row: row["table"]):
        _add_table(metadata, name, list(columns), names, type_column)
    return metadata


def _add_table(metadata: MetaData, name: str, rows: list[Row], names: set[str], type_column: str) -> None:
    columns_made = [_column(row, names, type_column) for row in rows]
    made = Table(name, metadata, *columns_made, sqlite_autoincrement=True)
    # "yes": the column alone is a key; "a+b": both columns together.
    unique = {tuple(row["unique"].replace("yes", row["column"]).split("+")) for row in rows if row["unique"]}
    primary = tuple(row["column"] for row in rows if row["pk"])
    for index_name, columns in _indexes(rows).items():
        parts = [made.c[column] for column in columns]
        if index_name.endswith("_like"):
            # Django makes these for LIKE on PostgreSQL only, where LIKE cannot use a plain index.
            if type_column == "postgres_type":
                Index(index_name, *parts, postgresql_ops=dict.fromkeys(columns, "varchar_pattern_ops"))
        elif columns == primary:
            made.append_constraint(PrimaryKeyConstraint(*parts, name=index_name))
        elif columns in unique:
            made.append_constraint(UniqueConstraint(*parts, name=index_name))
        else:
            Index(index_name, *parts)


def _column(row: Row, names: set[str], type_column: str) -> Column[Any]:
    spec = row[type_column]
    numbered = bool(row["pk"]) and row["postgres_type"] == "integer identity"
    kind = KINDS.get(row["postgres_type"], "plain")
    # An Integer, because SQLAlchemy generates ids only for types that it knows.
    column_type: TypeEngine[Any] = Integer() if numbered else Stored(spec, kind)
    parts: list[Any] = [column_type]
    target, _, rule = row["fk"].partition(" ON DELETE ")
    if target and target.partition(".")[0] in names:
        parts.append(ForeignKey(target, ondelete=rule or None))
    if numbered and type_column == "postgres_type":
        parts.append(Identity(always=False))
    return Column(row["column"], *parts, nullable=row["nullable"] == "yes", primary_key=bool(row["pk"]))


def _indexes(rows: list[Row]) -> dict[str, tuple[str, ...]]:
    """Return the columns of each index of a table, in order."""
    found = [part for row in rows for part in re.findall(r"(\w+)\(([\w,]+)\)", row["indexed"])]
    return {name: tuple(columns.split(",")) for name, columns in found}


def _text(value: str | bytes) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value
