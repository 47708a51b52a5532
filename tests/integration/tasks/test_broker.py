"""May we use the broker? Asked of real brokers, by accounts and servers that refuse."""

import runpy
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from celery import Celery
from support.database_account import SECURITY
from support.services import RABBITMQ_URL, create_vhost, delete_vhost, missing

from simulator.processes import Processes, free_port, listens
from tasks.broker import check_broker
from worker.errors import Away, Unusable

CONFIG = Path(__file__).parents[3] / "celeryconfig.py"
NARROW = "~license_expiry:* resetchannels &license_expiry:*"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    program = shutil.which("redis-server")
    if program is None:
        missing("redis-server", "install redis")
    port, folder = free_port(), tmp_path_factory.mktemp("redis")
    with Processes(folder) as processes:
        command = [program, "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(folder)]
        processes.start("redis", command, lambda: listens(port))
        with redis.Redis(port=port) as client:
            yield client


def address(server: redis.Redis, account: str = "") -> str:
    return f"redis://{account}127.0.0.1:{server.connection_pool.connection_kwargs['port']}/5"


@pytest.fixture
def app_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Celery]:
    """An app with the settings of celeryconfig.py and this broker."""

    def make(url: str) -> Celery:
        monkeypatch.setenv("CELERY_BROKER_URL", url)
        app = Celery("license_expiry", set_as_current=False)
        app.config_from_object(SimpleNamespace(**runpy.run_path(str(CONFIG))))
        return app

    return make


def refusal(app: Celery, listens: bool = True) -> str:
    with pytest.raises(Unusable) as caught:
        check_broker(app, listens=listens)
    assert not isinstance(caught.value, Away)
    assert "secret" not in str(caught.value)
    return str(caught.value)


def test_a_redis_that_does_all_passes_and_keeps_nothing(server: redis.Redis, app_of: Callable[[str], Celery]) -> None:
    server.flushall()
    for listens_too in (True, False):
        check_broker(app_of(address(server)), listens=listens_too)
    with redis.Redis(port=server.connection_pool.connection_kwargs["port"], db=5) as client:
        assert client.keys("*") == [b"license_expiry:_kombu.binding_deadlines"], "kombu's own, as after any worker"


@pytest.mark.parametrize(
    ("rights", "listens_too", "words"),
    [
        pytest.param("~license_expiry:* resetchannels +@all", True, "channels", id="no channel at all"),
        pytest.param(f"{NARROW} +@all", True, "channels", id="a pattern of PSUBSCRIBE must be named as it is"),
        pytest.param(
            f"{NARROW} &license_expiry:/5.celery.pidbox +@all", True, "channels", id="commands, but not the events"
        ),
        pytest.param("~other:* allchannels +@all", False, "keys", id="other keys"),
        pytest.param("~* allchannels +@all -pexpire", False, "'pexpire'", id="no message that expires"),
        pytest.param("~* allchannels +@read", False, "permissions", id="no write"),
    ],
)
def test_an_account_that_lacks_a_right_is_refused(
    server: redis.Redis, app_of: Callable[[str], Celery], rights: str, listens_too: bool, words: str
) -> None:
    server.execute_command("ACL", "SETUSER", "few", "reset", "on", ">secret", "+select", "+ping", *rights.split())  # type: ignore[no-untyped-call]
    told = refusal(app_of(address(server, "few:secret@")), listens_too)
    assert words in told
    assert told.endswith("(ACL SETUSER)")


def test_the_documented_rights_are_enough(server: redis.Redis, app_of: Callable[[str], Celery]) -> None:
    [documented] = [line for line in SECURITY.read_text().splitlines() if line.startswith("ACL SETUSER")]
    server.execute_command(*documented.replace("a-password", "secret").replace('"', "").split())  # type: ignore[no-untyped-call]
    check_broker(app_of(address(server, "license_expiry:secret@")))


def test_a_redis_that_lets_us_in_but_takes_no_writes_is_refused(
    server: redis.Redis, app_of: Callable[[str], Celery]
) -> None:
    app = app_of(address(server))
    server.replicaof("127.0.0.1", 1)
    try:
        for serves in ("yes", "no"):
            server.config_set("replica-serve-stale-data", serves)
            for listens_too in (True, False):
                assert "not to a replica" in refusal(app, listens_too)
    finally:
        server.replicaof("NO", "ONE")
    server.config_set("maxmemory", 1)
    try:
        for listens_too in (True, False):
            told = refusal(app, listens_too)
            assert "command not allowed when used memory > 'maxmemory'" in told
            assert "raise maxmemory in redis.conf" in told
    finally:
        server.config_set("maxmemory", 0)
    check_broker(app)


def test_a_wrong_password_names_the_setting(server: redis.Redis, app_of: Callable[[str], Celery]) -> None:
    assert "in CELERY_BROKER_URL" in refusal(app_of(address(server, "nobody:secret@")))


def test_what_does_not_answer_is_unreachable_and_not_refused(app_of: Callable[[str], Celery]) -> None:
    for scheme in ("redis", "amqp"):
        with pytest.raises(Away, match="check CELERY_BROKER_URL and the broker"):
            check_broker(app_of(f"{scheme}://127.0.0.1:{free_port()}"))


def test_a_rabbitmq_passes_or_refuses(app_of: Callable[[str], Celery]) -> None:
    url = create_vhost()
    try:
        for listens_too in (True, False):
            check_broker(app_of(url), listens=listens_too)
        assert "in CELERY_BROKER_URL" in refusal(app_of(url.replace(":guest@", ":secret@")))
    finally:
        delete_vhost(url)
    assert "correct the vhost" in refusal(app_of(f"{RABBITMQ_URL}nowhere"))
