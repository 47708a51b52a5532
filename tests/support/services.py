"""Where the real services are, what becomes of a test when one is missing, and databases and vhosts on them."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from support.mysql_server import MYSQL, MYSQL_8

POSTGRES_URL = os.environ.get("TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
MARIADB_URL = os.environ.get("TEST_MARIADB_URL", "mysql+pymysql://root@127.0.0.1:3306/")
# As `make mysql` starts them.
MYSQL_URL = os.environ.get("TEST_MYSQL_URL", f"mysql+pymysql://root@127.0.0.1:{MYSQL.port}/")
MYSQL_8_URL = os.environ.get("TEST_MYSQL_8_URL", f"mysql+pymysql://root@127.0.0.1:{MYSQL_8.port}/")


def _without_tls(url: str) -> str:
    """With TLS, though a server has none, PyMySQL reads the machine's certificates for each connection: 0.05 s."""
    return make_url(url).update_query_dict({"ssl_disabled": "true"}).render_as_string(hide_password=False)


# MySQL as 9.7 comes, and set as 8.x is: that one in a few tests alone, for the two differ in little.
SERVERS = {
    "postgresql": POSTGRES_URL,
    "mariadb": _without_tls(MARIADB_URL),
    "mariadb-uuid": _without_tls(MARIADB_URL),
    "mysql": _without_tls(MYSQL_URL),
    "mysql-8": _without_tls(MYSQL_8_URL),
}
ENGINES = ["sqlite", *SERVERS]
# One of each kind: MySQL holds UUIDs as MariaDB does in char(32).
KINDS = ["sqlite", "postgresql", "mariadb-uuid", "mysql"]
REMEDIES = {
    "postgresql": "start it, or set TEST_POSTGRES_URL",
    "mariadb": "start it, or set TEST_MARIADB_URL",
    "mysql": "make mysql, or set TEST_MYSQL_URL and TEST_MYSQL_8_URL",
}
RABBITMQ_URL = "amqp://guest:guest@127.0.0.1:5672/"


def missing(service: str, remedy: str) -> NoReturn:
    """Skip on a laptop, fail in CI: a service that a test needs is not there."""
    message = f"{service} is not there: {remedy}"
    # MySQL is not of each Debian: .ci/run sets this where it cannot be had, and says so at its end.
    excused = service.startswith("mysql") and os.environ.get("WITHOUT_MYSQL")
    if os.environ.get("CI") and not excused:
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def new_database(kind: str, folder: Path, how: str = "") -> Iterator[str]:
    """Give the URL of an empty database of this kind, SQLite's in this folder, and drop it at the end.

    `how` is what a server's CREATE DATABASE ends with.
    """
    if kind == "sqlite":
        yield f"sqlite:///{folder}/license_manager.sqlite3"
        return
    with ExitStack() as made:
        try:
            url = made.enter_context(database_on(SERVERS[kind], how))
        except OperationalError as error:
            missing(kind, f"{REMEDIES[kind.partition('-')[0]]} ({type(error.orig).__name__})")
        yield url


@contextmanager
def database_on(server: str, how: str = "") -> Iterator[str]:
    """Give the URL of an empty database on the server that this URL leads to, and drop it at the end.

    `how` is as `new_database` has it.
    """
    url = make_url(server).set(database=f"license_expiry_test_{uuid.uuid4().hex[:12]}")
    administer(server, f"CREATE DATABASE {url.database} {how}")
    try:
        yield url.render_as_string(hide_password=False)
    finally:
        force = " WITH (FORCE)" if url.get_backend_name() == "postgresql" else ""
        administer(server, f"DROP DATABASE {url.database}{force}")


def administer(server: str, statement: str) -> None:
    """Execute a statement on the server that this URL leads to, outside of any transaction."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(statement))


def create_vhost() -> str:
    """Make a vhost of its own on this machine's RabbitMQ; give its URL."""
    name = f"license_expiry_test_{uuid.uuid4().hex[:12]}"
    _control("add_vhost", name)
    _control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
    return RABBITMQ_URL + name


def delete_vhost(url: str) -> None:
    """Delete a vhost that `create_vhost` made."""
    _control("delete_vhost", url.rpartition("/")[2])


def _control(*arguments: str) -> None:
    control = shutil.which("rabbitmqctl")
    if control is None:
        missing("rabbitmq", "install rabbitmq-server")
    done = subprocess.run([control, *arguments], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        missing("rabbitmq", f"start rabbitmq-server, as root ({' '.join(done.stderr.split())[:200]})")
