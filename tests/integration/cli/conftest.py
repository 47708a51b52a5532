"""What the tests of the command share."""

import logging
from collections.abc import Iterator

import pytest
from support.command_line import SETTINGS, Use

from simulator.lms.server import Simulator


@pytest.fixture
def engine_kind(request: pytest.FixtureRequest) -> str:
    """SQLite, but where a test asks for more: what the queries mean on each engine is tried elsewhere."""
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """A command says where log lines go, for all of its process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Sets settings in the environment of this process and of those that are started from now on."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")

    def set_them(**settings: object) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(name, str(value))

    return set_them


@pytest.fixture
def set_up(use: Use, database_url: str, lms: Simulator) -> Use:
    """The settings for this database and the simulated LMS are in the environment; takes more of them."""
    given = {"DATABASE_URL": database_url, "LMS_URL": lms.url}
    use(**given, BACKEND_SERVICE_EDX_OAUTH2_KEY=lms.client_id, BACKEND_SERVICE_EDX_OAUTH2_SECRET=lms.client_secret)
    return use
