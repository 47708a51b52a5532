"""Where the real services are, and what becomes of a test when one is missing."""

import os
from typing import NoReturn

import pytest

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
