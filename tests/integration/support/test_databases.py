"""A database that is lent to test after test is to each as if it were new."""

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, func, inspect, select, table, text
from support.databases import Shelf
from support.runs import ON_SERVERS

from simulator.data.rows import Data
from simulator.data.showcase import demo
from worker.db.engine import make_engine
from worker.db.ledger_tables import Heartbeat, Identity, Throttle
from worker.ledger import migrations

LEFT = {Heartbeat.__tablename__, Identity.__tablename__, Throttle.__tablename__, migrations.VERSION_TABLE}


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    with closing(Shelf(tmp_path)) as made:
        yield made


def filled(engine: Engine) -> set[str]:
    """The tables that have rows."""
    with engine.connect() as connection:
        counts = {
            name: connection.scalar(select(func.count()).select_from(table(name)))
            for name in inspect(engine).get_table_names()
        }
    return {name for name, count in counts.items() if count}


@ON_SERVERS
def test_nothing_of_the_test_before_is_left_in_it(shelf: Shelf, engine_kind: str, tmp_path: Path) -> None:
    with shelf.lend(engine_kind, tmp_path) as url:
        engine = make_engine(url)
        data = Data(engine)
        demo(data, datetime.now(UTC))
        data.flush()
        with engine.begin() as connection:
            connection.execute(text("UPDATE license_expiry_heartbeat SET reconciled_at = '2001-01-01'"))
            connection.execute(text("DELETE FROM license_expiry_throttle"))
        assert filled(engine) > {"subscriptions_license"}
    engine.dispose()
    with shelf.lend(engine_kind, tmp_path) as again:
        assert again == url
        assert filled(engine) == LEFT
        with engine.connect() as connection:
            assert connection.scalar(text("SELECT reconciled_at > '2026-01-01' FROM license_expiry_heartbeat"))
    engine.dispose()


@pytest.mark.long
@ON_SERVERS
def test_one_whose_tables_were_changed_is_not_lent_again(shelf: Shelf, engine_kind: str, tmp_path: Path) -> None:
    with shelf.lend(engine_kind, tmp_path) as url:
        engine = make_engine(url)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE license_expiry_run DROP COLUMN reason"))
        engine.dispose()
    with shelf.lend(engine_kind, tmp_path) as again:
        assert again != url
