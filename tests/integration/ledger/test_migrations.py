"""The ledger's tables beside license-manager's: made by Alembic, of the right types, and nothing else touched."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, select, text
from sqlalchemy.types import TypeEngine
from support.runs import ON_ALL, ON_SQLITE, opened_run, raw, rows, snapshot

from simulator.data.rows import DAY, Data
from simulator.data.schema import create_tables
from worker.db.engine import make_engine
from worker.db.ledger_tables import Downgrade, HeldLicense, Ledger, Run, Throttle
from worker.db.license_manager_tables import License
from worker.db.transactions import Database
from worker.ledger import confirmations, migrations

UuidForm = Literal["char32", "native"]
NAMES = (
    "run",
    "retry",
    "lms_call",
    "downgrade",
    "held",
    "night",
    "heartbeat",
    "throttle",
    "lms",
    "wait",
    "ledger",
    "pruned",
)
OURS = {f"license_expiry_{name}" for name in (*NAMES, "alembic_version")}
MYSQL = pytest.mark.parametrize("engine_kind", ["mariadb", "mariadb-uuid", "mysql"], indirect=True)
UUIDS = {
    "license_expiry_run": ("id", "enterprise_customer_uuid", "live"),
    "license_expiry_retry": ("run_id",),
    "license_expiry_lms_call": ("run_id",),
    "license_expiry_downgrade": ("license_uuid", "run_id", "enterprise_customer_uuid"),
    "license_expiry_held": ("license_uuid", "enterprise_customer_uuid", "run_id"),
    "license_expiry_ledger": ("uuid",),
}


@pytest.fixture
def bare(database_url: str, uuid_form: UuidForm) -> Iterator[Engine]:
    """A database with license-manager's tables alone."""
    engine = make_engine(database_url)
    create_tables(engine, uuid_form)
    yield engine
    engine.dispose()


def schema(engine: Engine) -> dict[str, Any]:
    """All tables with their columns, keys and indexes."""
    look = inspect(engine)
    return {
        name: {
            "columns": [{**column, "type": repr(column["type"])} for column in look.get_columns(name)],
            "indexes": sorted(map(repr, look.get_indexes(name))),
            "unique": sorted(map(repr, look.get_unique_constraints(name))),
            "keys": [repr(look.get_pk_constraint(name)), *sorted(map(repr, look.get_foreign_keys(name)))],
        }
        for name in look.get_table_names()
    }


@ON_ALL
def test_only_our_own_tables_are_made(bare: Engine) -> None:
    data = Data(bare)
    data.event(data.license(data.plan(data.agreement(), expires=data.now - DAY)))
    data.flush()
    with bare.begin() as connection:  # another application's own Alembic
        connection.execute(text("CREATE TABLE alembic_version (version_num varchar(32) NOT NULL)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('theirs')"))
    schema_before, rows_before = schema(bare), snapshot(bare)
    migrations.upgrade(bare)
    schema_after, rows_after = schema(bare), snapshot(bare)
    assert schema_after.keys() - schema_before.keys() == OURS
    assert {name: schema_after[name] for name in schema_before} == schema_before
    assert {name: rows_after[name] for name in rows_before} == rows_before
    Database(bare).require_schema()


@pytest.mark.long
def test_doing_it_again_changes_nothing(bare: Engine) -> None:
    migrations.upgrade(bare)
    opened_run(Database(bare), uuid4(), Database(bare).now())
    before = schema(bare), snapshot(bare)
    migrations.upgrade(bare)
    assert (schema(bare), snapshot(bare)) == before
    assert [row["id"] for row in rows(bare, Throttle)] == [1, 2]


def test_the_models_and_the_migration_agree(engine: Engine, uuid_form: UuidForm) -> None:
    def ours(_: Any, name: str | None, kind: str, reflected: bool, compared: Any) -> bool:
        return kind != "table" or name in OURS - {"license_expiry_alembic_version"}

    options = {"compare_type": True, "include_object": ours}
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection, opts=options), Ledger.metadata)
    if uuid_form == "native":  # whose type the models leave open: 32 digits go into both
        assert {(each[0][0], *each[0][2:4]) for each in differences} == {
            ("modify_type", name, column) for name, columns in UUIDS.items() for column in columns
        }
    else:
        assert differences == []


def form(kind: TypeEngine[Any]) -> tuple[type, int | None]:
    """A type without its collation, which is reflected only where a column names it."""
    return type(kind), getattr(kind, "length", None)


def test_uuids_are_of_the_type_of_a_licenses_own(engine: Engine) -> None:
    look = inspect(engine)
    [license] = [form(each["type"]) for each in look.get_columns("subscriptions_license") if each["name"] == "uuid"]
    found = {
        (name, column["name"]) for name in UUIDS for column in look.get_columns(name) if form(column["type"]) == license
    }
    assert found == {(name, column) for name, columns in UUIDS.items() for column in columns}


def uuid_columns(engine: Engine) -> dict[tuple[str, str], tuple[Any, ...]]:
    question = (
        "SELECT table_name, column_name, column_type, character_set_name, collation_name"
        " FROM information_schema.columns WHERE table_schema = database()"
    )
    return {(row[0], row[1]): row[2:] for row in raw(engine, question)}


# license-manager's tables can be older than the server's or the database's default.
COLLATIONS = ["utf8mb4_unicode_ci", "latin1_swedish_ci"]


def set_default(engine: Engine, collation: str) -> None:
    charset = collation.split("_")[0]
    with engine.begin() as connection:
        connection.execute(text(f"ALTER DATABASE {engine.url.database} CHARACTER SET {charset} COLLATE {collation}"))
    engine.dispose()  # connections remember the default


@pytest.mark.long
@MYSQL
@pytest.mark.parametrize("collation", COLLATIONS)
def test_the_collation_is_that_of_the_license_table_and_not_the_databases_default(bare: Engine, collation: str) -> None:
    set_default(bare, collation)
    migrations.upgrade(bare)
    columns = uuid_columns(bare)
    expected = columns["subscriptions_license", "uuid"]
    assert expected[0] == "uuid" or expected[2] not in (None, collation)
    assert {columns[name, column] for name in UUIDS for column in UUIDS[name]} == {expected}
    database, enterprise = Database(bare), uuid4()
    data = Data(bare)
    plan = data.plan(data.agreement(enterprise), expires=data.now - DAY)
    licenses = [data.license(plan) for _ in range(50)]
    data.flush()
    opened = opened_run(database, enterprise, data.now)
    run = database.transact(lambda session: session.get_one(Run, opened.run_id))
    database.transact(lambda session: confirmations.confirm_downgrades(session, run, licenses))
    joined = select(License.uuid).join_from(License, Downgrade, Downgrade.license_uuid == License.uuid)
    joined = joined.outerjoin(HeldLicense, HeldLicense.license_uuid == License.uuid)
    assert set(database.transact(lambda session: session.scalars(joined).all())) == set(licenses)
    join = "subscriptions_license l STRAIGHT_JOIN license_expiry_downgrade d ON d.license_uuid = l.uuid"
    with bare.connect() as connection:
        explain = "EXPLAIN" if connection.dialect.name == "mariadb" else "EXPLAIN FORMAT=TRADITIONAL"
        way = connection.execute(text(f"{explain} SELECT 1 FROM {join}")).mappings().all()[1]
    assert (way["table"], way["type"], way["key"]) == ("d", "ref", "PRIMARY")


@pytest.mark.parametrize("engine_kind", ["mariadb", "mysql"], indirect=True)
def test_a_reason_is_kept_in_any_script_whatever_the_databases_default(bare: Engine) -> None:
    set_default(bare, "latin1_swedish_ci")
    migrations.upgrade(bare)
    database, reason = Database(bare), "Ærø: 日本 🎓"
    opened_run(database, uuid4(), database.now(), force=True, reason=reason)
    assert [row["reason"] for row in rows(bare, Run)] == [reason]


@ON_SQLITE
def test_going_back_drops_our_own_tables_alone(bare: Engine) -> None:
    before = schema(bare)
    migrations.upgrade(bare)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with bare.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    after = schema(bare)
    assert after.keys() - before.keys() == {"license_expiry_alembic_version"}
    assert {name: after[name] for name in before} == before
    migrations.upgrade(bare)
    assert schema(bare).keys() - before.keys() == OURS
