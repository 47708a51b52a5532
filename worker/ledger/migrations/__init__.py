"""Alembic migrations of the ledger's tables; license-manager's own are never touched."""

from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from worker.db.ledger_tables import Ledger
from worker.db.types import DjangoUUID

LICENSE_TABLE = "subscriptions_license"
VERSION_TABLE = "license_expiry_alembic_version"
# Set for each table, whatever the database's default, because a reason may be in any script.
UTF8: dict[str, Any] = {"mysql_charset": "utf8mb4", "mariadb_charset": "utf8mb4"}


class _NativeUUID(sa.types.UserDefinedType[Any]):
    """MariaDB's `uuid`, for its DDL only."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        """Return the type's SQL name (SQLAlchemy's hook)."""
        return "UUID"


def license_uuid_type(connection: sa.Connection) -> sa.types.TypeEngine[Any]:
    """Return the column type of a license's uuid in this database.

    The ledger's UUID columns have the same type and collation, so that joins can use their indexes.
    """
    if connection.dialect.name == "postgresql":
        return sa.Uuid()
    if connection.dialect.name == "sqlite":
        return sa.CHAR(32)
    data_type, charset, collation = connection.execute(
        sa.text(
            "SELECT data_type, character_set_name, collation_name FROM information_schema.columns "
            "WHERE table_schema = DATABASE() AND table_name = :table AND column_name = 'uuid'"
        ),
        {"table": LICENSE_TABLE},
    ).one()
    return _NativeUUID() if data_type == "uuid" else mysql.CHAR(32, charset=charset, collation=collation)


def unlike(connection: sa.Connection) -> list[sa.Column[Any]]:
    """Return the ledger's UUID columns whose type or collation differs from that of a license's uuid."""
    if connection.dialect.name in ("postgresql", "sqlite"):
        return []
    wanted = license_uuid_type(connection)
    question = sa.text(
        "SELECT data_type, collation_name FROM information_schema.columns "
        "WHERE table_schema = DATABASE() AND table_name = :table AND column_name = :column"
    )
    form = ("uuid", None) if isinstance(wanted, _NativeUUID) else ("char", wanted.collation)  # type: ignore[attr-defined]
    uuids = [
        column
        for table in Ledger.metadata.sorted_tables
        for column in table.columns
        if isinstance(column.type, DjangoUUID)
    ]
    asked = {column: {"table": column.table.name, "column": column.name} for column in uuids}
    return [column for column in uuids if tuple(connection.execute(question, asked[column]).one()) != form]


@cache
def revisions() -> tuple[str, ...]:
    """Return the ids of all migrations, newest first; the first one is the level of this release."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(__file__).parent)).walk_revisions()
    return tuple(script.revision for script in scripts)


def level(connection: sa.Connection) -> str | None:
    """Return the id of the last migration applied to this database; None if it has no ledger."""
    from alembic.runtime.migration import MigrationContext

    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def upgrade(engine: sa.Engine) -> None:
    """Create the ledger's tables or migrate them to this release. Repeating it changes nothing.

    Converts the UUID columns to the type and collation of a license's uuid, in case license-manager was moved to
    MariaDB's native type or to another collation.
    """
    from alembic import command  # imported here because it is slow to load and few commands need it
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        uuid = license_uuid_type(connection).compile(connection.dialect)
        for column in unlike(connection):
            table, name, null = column.table.name, column.name, "NULL" if column.nullable else "NOT NULL"
            for change in (
                f"ALTER TABLE {table} MODIFY {name} CHAR(36) {null}",  # the native type is converted with dashes
                f"UPDATE {table} SET {name} = REPLACE({name}, '-', '')",  # noqa: S608, our own names
                f"ALTER TABLE {table} MODIFY {name} {uuid} {null}",
            ):
                connection.execute(sa.text(change))
