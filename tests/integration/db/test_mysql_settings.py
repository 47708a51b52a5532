"""A night on a MySQL that is set as managed servers are gives the calls and the rows of any other.

The server is this module's own. Each test sets it, and sets it back.
"""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pymysql  # type: ignore[import-untyped]
import pytest
from sqlalchemy import Engine, make_url
from support.database_account import Account
from support.databases import private_mysql, with_tables
from support.mysql_server import MySQL
from support.one_night import night_left, night_on_sqlite
from support.runs import Make, raw
from support.services import database_on

from simulator.lms.server import Simulator
from worker.db.engine import make_engine

# As one that has replicas; it is not to wait for the disk.
REPLICATED = ("log-bin=binlog", "sync-binlog=0", "gtid-mode=ON", "enforce-gtid-consistency=ON")
NOW = datetime.now(UTC).replace(microsecond=0)

# By the name of a variable; test_mysql_servers.py has more, for fewer rows.
SETTINGS: dict[str, dict[str, str]] = {
    "as a managed server": {"sql_require_primary_key": "ON", "wait_timeout": "30", "interactive_timeout": "30"},
    "elsewhere and serializable": {"time_zone": "'-05:00'", "transaction_isolation": "'SERIALIZABLE'"},
    "ANSI, and very strict": {"sql_mode": "'ANSI,TRADITIONAL,ONLY_FULL_GROUP_BY,PAD_CHAR_TO_FULL_LENGTH'"},
    "not strict, of Western Europe": {"sql_mode": "''", "character_set_server": "latin1"},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MySQL]:
    with private_mysql(tmp_path_factory.mktemp("mysql"), *REPLICATED) as made:
        yield made


@pytest.fixture(scope="module")
def admin(server: MySQL) -> Iterator[Any]:
    """A connection from before anything is set, to which nothing of it applies."""
    with closing(server.connect()) as connection, connection.cursor() as cursor:
        yield cursor


@pytest.fixture
def settings(request: pytest.FixtureRequest, admin: pymysql.cursors.Cursor) -> Iterator[None]:
    """The server is set so, from before the tables are made."""
    values: dict[str, str] = getattr(request, "param", {})
    for name, value in values.items():
        admin.execute(f"SET GLOBAL {name} = {value}")
    yield
    for name in values:
        admin.execute(f"SET GLOBAL {name} = DEFAULT")


@pytest.fixture
def database_url(server: MySQL, settings: None) -> Iterator[str]:
    """An empty database of the module's own server."""
    with database_on(server.url) as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """It with every table."""
    with with_tables(database_url) as engine:
        yield engine


@pytest.mark.parametrize("settings", [pytest.param(each, id=name) for name, each in SETTINGS.items()], indirect=True)
def test_a_night_does_not_depend_on_the_servers_settings(
    engine: Engine, lms: Simulator, tmp_path: Path, make_test_deps: Make
) -> None:
    left = night_left(engine, lms, make_test_deps, NOW)
    assert left == night_on_sqlite(tmp_path, make_test_deps, NOW)
    assert left.sent != [[], []]


def test_a_night_goes_over_tls_where_the_server_wants_it(
    engine: Engine, admin: pymysql.cursors.Cursor, lms: Simulator, tmp_path: Path, make_test_deps: Make
) -> None:
    url = engine.url.set(query={})
    admin.execute("SET GLOBAL require_secure_transport = ON")
    try:
        secure = make_engine(url.render_as_string(hide_password=False))
        [[_, cipher]] = raw(secure, "SHOW STATUS LIKE 'Ssl_cipher'")
        assert cipher
        left = night_left(secure, lms, make_test_deps, NOW)
        secure.dispose()
    finally:
        admin.execute("SET GLOBAL require_secure_transport = OFF")
    assert left == night_on_sqlite(tmp_path, make_test_deps, NOW)


def test_an_account_may_have_to_show_a_certificate(
    engine: Engine, server: MySQL, lms: Simulator, tmp_path: Path, make_test_deps: Make
) -> None:
    """The server made this one itself."""
    account = Account(engine)
    account.execute(f"ALTER USER {account.name} REQUIRE X509")
    data = server.folder / "data"
    files = {"ssl_ca": "ca.pem", "ssl_cert": "client-cert.pem", "ssl_key": "client-key.pem"}
    query = {name: str(data / file) for name, file in files.items()} | {"ssl_check_hostname": "false"}
    url = make_url(account.url).set(query=query).render_as_string(hide_password=False)
    left = night_left(engine, lms, make_test_deps, NOW, url)
    account.drop()
    assert left == night_on_sqlite(tmp_path, make_test_deps, NOW)


def test_an_account_may_have_its_rights_by_a_role(
    engine: Engine, lms: Simulator, tmp_path: Path, make_test_deps: Make
) -> None:
    role, account = Account(engine, "role"), Account(engine)
    account.execute(f"REVOKE ALL, GRANT OPTION FROM {account.name}")
    account.execute(f"GRANT {role.name} TO {account.name}")
    account.execute(f"SET DEFAULT ROLE ALL TO {account.name}")
    left = night_left(engine, lms, make_test_deps, NOW, account.url)
    for each in (account, role):
        each.drop()
    assert left == night_on_sqlite(tmp_path, make_test_deps, NOW)
