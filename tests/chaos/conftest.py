"""The night that the tests of the judge forge: done once in a module, copied for each test."""

import shutil
from collections.abc import Iterator
from copy import deepcopy
from itertools import count
from pathlib import Path

import pytest

from chaos.data import LaidData, run_night
from chaos.forged import SPREAD, Done, Night
from chaos.snapshot import take_snapshot
from chaos.timeline import Timeline
from simulator.data.schema import create_tables
from simulator.lms.server import Simulator
from worker.db.engine import make_engine
from worker.ledger import migrations


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    path = tmp_path_factory.mktemp("night") / "done.sqlite3"
    engine = make_engine(f"sqlite:///{path}")
    create_tables(engine)
    migrations.upgrade(engine)
    laid_data = LaidData(1)
    with Simulator(engine) as lms:
        laid_data.restore(engine, lms)
        timeline = Timeline()
        timeline.begin(engine, laid_data)
        run_night(laid_data, f"sqlite:///{path}", lms)
        entries = lms.journal.entries
        for entry in entries:
            entry.start *= SPREAD
            entry.end = (entry.end or 0) * SPREAD
        made = Done(laid_data, path, entries, lms.state, take_snapshot(engine, lms), timeline)
    engine.dispose()
    return made


@pytest.fixture
def night(done: Done, tmp_path: Path) -> Iterator[Night]:
    shutil.copy(done.path, tmp_path / "night.sqlite3")
    engine = make_engine(f"sqlite:///{tmp_path}/night.sqlite3")
    lms = Simulator(engine)
    lms.lms.state = deepcopy(done.state)
    lms.journal._entries = deepcopy(done.entries)
    lms.journal._numbers = count(max(entry.end or 0 for entry in done.entries) + SPREAD)
    yield Night(done.laid_data, engine, lms, done.snapshot, deepcopy(done.timeline))
    engine.dispose()
