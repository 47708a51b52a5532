"""MySQL servers that are set in odd ways, or change places in the midst of a night: a server of this module's own."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pymysql  # type: ignore[import-untyped]
import pytest
from sqlalchemy import Engine, make_url, text
from support.databases import private_mysql, with_tables
from support.mysql_server import MySQL
from support.runs import Make, batches_of, counts, emails, finish, lay, open_one, raw, times_sent, unlinking
from support.services import database_on

from simulator.lms.server import Simulator
from worker.cli.checks.database import check_database
from worker.db.engine import make_engine
from worker.db.transactions import Database
from worker.errors import Unusable
from worker.settings import DatabaseSettings

pytestmark = pytest.mark.timeout(240)

# Each of these would change what a session reads or writes, or end it; the last is of the tables that init-db makes.
WRONG = {
    "sql_mode": "'ANSI,NO_BACKSLASH_ESCAPES,PAD_CHAR_TO_FULL_LENGTH'",
    "time_zone": "'-05:00'",
    "sql_safe_updates": "1",
    "sql_select_limit": "1",
    "sql_big_selects": "0",
    "max_join_size": "2",
    "sql_auto_is_null": "1",
    "completion_type": "'RELEASE'",
    "max_execution_time": "1",
    "transaction_isolation": "'SERIALIZABLE'",
    "character_set_server": "latin1",
    "autocommit": "0",
    "default_storage_engine": "'MyISAM'",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MySQL]:
    """A MySQL that keeps a binary log, as replication needs it."""
    with private_mysql(tmp_path_factory.mktemp("mysql"), "log-bin=binlog", "server-id=7") as made:
        yield made


@pytest.fixture
def database_url(server: MySQL) -> Iterator[str]:
    with database_on(server.url) as url:
        yield url


@contextmanager
def set_to(server: MySQL, values: Mapping[str, str]) -> Iterator[None]:
    """Let sessions that begin now have these defaults."""
    before = {name: server.ask(f"SELECT @@GLOBAL.{name}")[0][0] for name in values}
    for name, value in values.items():
        server.ask(f"SET GLOBAL {name} = {value}")
    try:
        yield
    finally:
        for name, value in before.items():
            server.ask(f"SET GLOBAL {name} = %s", value)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    with with_tables(database_url) as made:
        yield made


def wrong(url: str) -> list[str]:
    return [each.what for each in check_database(DatabaseSettings(DATABASE_URL=url)) if each.status == "wrong"]


def test_a_night_has_the_same_result_with_any_server_defaults(
    engine: Engine, server: MySQL, database_url: str, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, 6)
    engine.dispose()
    with set_to(server, {name: value for name, value in WRONG.items() if name != "character_set_server"}):
        deps = make_test_deps(**batches_of(2), **unlinking(laid.enterprise))
        run = finish(deps, laid.enterprise, open_one(deps, laid.enterprise))
        assert (run.phase, run.error) == ("finished", None)
        assert counts(run) == {"plans": 1, "downgraded": 6, "held": 0, "unlinked": 6, "protected": 0}
        assert wrong(database_url) == []


def test_the_ledgers_tables_are_innodbs_and_doctor_tells_of_others(server: MySQL, database_url: str) -> None:
    with set_to(server, WRONG), with_tables(database_url) as made:
        kept_by = raw(made, "SELECT engine FROM information_schema.tables WHERE table_schema = DATABASE()")
        assert set(kept_by) == {("InnoDB",)}
        with made.begin() as connection:
            connection.execute(text("ALTER TABLE license_expiry_night ENGINE = MyISAM"))
    assert ["license_expiry_night is kept by MyISAM" in each for each in wrong(database_url)] == [True]


@pytest.mark.long
@pytest.mark.parametrize(
    ("values", "cause"),
    [
        pytest.param({"super_read_only": "1"}, "read-only", id="a replica"),
        pytest.param({"transaction_read_only": "1"}, "READ ONLY transaction", id="read-only transactions"),
        pytest.param({"binlog_format": "'STATEMENT'"}, "BINLOG_FORMAT = STATEMENT", id="a log of statements"),
    ],
)
def test_a_server_that_takes_no_writes_is_reported(
    engine: Engine, server: MySQL, database_url: str, values: dict[str, str], cause: str
) -> None:
    engine.dispose()
    with set_to(server, values):
        [what] = wrong(database_url)
    assert "accepts no writes" in what
    assert cause in what


@pytest.mark.long
def test_a_server_that_only_reads_or_has_too_little_memory_is_reported(
    engine: Engine, server: MySQL, database_url: str, lms: Simulator
) -> None:
    """As an Aurora reader; and with less memory than the tables take."""
    lay(lms, 12_000)
    with engine.begin() as connection:
        connection.execute(text("ANALYZE TABLE subscriptions_license"))
    engine.dispose()
    server.stop()
    reader = MySQL(
        server.folder, server.port, options=("innodb-read-only", "skip-log-bin", "innodb-buffer-pool-size=5M")
    )
    reader.start()
    try:
        found = [each for each in check_database(DatabaseSettings(DATABASE_URL=database_url)) if each.status != "ok"]
        assert ["accepts no writes" in each.what for each in found if each.status == "wrong"] == [True]
        assert len([each for each in found if "innodb_buffer_pool_size is 5 MB" in each.what]) == 1
    finally:
        reader.stop()
        server.start()


def fail_over(server: MySQL) -> None:
    """To a reader and back."""
    with set_to(server, {"super_read_only": "1"}):
        time.sleep(7)  # longer than a transaction is tried again in place


def restart(server: MySQL) -> None:
    server.stop()
    time.sleep(5)
    server.start()


@pytest.mark.long
@pytest.mark.parametrize("interrupt", [fail_over, restart])
def test_what_happens_to_the_server_in_the_midst_of_a_night_loses_nothing_and_is_reported(
    engine: Engine, server: MySQL, lms: Simulator, make_test_deps: Make, interrupt: Callable[[MySQL], None]
) -> None:
    laid = lay(lms, 12)
    deps = make_test_deps(**batches_of(2), **unlinking(laid.enterprise), TASK_MAX_RETRIES=5)
    lms.lms.latency = 0.1
    run_id = open_one(deps, laid.enterprise)

    def when_called() -> None:
        with lms.journal.changed:
            assert lms.journal.changed.wait_for(lambda: len(lms.calls("downgrade")) >= 2, 30)
        interrupt(server)

    meanwhile = threading.Thread(target=when_called)
    meanwhile.start()
    run = finish(deps, laid.enterprise, run_id)
    meanwhile.join()
    assert (run.phase, run.error) == ("finished", None)
    assert counts(run) == {"plans": 1, "downgraded": 12, "held": 0, "unlinked": 12, "protected": 0}
    assert set(times_sent(lms, "unlink", 200)) == set(emails(deps.database.engine, *laid.licenses))
    assert run.retries


@pytest.mark.long
def test_a_password_is_given_without_tls_after_a_restart_too(
    engine: Engine, server: MySQL, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server remembers a password, it asks for less."""
    server.ask("CREATE USER few@'127.0.0.1' IDENTIFIED WITH caching_sha2_password BY 'a-password'")
    server.ask("GRANT ALL ON *.* TO few@'127.0.0.1'")
    url = make_url(database_url).set(username="few", password="a-password").render_as_string(hide_password=False)
    server.ask("FLUSH PRIVILEGES")  # forgets it, as a restart does
    assert wrong(url) == []
    server.ask("FLUSH PRIVILEGES")
    monkeypatch.setattr(pymysql._auth, "_have_cryptography", False)
    with pytest.raises(Unusable, match=r"driver of DATABASE_URL cannot connect .*cryptography.*install the packages"):
        Database(make_engine(url)).now()
    server.ask("DROP USER few@'127.0.0.1'")
