"""What the tests share: databases of their own on each engine, and where the real services are."""

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import Connection, Engine, event
from sqlalchemy.util import LRUCache
from support.database_account import Account
from support.databases import Shelf
from support.services import KINDS, new_database

from simulator.lms.server import Simulator
from worker.db.engine import make_engine
from worker.deps import Deps, make_deps
from worker.lms.patience import Patience
from worker.settings import Settings

settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


def pytest_configure(config: pytest.Config) -> None:
    """Keep what is left in the temporary folder in one that is dropped."""
    if not hasattr(config, "workerinput"):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="lx-")
        Path(tempfile.tempdir).chmod(0o755)  # for servers that have users of their own
        config.add_cleanup(partial(shutil.rmtree, tempfile.tempdir, ignore_errors=True))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the modules that take longest, or one process is left with them at the end; else as was drawn."""
    long = {"chaos", "acceptance"}
    items.sort(key=lambda item: (long.isdisjoint(Path(item.path).parts), item.path.name != "test_chaos.py"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let unit tests open no socket at all, and the others none but to this machine."""
    from pytest_socket import disable_socket, socket_allow_hosts

    if "unit" in Path(item.path).parts:
        disable_socket(allow_unix_socket=True)
    else:
        socket_allow_hosts(["127.0.0.1", "::1", "localhost"], allow_unix_socket=True)


class Compiled(LRUCache[Any, Any]):
    """Statements as SQLAlchemy has compiled them: what was made for one engine serves all of its kind.

    It takes SQLAlchemy far longer to compile a statement than to execute it here, and each test has engines of its own.
    """

    def get(self, key: Any, default: Any = None) -> Any:
        return super().get((type(key[0]), *key[1:]), default)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__((type(key[0]), *key[1:]), value)


COMPILED = Compiled(2000)


@event.listens_for(Engine, "engine_connect")
def share_what_is_compiled(connection: Connection) -> None:
    """Let every engine of this process look there."""
    connection.execution_options(compiled_cache=COMPILED)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    """The databases that are lent to one test after the other."""
    with closing(Shelf(tmp_path_factory.mktemp("shelf"))) as made:
        yield made


@pytest.fixture(params=KINDS)
def engine_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of database in turn; "mariadb-uuid" has native uuid columns."""
    return str(request.param)


@pytest.fixture
def uuid_form(engine_kind: str) -> Literal["char32", "native"]:
    """The form of the database's UUID columns."""
    return "native" if engine_kind == "mariadb-uuid" else "char32"


@pytest.fixture
def database_url(request: pytest.FixtureRequest, engine_kind: str, tmp_path: Path, shelf: Shelf) -> Iterator[str]:
    """The URL of a database of the test's own: with every table when it asks for `engine` too, else an empty one."""
    take = shelf.lend if "engine" in request.fixturenames else new_database
    with take(engine_kind, tmp_path) as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A database with license-manager's tables and the ledger's, and no rows."""
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def account(engine: Engine) -> Iterator[Account]:
    """An account of the database's server with just the documented rights."""
    made = Account(engine)
    yield made
    made.drop()


@pytest.fixture
def lms(engine: Engine) -> Iterator[Simulator]:
    """A simulated LMS on a port of its own; `lms.seed()` makes it know the database's rows."""
    with Simulator(engine) as simulator:
        yield simulator


IMPATIENCE = Patience(first_wait=0.01, in_place=1.0)


@pytest.fixture
def make_test_deps(database_url: str, lms: Simulator) -> Iterator[Callable[..., Deps]]:
    """A maker of the wiring for this database and the simulated LMS; takes settings by name."""
    made: list[Deps] = []

    def make(patience: Patience = IMPATIENCE, **settings: Any) -> Deps:
        given: dict[str, Any] = {
            "DATABASE_URL": database_url,
            "LMS_URL": lms.url,
            "TASK_MAX_RETRIES": 0,  # an LMS that is away fails the run
            "BACKEND_SERVICE_EDX_OAUTH2_KEY": lms.client_id,
            "BACKEND_SERVICE_EDX_OAUTH2_SECRET": lms.client_secret,
        }
        made.append(make_deps(Settings(**(given | settings)), patience))
        return made[-1]

    yield make
    for deps in made:
        deps.close()


@pytest.fixture
def all_counted(make_test_deps: Callable[..., Deps]) -> Iterator[None]:
    """No thread of /metrics is left behind that counts what is due, with a connection of deps that are closed."""
    yield
    for thread in threading.enumerate():
        if thread.name == "due":
            thread.join(30)
