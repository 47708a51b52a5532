"""The doctor behind a real PgBouncer, and with others at work in its pool."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text
from support.services import missing

from simulator.processes import Processes, free_port, listens
from worker.cli.checks import database as database_check
from worker.cli.checks.findings import Finding
from worker.db.engine import make_engine

pytestmark = pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)

CONFIGURATION = """
[databases]
* = host={host} port={port} user={user}{password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
query_wait_timeout = 10
ignore_startup_parameters = extra_float_digits
"""

Pool = Callable[..., str]


@pytest.fixture
def pool(database_url: str, tmp_path: Path) -> Iterator[Pool]:
    """Start a PgBouncer before the database, in a mode and of a size; gives its URL."""
    program = shutil.which("pgbouncer", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        missing("pgbouncer", "install pgbouncer")
    url = make_url(database_url)
    tmp_path.chmod(0o755)
    with Processes(tmp_path) as processes:

        def start(mode: str, size: int) -> str:
            port, file = free_port(), tmp_path / "pgbouncer.ini"
            server = {
                "host": url.host,
                "port": url.port or 5432,
                "user": url.username,
                "password": f" password={url.password}" if url.password else "",
            }
            file.write_text(CONFIGURATION.format(**server, listen=port, mode=mode, size=size))
            # It refuses to run as root.
            processes.start("pgbouncer", [program, "-u", "nobody", str(file)], lambda: listens(port))
            return url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)

        yield start


def pooled(url: str) -> list[Finding]:
    engine = make_engine(url)
    with engine.connect() as connection:
        connection.execute(text("SELECT 1"))  # a transaction is open, as when the doctor has looked at something before
        found = list(database_check._pooled(connection))
    engine.dispose()
    return found


@pytest.mark.parametrize("size", [1, 20])
def test_a_pool_that_lends_a_session_to_one_transaction_after_the_other_is_wrong(
    size: int, pool: Pool, engine: Engine
) -> None:
    url = pool("transaction", size)
    [found] = pooled(url)
    assert (found.subject, found.status) == ("database", "wrong")
    assert "can apply to other clients, such as license-manager" in found.what
    assert "pool_mode = session" in found.remedy


def test_others_at_work_in_the_pool_do_not_hide_it(pool: Pool, engine: Engine) -> None:
    url = pool("transaction", 20)
    other = make_engine(url)
    with other.connect() as one, other.connect() as another:
        for connection in (one, another):
            connection.execute(text("SELECT 1"))
        assert pooled(url)
    other.dispose()


def test_a_pool_of_sessions_and_a_server_itself_are_well(pool: Pool, engine: Engine, database_url: str) -> None:
    assert pooled(pool("session", 20)) == []
    for _ in range(20):
        assert pooled(database_url) == []
