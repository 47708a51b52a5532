"""Where the real services are, what becomes of a test when one is missing, and databases on their servers."""

import os
import uuid
from typing import NoReturn

import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

POSTGRES_URL = os.environ.get("TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
MARIADB_URL = os.environ.get("TEST_MARIADB_URL", "mysql+pymysql://root@127.0.0.1:3306/")
SERVERS = {"postgresql": POSTGRES_URL, "mariadb": MARIADB_URL, "mariadb-uuid": MARIADB_URL}
ENGINES = ["sqlite", *SERVERS]


def missing(service: str, remedy: str) -> NoReturn:
    """Skip on a laptop, fail in CI: a service that a test needs is not there."""
    message = f"{service} is not there: {remedy}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def create_database(server: str) -> str:
    """Make a database of its own on the server that this URL leads to; give its URL."""
    url = make_url(server).set(database=f"license_expiry_test_{uuid.uuid4().hex[:12]}")
    _administer(server, f"CREATE DATABASE {url.database}")
    return url.render_as_string(hide_password=False)


def drop_database(server: str, url: str) -> None:
    """Drop a database that `create_database` made on this server."""
    made = make_url(url)
    force = " WITH (FORCE)" if made.get_backend_name() == "postgresql" else ""
    _administer(server, f"DROP DATABASE {made.database}{force}")


def _administer(server: str, statement: str) -> None:
    engine = create_engine(server, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        connection.execute(text(statement))
