"""Whole transactions tried again, the database's clock, and what is said of a database that cannot be used."""

import socket
import sqlite3
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, create_engine, event, make_url, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session
from support.runs import ON_SERVERS, ON_SQLITE, raw, together

from worker.db import engine as engine_module, sessions, transactions
from worker.db.engine import make_engine
from worker.db.ledger_tables import Ledger
from worker.db.sql import DatabaseNow
from worker.db.transactions import TRIES, Database
from worker.errors import LicenseExpiryError, Unavailable, Unusable
from worker.ledger import held

ADDRESS = "learner@x.example"
PASSWORD = "hemmelig"
INIT_DB = "run license-expiry init-db"
WHOSE = "check that DATABASE_URL is license-manager's database and that its migrations have run"


@pytest.fixture
def plain(database_url: str) -> Iterator[Engine]:
    """A database with one small table: what most of these tests need."""
    engine = make_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE numbers (id integer PRIMARY KEY, n integer NOT NULL)"))
        connection.execute(text("INSERT INTO numbers VALUES (1, 0), (2, 0)"))
    yield engine
    engine.dispose()


@pytest.fixture
def database(plain: Engine) -> Database:
    return Database(plain)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transactions, "TRIES", 1)


def add_one(session: Session, number: int) -> None:
    session.execute(text("UPDATE numbers SET n = n + 1 WHERE id = :id"), {"id": number})


def numbers(engine: Engine) -> list[int]:
    return [n for (n,) in raw(engine, "SELECT n FROM numbers ORDER BY id")]


# Whole transactions


def test_a_transaction_is_done_whole_or_not_at_all(database: Database, plain: Engine) -> None:
    def work(session: Session) -> str:
        add_one(session, 1)
        return "done"

    assert database.transact(work) == "done"

    def fails(session: Session) -> None:
        add_one(session, 1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        database.transact(fails)
    assert numbers(plain) == [1, 0]


@ON_SERVERS
def test_of_two_that_lock_each_other_out_both_come_through(database: Database, plain: Engine) -> None:
    barrier = threading.Barrier(2)
    tries: list[int] = []

    def both(mine: int) -> None:
        def work(session: Session) -> None:
            tries.append(mine)
            add_one(session, mine + 1)
            if tries.count(mine) == 1:
                barrier.wait(30)  # each has the lock that the other one wants next
            add_one(session, 2 - mine)

        database.transact(work)

    assert together(2, both) == [None, None]
    assert len(tries) > 2
    assert numbers(plain) == [2, 2]


@ON_SERVERS
def test_a_process_that_is_frozen_within_a_transaction_loses_its_locks(
    database_url: str, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "IDLE_SECONDS", 1)
    monkeypatch.setattr(sessions, "LOCK_SECONDS", 1)
    frozen, awake = (Database(make_engine(database_url)) for _ in range(2))
    has_lock, thaw = threading.Event(), threading.Event()
    tries: list[int] = []

    def freezes(session: Session) -> None:
        add_one(session, 1)
        tries.append(1)
        if len(tries) == 1:
            has_lock.set()
            assert thaw.wait(60)

    def goes_on() -> None:
        assert has_lock.wait(30)
        awake.transact(lambda session: add_one(session, 1))
        assert numbers(plain) == [1, 0], "what the frozen one had done is undone"
        thaw.set()

    acts: list[Callable[[], None]] = [lambda: frozen.transact(freezes), goes_on]
    assert together(2, lambda number: acts[number]()) == [None, None]
    assert len(tries) == 2, "it notices, and does all of it again"
    assert numbers(plain) == [2, 0]
    for each in (frozen, awake):
        each.engine.dispose()


@ON_SQLITE
def test_a_write_lock_of_another_is_waited_for(
    database_url: str, plain: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(engine_module._CONNECT_ARGUMENTS, "sqlite", {"timeout": 0.01})
    engine = make_engine(database_url)
    refused = threading.Event()
    event.listen(engine, "handle_error", lambda context: refused.set())
    other = sqlite3.connect(make_url(database_url).database or "", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    tries: list[Session] = []

    def work(session: Session) -> None:
        tries.append(session)
        add_one(session, 1)

    def let_go() -> None:
        assert refused.wait(30)
        other.execute("COMMIT")

    acts: list[Callable[[], None]] = [lambda: Database(engine).transact(work), let_go]
    try:
        assert together(2, lambda number: acts[number]()) == [None, None]
    finally:
        other.close()
        engine.dispose()
    assert numbers(plain) == [1, 0]
    assert len(tries) > 1


@ON_SQLITE
def test_many_that_read_and_then_write_do_not_refuse_each_other(database: Database, plain: Engine) -> None:
    def read_and_write(session: Session) -> None:
        n = session.execute(text("SELECT n FROM numbers WHERE id = 1")).scalar_one()
        session.execute(text("UPDATE numbers SET n = :n WHERE id = 1"), {"n": n + 1})

    refusals: list[Any] = []
    event.listen(plain, "handle_error", refusals.append)

    def often(_: int) -> None:
        for _ in range(5):
            database.transact(read_and_write)

    assert together(6, often) == [None] * 6
    assert (numbers(plain), refusals) == ([30, 0], [])


# How a server's administrator, or its restart, ends connections.
KILL_OTHERS = {
    "postgresql": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mysql": "SELECT id FROM information_schema.processlist WHERE db = database() AND id <> connection_id()",
}


def kill_others(engine: Engine) -> int:
    other = create_engine(engine.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with other.connect() as connection:
        found = connection.execute(text(KILL_OTHERS[engine.dialect.name])).all()
        for (number,) in found if engine.dialect.name == "mysql" else []:
            connection.execute(text(f"KILL {number}"))
    return len(found)


@ON_SERVERS
def test_connections_that_were_ended_in_the_pool_are_no_matter(database: Database, plain: Engine) -> None:
    barrier = threading.Barrier(3)
    assert together(3, lambda _: database.transact(lambda session: barrier.wait(30) * 0)) == [0] * 3
    with plain.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert kill_others(plain) >= 1
    database.transact(lambda session: add_one(session, 1))
    assert numbers(plain) == [1, 0]


@ON_SERVERS
def test_a_connection_that_breaks_in_the_middle_has_all_of_it_done_again(database: Database, plain: Engine) -> None:
    tries = 0

    def work(session: Session) -> None:
        nonlocal tries
        tries += 1
        add_one(session, 1)
        if tries == 1:
            assert kill_others(plain) >= 1
        add_one(session, 2)

    database.transact(work)
    assert (tries, numbers(plain)) == (2, [1, 1])


@ON_SQLITE
def test_an_error_that_a_retry_cannot_fix_is_not_retried(database: Database) -> None:
    tries = 0

    def work(session: Session) -> None:
        nonlocal tries
        tries += 1
        session.execute(text("INSERT INTO numbers VALUES (1, 0)"))

    with pytest.raises(IntegrityError):
        database.transact(work)
    assert tries == 1


@pytest.mark.parametrize("engine_kind", ["mariadb", "mysql"], indirect=True)
def test_mysql_takes_no_gap_locks(plain: Engine) -> None:
    # Called tx_isolation by MariaDB before 11.1.
    [[_, isolation]] = raw(plain, "SHOW VARIABLES WHERE variable_name IN ('tx_isolation', 'transaction_isolation')")
    assert isolation == "READ-COMMITTED"


# The clock


def test_the_databases_clock_is_utc_and_moves_within_a_transaction(database: Database) -> None:
    now = database.now()
    assert now.tzinfo is UTC
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=30)

    def work(session: Session) -> list[datetime]:
        def look(seconds: int = 0) -> datetime:
            moment: datetime = session.execute(select(DatabaseNow(seconds))).scalar_one()
            return moment

        first, deadline = look(), time.monotonic() + 10
        while (later := look()) == first and time.monotonic() < deadline:
            pass
        return [first, later, look(-3600), look(3600)]

    first, later, hour_ago, in_an_hour = database.transact(work)
    assert first < later < first + timedelta(seconds=10)
    assert abs(later - timedelta(hours=1) - hour_ago) < timedelta(seconds=10)
    assert abs(later + timedelta(hours=1) - in_an_hour) < timedelta(seconds=10)


# A database that is away


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


URLS = ["postgresql+psycopg", "mysql+pymysql", "mariadb+pymysql"]


@pytest.mark.parametrize("driver", URLS)
def test_an_unreachable_server_raises_unavailable_and_names_the_setting(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "TRIES", 2)
    engine = make_engine(f"{driver}://somebody:{PASSWORD}@127.0.0.1:{closed_port()}/license_manager")
    tried: list[Any] = []
    event.listen(engine, "handle_error", lambda _: tried.append(1))
    with pytest.raises(Unavailable) as caught:
        Database(engine).now()
    said = str(caught.value)
    assert caught.value.reason == "database"
    assert "check DATABASE_URL" in said
    assert "127.0.0.1" in said
    assert "\n" not in said
    assert len(tried) >= 2
    assert_no_password(caught.value)


@pytest.mark.parametrize("driver", URLS)
def test_a_check_of_a_server_that_is_not_there_names_the_setting(driver: str) -> None:
    engine = make_engine(f"{driver}://somebody:{PASSWORD}@127.0.0.1:{closed_port()}/license_manager")
    with pytest.raises(Unusable, match="check DATABASE_URL") as caught:
        Database(engine).require_schema()
    assert_no_password(caught.value)


@ON_SERVERS
def test_a_server_that_refuses_us_is_said_to(database_url: str, impatient: None) -> None:
    stranger = make_url(database_url).set(username="nobody_we_know", password=PASSWORD)
    database = Database(make_engine(stranger.render_as_string(hide_password=False)))
    with pytest.raises(Unavailable, match="check DATABASE_URL, the account's rights and the server") as caught:
        database.now()
    assert "nobody_we_know" in str(caught.value)
    assert_no_password(caught.value)


def assert_no_password(error: LicenseExpiryError) -> None:
    assert PASSWORD not in "".join(traceback.format_exception(error))


def test_it_is_tried_more_than_once() -> None:
    assert TRIES > 1


# A database that lacks something


def test_a_complete_database_passes(engine: Engine) -> None:
    Database(engine).require_schema()
    Database(engine).require_schema(ledger=False)


def test_every_table_and_column_that_is_missing_is_named_with_its_remedy(engine: Engine, impatient: None) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE license_expiry_held"))
        connection.execute(text("ALTER TABLE license_expiry_run DROP COLUMN reason"))
        connection.execute(text("DROP TABLE subscriptions_licenseevent"))
        connection.execute(text("ALTER TABLE subscriptions_customeragreement DROP COLUMN enterprise_customer_name"))
        connection.execute(text("ALTER TABLE subscriptions_historicalsubscriptionplan DROP COLUMN history_type"))
    database = Database(engine)
    license_managers = {
        f"  table subscriptions_licenseevent is missing: {WHOSE}",
        f"  table subscriptions_customeragreement lacks column enterprise_customer_name: {WHOSE}",
        f"  table subscriptions_historicalsubscriptionplan lacks column history_type: {WHOSE}",
    }
    ours = {
        f"  table license_expiry_held is missing: {INIT_DB}",
        f"  table license_expiry_run lacks column reason: {INIT_DB}",
    }
    attempts: list[Callable[[], Any]] = [database.require_schema, lambda: database.transact(held.held_licenses)]
    for attempt in attempts:
        with pytest.raises(Unusable) as caught:
            attempt()
        assert set(str(caught.value).splitlines()) == {"The database cannot be used:"} | license_managers | ours
    with pytest.raises(Unusable) as caught:
        database.require_schema(ledger=False)
    assert set(str(caught.value).splitlines()) == {"The database cannot be used:"} | license_managers


def test_the_wrong_database_is_recognised(plain: Engine) -> None:
    with pytest.raises(Unusable) as caught:
        Database(plain).require_schema()
    tables = {line.split()[1] for line in str(caught.value).splitlines()[1:]}
    assert len(tables) == 6 + len(Ledger.metadata.tables)
    assert str(caught.value).count(WHOSE) == 6
    assert str(caught.value).count(INIT_DB) == len(Ledger.metadata.tables)


# Privacy


def test_an_error_of_the_database_does_not_tell_what_was_asked_for(plain: Engine, impatient: None) -> None:
    def work(session: Session) -> None:
        session.execute(text("SELECT * FROM nowhere WHERE user_email = :email"), {"email": ADDRESS})

    with pytest.raises(DBAPIError) as of_sqlalchemy, plain.connect() as connection, Session(connection) as session:
        work(session)
    assert ADDRESS not in "".join(traceback.format_exception(of_sqlalchemy.value))
    with pytest.raises(LicenseExpiryError) as ours:
        Database(plain).transact(work)
    assert ADDRESS not in "".join(traceback.format_exception(ours.value))
