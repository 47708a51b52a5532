"""The simulator's tables and rows are what license-manager's own would be, on every engine."""

import csv
import re
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, func, inspect, select, text
from sqlalchemy.exc import IntegrityError

from simulator.data.rows import DOWNGRADED_EVENT, ORDER, UNLINKED_EVENT, Data
from simulator.data.schema import CSV, UuidForm, create_tables, drop_tables, table
from simulator.data.showcase import CASES, MALFORMED_EMAIL, bulk, demo, read_demo
from simulator.lms.seeding import seed_from_database

NOW = datetime(2026, 6, 1, 2, 0, tzinfo=UTC)
WHOLE = datetime(2025, 1, 1, tzinfo=UTC)
FRACTION = datetime(2025, 1, 1, 12, 30, 15, 42, tzinfo=UTC)
OWN = uuid.UUID("0123456789ab4cde8123456789abcdef")  # a version 4: MariaDB refuses digits that are no UUID

QUESTIONS = {
    "sqlite": "SELECT name, type, \"notnull\" = 0 FROM pragma_table_info('{table}')",
    "postgresql": "SELECT attname, format_type(atttypid, atttypmod), NOT attnotnull FROM pg_attribute"
    " WHERE attrelid = '{table}'::regclass AND attnum > 0",
    "mysql": "SELECT column_name, column_type, is_nullable = 'YES' FROM information_schema.columns"
    " WHERE table_schema = database() AND table_name = '{table}'",
}


@pytest.fixture
def database(engine: Engine) -> Engine:
    return create_engine(engine.url, poolclass=NullPool)


@pytest.fixture
def fresh(database_url: str, uuid_form: UuidForm) -> Engine:
    """A database in which no row has been given a number yet, and with license-manager's tables alone."""
    engine = create_engine(database_url, poolclass=NullPool)
    create_tables(engine, uuid_form)
    return engine


def ask(engine: Engine, question: str) -> list[Any]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(question))]


def dialect(engine: Engine) -> str:
    return "mysql" if engine.dialect.name == "mariadb" else engine.dialect.name


def recorded(engine: Engine, uuid_form: UuidForm) -> dict[str, dict[str, tuple[str, bool]]]:
    """The columns of each table as license-manager's own were observed."""
    column = {"sqlite": "sqlite_type", "postgresql": "postgres_type"}.get(dialect(engine), "mysql_type")
    column = "mariadb107_type" if uuid_form == "native" else column
    tables: dict[str, dict[str, tuple[str, bool]]] = {}
    with CSV.open(newline="") as source:
        for row in csv.DictReader(source):
            tables.setdefault(row["table"], {})[row["column"]] = (
                plain(row[column]),
                row["nullable"] == "yes",
            )
    return tables


def plain(spelled: str) -> str:
    """A type without what says nothing: capitals, MySQL's display widths, how a number is given."""
    return re.sub(r"int\(\d+\)", "int", spelled.lower()).replace(" identity", "")


def test_every_column_has_the_recorded_type(database: Engine, uuid_form: UuidForm) -> None:
    for name, columns in recorded(database, uuid_form).items():
        found = ask(database, QUESTIONS[dialect(database)].format(table=name))
        assert {column: (plain(spec), bool(null)) for column, spec, null in found} == columns, name


def test_keys_and_indexes_are_the_recorded_ones(database: Engine) -> None:
    look = inspect(database)
    names = {one["name"]: one["column_names"] for one in look.get_indexes("subscriptions_license")}
    assert names["subscription_plan_status_idx"] == ["subscription_plan_id", "status"]
    # The pattern index serves LIKE on PostgreSQL alone; Django makes it nowhere else.
    like = "subscriptions_license_user_email_5a6aaa7a_like"
    assert (like in names) == (database.dialect.name == "postgresql")
    referred = {one["referred_table"] for one in look.get_foreign_keys("subscriptions_subscriptionplan")}
    assert referred == {"subscriptions_customeragreement"}  # subscriptions_product is no table of ours
    assert look.get_pk_constraint("subscriptions_licenseevent")["constrained_columns"] == ["id"]


def test_values_are_stored_as_django_stores_them(database: Engine, uuid_form: UuidForm) -> None:
    data = Data(database, now=NOW)
    agreement = data.agreement(OWN, purge_after=timedelta(days=90, microseconds=1))
    data.plan(agreement, starts=WHOLE, expires=FRACTION, expiration_processed=True)
    data.flush()
    [(enterprise, purge)] = ask(
        database,
        "SELECT enterprise_customer_uuid, license_duration_before_purge FROM subscriptions_customeragreement",
    )
    columns = "start_date, expiration_date, is_active, for_internal_use_only"
    [(starts, expires, active, internal)] = ask(database, f"SELECT {columns} FROM subscriptions_subscriptionplan")
    if database.dialect.name == "postgresql":
        assert (enterprise, purge) == (OWN, timedelta(days=90, microseconds=1))
        assert (starts, expires, active, internal) == (WHOLE, FRACTION, True, False)
        return
    # MariaDB's native uuid comes back with dashes.
    assert enterprise == (str(OWN) if uuid_form == "native" else OWN.hex)
    assert (purge, active, internal) == (7_776_000_000_001, 1, 0)
    if database.dialect.name == "sqlite":  # no zone, and no fraction where it is zero
        assert (starts, expires) == ("2025-01-01 00:00:00", "2025-01-01 12:30:15.000042")
    else:
        assert (starts, expires) == (WHOLE.replace(tzinfo=None), FRACTION.replace(tzinfo=None))


def test_values_come_back_as_they_went_in(database: Engine) -> None:
    data = Data(database, now=NOW)
    agreement = data.agreement(OWN)
    plan = data.plan(agreement, starts=WHOLE, expires=FRACTION)
    later = data.license(plan, "b@x.example", lms_user_id=7, status="assigned")
    earlier = data.license(plan, None, renewed_to=later)
    data.flush()
    plans, licenses = table(database, "subscriptionplan"), table(database, "subscriptions_license")
    with database.connect() as connection:
        found = connection.execute(select(plans).where(plans.c.uuid == plan)).one()
        assert (found.start_date, found.expiration_date, found.is_active) == (WHOLE, FRACTION, True)
        assert found.start_date.tzinfo is UTC
        found = connection.execute(select(licenses).where(licenses.c.uuid == earlier)).one()
        assert (found.renewed_to_id, found.user_email, found.status) == (later, None, "activated")


def test_a_new_engine_finds_the_form_of_the_uuids_by_itself(database: Engine) -> None:
    data = Data(database, now=NOW)
    made = data.agreement()
    data.flush()
    other = create_engine(database.url, poolclass=NullPool)
    with other.connect() as connection:
        found = connection.execute(select(table(other, "customeragreement").c.uuid)).scalar_one()
    assert found == made.uuid


def test_the_database_numbers_events(fresh: Engine) -> None:
    data = Data(fresh, now=NOW)
    license = data.license(data.plan(data.agreement()))
    data.event(license, DOWNGRADED_EVENT)
    data.event(license)
    data.flush()
    question = "SELECT id, event_name FROM subscriptions_licenseevent ORDER BY id"
    assert ask(fresh, question) == [(1, DOWNGRADED_EVENT), (2, UNLINKED_EVENT)]


def test_unique_keys_hold(database: Engine) -> None:
    data = Data(database, now=NOW)
    agreement = data.agreement(slug="one")
    plan = data.plan(agreement, title="Gold")
    data.renewal(plan)
    data.flush()
    doubles: list[Callable[[Data], object]] = [
        lambda data: data.agreement(slug="one"),
        lambda data: data.agreement(agreement.enterprise_customer_uuid, slug="two"),
        lambda data: data.plan(agreement, title="Gold"),
        lambda data: data.renewal(plan),
    ]
    for double in doubles:
        again = Data(database, seed=2, now=NOW)
        double(again)
        with pytest.raises(IntegrityError):
            again.flush()


def test_the_same_seed_gives_the_same_rows_on_every_engine(fresh: Engine) -> None:
    here = create_engine("sqlite://")
    create_tables(here)
    for engine in (here, fresh):
        demo(Data(engine, seed=3), NOW)
    for name in ORDER:
        rows = []
        for engine in (here, fresh):
            with engine.connect() as connection:
                found = connection.execute(select(table(engine, name))).all()
                rows.append(sorted(tuple(map(str, row)) for row in found))
        assert rows[0] == rows[1], name
    here.dispose()


def test_the_demo_can_be_read_again(database: Engine) -> None:
    assert read_demo(database) is None
    made = demo(Data(database), NOW)
    assert read_demo(database) == made
    assert len(made.enterprises) == len(CASES)
    assert len(made.planted_held) == 1
    assert set(made.unlink_enabled) < {one.uuid for one in made.enterprises}


def test_the_demo_has_no_real_address(database: Engine) -> None:
    demo(Data(database), NOW)
    question = "SELECT DISTINCT user_email FROM subscriptions_license WHERE user_email IS NOT NULL"
    emails = {email for (email,) in ask(database, question)}
    assert all(email.endswith(".example") for email in emails)
    assert {email for email in emails if "@" not in email} == {MALFORMED_EMAIL}


def test_bulk_makes_as_many_as_asked(database: Engine) -> None:
    enterprises = bulk(Data(database, now=NOW), enterprises=3, licenses=1000)
    assert len(set(enterprises)) == 3
    plans, licenses = table(database, "subscriptionplan"), table(database, "license")
    counted = (
        select(func.count())
        .select_from(licenses.join(plans, licenses.c.subscription_plan_id == plans.c.uuid))
        .where(plans.c.expiration_date <= NOW)
    )
    with database.connect() as connection:
        assert connection.execute(select(func.count()).select_from(licenses)).scalar() == 1000
        assert connection.execute(counted).scalar() in range(500, 503)  # half of each, rounded up


def test_the_lms_is_seeded_to_fit(database: Engine) -> None:
    data = Data(database, now=NOW)
    agreement = data.agreement()
    done = data.plan(agreement, expires=NOW - timedelta(days=100), expiration_processed=True)
    waiting = data.plan(agreement, expires=NOW - timedelta(days=99))
    processed = data.license(done, "processed@x.example")
    unlinked = data.license(done, "unlinked@x.example")
    data.event(unlinked)
    singly = data.license(waiting, "singly@x.example")
    data.event(singly, DOWNGRADED_EVENT)
    still = data.license(waiting, "still@x.example", status="assigned")
    revoked = data.license(waiting, "revoked@x.example", status="revoked")
    nobody = data.license(waiting, None)
    data.flush()
    state = seed_from_database(database)
    modes = {license: {one.mode for one in state.enrollments(license)} for license in (processed, singly, still)}
    assert modes == {processed: {"audit"}, singly: {"audit"}, still: {"verified"}}
    assert state.enrollments(revoked) == []
    assert state.enrollments(nobody) != []
    linked = {"processed@x.example", "singly@x.example", "still@x.example"}
    assert state.linked == {agreement.enterprise_customer_uuid: linked}


def test_tables_can_be_dropped(fresh: Engine) -> None:
    drop_tables(fresh)
    assert inspect(fresh).get_table_names() == []


def test_any_column_can_be_given_and_changes_no_other_uuid(database: Engine) -> None:
    plain = Data(database, now=NOW)
    expected = [plain.license(plain.plan(plain.agreement())) for _ in range(2)]
    data = Data(database, now=NOW)
    data.license(data.plan(data.agreement()), uuid=OWN, activation_date=WHOLE, created=FRACTION, status="assigned")
    second = data.license(data.plan(data.agreement()))
    data.flush()
    assert second == expected[1]
    licenses = table(database, "license")
    with database.connect() as connection:
        found = connection.execute(select(licenses).where(licenses.c.uuid == OWN)).one()
    assert (found.activation_date, found.created) == (WHOLE, FRACTION)
