"""Each way of giving something wrong, and a database that must be as it was after it."""

from collections.abc import Iterator

import pytest
from support.bad_input import SETTINGS, Standing, settings_for
from support.command_line import Use
from support.runs import Laid, lay, snapshot

from simulator.data.schema import create_tables
from simulator.lms.server import Simulator
from worker.db.engine import make_engine
from worker.ledger import migrations


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    url = f"sqlite:///{tmp_path_factory.mktemp('standing')}/license_manager.sqlite3"
    engine = make_engine(url)
    create_tables(engine)
    migrations.upgrade(engine)
    with Simulator(engine) as lms:
        yield Standing(url, engine, lms, lay(lms, licenses=2), lay(lms, licenses=2, seed=2))
    engine.dispose()


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Sets settings in the environment; None unsets one. None of ours is set at first."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)

    def set_them(**settings: object) -> None:
        for name, value in settings.items():
            monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, str(value))

    return set_them


@pytest.fixture
def refused(standing: Standing, use: Use) -> Iterator[Use]:
    """The settings for the standing database; when the test ends, all its tables are as before, and nothing was sent.

    Takes more settings.
    """
    use(**settings_for(standing.url, standing.lms))
    standing.lms.journal.clear()
    before = snapshot(standing.engine)
    yield use
    assert snapshot(standing.engine) == before
    assert standing.lms.calls() == []


@pytest.fixture
def set_up(use: Use, database_url: str, lms: Simulator) -> Use:
    """The settings for a database of the test's own; takes more."""
    use(**settings_for(database_url, lms))
    return use


@pytest.fixture
def laid(lms: Simulator) -> Laid:
    """An enterprise with work due."""
    return lay(lms, licenses=2)


@pytest.fixture
def other(lms: Simulator) -> Laid:
    """Another one."""
    return lay(lms, licenses=2, seed=2)
