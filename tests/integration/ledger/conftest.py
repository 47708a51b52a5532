"""The ledger of a database."""

import pytest
from sqlalchemy import Engine

from worker.db.transactions import Database


@pytest.fixture
def database(engine: Engine) -> Database:
    return Database(engine)
