"""Each process under its own account: the rights as they are documented are enough, and each goes no further."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import unescape
from typing import Any

import pytest
import redis
import requests
from alembic import command as alembic
from alembic.config import Config
from click.testing import CliRunner
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError
from support.database_account import ACCOUNTS, SECURITY, Account, documented, whose
from support.eventually import eventually
from support.processes import CELERY, COMMAND, OPERATOR, ROOT, WORKER_SQLITE, command, lay, listed, runs
from support.runs import finish, rows, start, unlinking

from simulator.data.rows import DAY, Data
from simulator.data.schema import create_tables
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port, listens
from worker.cli.checks.rights import MARK, OPTIONAL, RIGHTS, Right, missing_rights
from worker.cli.main import main
from worker.db.engine import DENIED, code_of, make_engine
from worker.db.ledger_tables import Wait
from worker.ledger import migrations
from worker.ledger.order import Phase

ON_BOTH = pytest.mark.parametrize("engine_kind", ["postgresql", "mariadb", "mysql"], indirect=True)
WORKER, INIT, FLOWER, SERVE = ACCOUNTS
ADDRESS = "SELECT user_email FROM subscriptions_license"


@pytest.fixture
def made() -> Iterator[list[Account]]:
    """Accounts that are dropped at the end, the last made first."""
    accounts: list[Account] = []
    yield accounts
    for each in reversed(accounts):
        each.drop()


@pytest.fixture
def account_of(engine: Engine, made: list[Account]) -> Callable[[str], Account]:
    """Makes the account that is documented under a name, with the ledger's tables there."""

    def make(name: str) -> Account:
        made.append(Account(engine, name.removeprefix("license_"), name))
        return made[-1]

    return make


@pytest.fixture
def bare(database_url: str) -> Iterator[Engine]:
    """A database with license-manager's tables alone, and a learner's address in it."""
    engine = make_engine(database_url)
    create_tables(engine, "char32")
    data = Data(engine)
    data.license(data.plan(data.agreement(), expires=data.now - DAY))
    data.flush()
    yield engine
    engine.dispose()


@contextmanager
def connected(account: Account) -> Iterator[Connection]:
    """Give a connection of this account's; what is done over it is committed at the end."""
    engine = make_engine(account.url)
    try:
        with engine.connect() as connection:
            yield connection
            connection.commit()
    finally:
        engine.dispose()


def denied(account: Account, statement: str) -> bool:
    """Does the database refuse this statement to this account?"""
    try:
        with connected(account) as connection:
            connection.execute(text(statement))
        return False
    except DBAPIError as error:
        return code_of(error) in DENIED


def granted(dialect: str, name: str) -> dict[str, set[str]]:
    """The rights on each table that the files give to an account."""
    found: dict[str, set[str]] = {}
    for statement in documented(dialect)[0]:
        grant = re.fullmatch(r"GRANT (.+) ON ([\w, ]+) TO .+", statement)
        if grant and name in whose(statement) and "SCHEMA" not in grant[2]:
            for table in grant[2].split(", "):
                found.setdefault(table, set()).update(re.split(r", (?!modified)", grant[1]))
    return found


def init_db(monkeypatch: pytest.MonkeyPatch, url: str, *options: str) -> Any:
    """Run `license-expiry init-db` with no other setting than this."""
    monkeypatch.setenv("DATABASE_URL", url)
    return CliRunner().invoke(main, ["init-db", *options])


@pytest.mark.parametrize("dialect", ["mysql", "postgresql"])
def test_the_files_give_the_rights_of_the_table_and_no_others(dialect: str) -> None:
    stood = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \| ([^|]*) \|$", SECURITY.read_text(), re.MULTILINE)
    table = {name: [set(filter(None, re.split(r", (?!`?modified)", one))) for one in rights] for name, *rights in stood}
    for number, name in enumerate((WORKER, FLOWER, SERVE)):
        told = {table_name: rights[number] for table_name, rights in table.items()}
        assert granted(dialect, name) == told, name
    assert {name: set(verbs) for name, verbs in (RIGHTS | OPTIONAL).items()} == granted(dialect, WORKER)


@ON_BOTH
def test_init_makes_and_alters_the_ledger_and_reads_no_row_of_license_managers(
    bare: Engine, made: list[Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    made.append(Account(bare, "init", INIT))
    init = made[-1]
    for options in ((), ("--lms-url", "https://courses.example.com")):
        assert init_db(monkeypatch, init.url, *options).output == "The ledger's tables are ready.\n"
    for table in (RIGHTS | OPTIONAL).keys() - {name for name in RIGHTS if name.startswith("license_expiry_")}:
        assert denied(init, f"SELECT * FROM {table}"), table
        assert denied(init, f"DELETE FROM {table}"), table
        assert denied(init, f"DROP TABLE {table}"), table
    made.append(Account(bare, "worker", WORKER))  # whose rights can be given only now
    with connected(made[-1]) as connection:
        assert missing_rights(connection) == []


@ON_BOTH
def test_init_brings_each_older_ledger_up_to_date(
    bare: Engine, made: list[Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    made.append(Account(bare, "init", INIT))
    config = Config()
    config.set_main_option("script_location", str(ROOT / "worker/ledger/migrations"))
    for revision in reversed(migrations.revisions()):
        with connected(made[-1]) as connection:
            config.attributes["connection"] = connection
            alembic.upgrade(config, revision)
    assert init_db(monkeypatch, made[-1].url).exit_code == 0
    if not made[-1].postgresql:
        with bare.begin() as connection:  # as it was before license-manager's tables were moved to another collation
            was = "ALTER TABLE license_expiry_held MODIFY license_uuid CHAR(32) COLLATE utf8mb4_bin NOT NULL"
            connection.execute(text(was))
        assert init_db(monkeypatch, made[-1].url).exit_code == 0
        with bare.connect() as connection:
            assert migrations.unlike(connection) == []


@ON_BOTH
def test_init_that_lacks_a_right_is_refused_with_a_sentence(
    bare: Engine, made: list[Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    made.append(Account(bare, "init", INIT))
    made[-1].revoke(Right("CREATE", "SCHEMA public" if made[-1].postgresql else "license_expiry_run"))
    told = init_db(monkeypatch, made[-1].url)
    assert told.exit_code == 2
    assert "denied" in told.output
    assert "check DATABASE_URL, the account's rights and the server" in told.output


@pytest.mark.long
@ON_BOTH
@pytest.mark.parametrize(
    ("verb", "table"), [(MARK, "subscriptions_subscriptionplan"), ("INSERT", "license_expiry_downgrade")]
)
def test_a_worker_that_lacks_a_right_ends_its_run_with_a_sentence(
    account_of: Callable[[str], Account], engine: Engine, lms: Simulator, make_test_deps: Any, verb: str, table: str
) -> None:
    (enterprise,) = lay(Data(engine), lms)
    account = account_of(WORKER)
    account.revoke(Right(verb, table))
    deps = make_test_deps(DATABASE_URL=account.url, **unlinking(enterprise))
    [opened] = start(deps, enterprise)
    run = finish(deps, enterprise, opened.run_id)
    assert run.phase == Phase.FAILED
    assert "denied" in str(run.error)
    assert lms.calls("unlink") == []


WRITES = {
    SERVE: ["UPDATE license_expiry_run SET phase = 'finished'", "DELETE FROM license_expiry_downgrade"],
    FLOWER: ["DELETE FROM license_expiry_run", "DELETE FROM license_expiry_held"],
    WORKER: ["DELETE FROM license_expiry_pruned", "UPDATE license_expiry_ledger SET uuid = uuid"],
}
OF_LICENSE_MANAGER = [
    "DELETE FROM subscriptions_license",
    "UPDATE subscriptions_license SET status = 'revoked'",
    "UPDATE subscriptions_subscriptionplan SET title = 'x'",
    "DELETE FROM subscriptions_licenseevent",
    "CREATE TABLE license_expiry_more (id int)",
]
OF_WORKERS = ["UPDATE subscriptions_subscriptionplan SET expiration_processed = expiration_processed"]


@ON_BOTH
@pytest.mark.parametrize("name", [WORKER, FLOWER, SERVE])
def test_whoever_has_an_account_can_change_nothing_but_what_its_process_does(
    account_of: Callable[[str], Account], engine: Engine, name: str
) -> None:
    account = account_of(name)
    assert not denied(account, ADDRESS), "protection goes by the address, so it can be read"
    for statement in [*OF_LICENSE_MANAGER, *WRITES[name], *(OF_WORKERS if name != WORKER else [])]:
        assert denied(account, statement), statement


@pytest.fixture
def restricted_broker(redis_server: redis.Redis, broker: str) -> str:
    """The broker as a user with the documented rights, with nobody else let in."""
    [line] = [line for line in SECURITY.read_text().splitlines() if line.startswith("ACL SETUSER")]
    redis_server.execute_command(*line.replace(">a-password", ">secret").split())  # type: ignore[no-untyped-call]
    redis_server.execute_command("ACL", "SETUSER", "default", "off")  # type: ignore[no-untyped-call]
    return broker.replace("//", "//license_expiry:secret@").replace("/0", "/5")


def form(flower: str, path: str, **given: str) -> requests.Response:
    """Send a form of Flower's as the operator's browser does."""
    address, origin = f"{flower}/license-expiry/{path}", {"Origin": flower}
    return requests.post(address, data=given, auth=OPERATOR, headers=origin, timeout=20)


def hand_over(monkeypatch: pytest.MonkeyPatch, **settings: str) -> None:
    """Let the next process have these secrets and no others."""
    for name in ("DATABASE_URL", "CELERY_BROKER_URL", "BACKEND_SERVICE_EDX_OAUTH2_SECRET", "FLOWER_BASIC_AUTH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.mark.long
@ON_BOTH
@pytest.mark.timeout(300)
def test_a_night_with_each_process_under_its_own_account(
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    worker: Any,
    beat: Any,
    processes: Processes,
    account_of: Callable[[str], Account],
    restricted_broker: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = lay(data, lms, enterprises=2)
    environment(**listed(first, second))
    workers, secret = account_of(WORKER).url, os.environ["BACKEND_SERVICE_EDX_OAUTH2_SECRET"]
    of_worker = {"CELERY_BROKER_URL": restricted_broker, "BACKEND_SERVICE_EDX_OAUTH2_SECRET": secret}
    of_worker["DATABASE_URL"] = workers
    hand_over(monkeypatch, **of_worker)
    worker(app="support.fast_app")

    hand_over(monkeypatch, CELERY_BROKER_URL=restricted_broker)
    for name in ("LMS_URL", "BACKEND_SERVICE_EDX_OAUTH2_KEY", *listed()):
        monkeypatch.delenv(name)
    beat()
    environment(**listed(first, second))

    port = free_port()
    hand_over(monkeypatch, DATABASE_URL=account_of(SERVE).url)
    processes.start("serve", [*COMMAND, "serve", "--port", str(port)], lambda: listens(port))
    serve = f"http://127.0.0.1:{port}"

    port = free_port()
    of_flower = {"CELERY_BROKER_URL": restricted_broker, "FLOWER_BASIC_AUTH": ":".join(OPERATOR)}
    hand_over(monkeypatch, DATABASE_URL=account_of(FLOWER).url, **of_flower)
    processes.start("flower", [*CELERY, "worker", "flower", f"--port={port}"], lambda: listens(port))
    flower = f"http://127.0.0.1:{port}"

    lms.faults(Fault(kind="downgrade", enterprise=str(second), delay=60, times=1))
    address = f"{flower}/api/task/async-apply/license_expiry.run_enterprise"
    for each in (first, second):
        told = requests.post(
            address, json={"kwargs": {"enterprise_customer_uuid": str(each)}}, auth=OPERATOR, timeout=10
        )
        assert told.ok
    eventually(lambda: runs(engine, Phase.FINISHED), 60, what="the first run")
    [live] = eventually(lambda: runs(engine, Phase.DOWNGRADING), what="the second in its downgrade")
    assert form(flower, "stop", run=str(live.id), reason="a mistake").ok
    assert form(flower, "pause", reason="the LMS is upgraded").ok
    assert rows(engine, Wait)
    lms.release()
    eventually(lambda: runs(engine, Phase.STOPPED), 30, what="the second run is stopped")
    [pause] = rows(engine, Wait)
    assert form(flower, "pause", resume=pause["since"].isoformat()).ok
    assert rows(engine, Wait) == []
    assert requests.get(f"{flower}/license-expiry/start?enterprise={second}", auth=OPERATOR, timeout=20).ok

    hand_over(monkeypatch, **of_worker)
    status, night = command("run", fast=True)
    assert (status, [run["phase"] for run in night["runs"]]) == (0, ["finished"])
    for page in ("/", "/metrics", f"/runs/{live.id}", f"/enterprises/{first}"):
        assert requests.get(serve + page, timeout=20).status_code == 200, page
    eventually(lambda: requests.get(f"{serve}/healthz", timeout=20).ok, what="health, which must be told within 5 s")
    assert lms.calls("unlink", first)
    assert lms.calls("unlink", second)
    eventually(lambda: "Sending due task reconcile" in processes.log("beat"), what="beat")
    logs = "".join(processes.log(name) for name in ("worker", "beat", "flower", "serve"))
    assert not re.search("denied|permissions|NOAUTH", logs)


@WORKER_SQLITE
def test_beat_starts_with_the_broker_alone_and_names_it_when_it_has_none(
    database_url: str, broker: str, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    hand_over(monkeypatch)
    for name in ("LMS_URL", "BACKEND_SERVICE_EDX_OAUTH2_KEY"):
        monkeypatch.delenv(name, raising=False)
    start = [*CELERY, "worker", "beat", "--loglevel=DEBUG", f"--schedule={processes.folder}/schedule"]
    without = subprocess.run(start, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert without.returncode == 2
    told = without.stderr.partition("These settings are wrong:\n")[2].strip().splitlines()
    assert len(told) == 1
    assert told[0].strip().startswith("CELERY_BROKER_URL: is not set. Set it ")
    monkeypatch.setenv("CELERY_BROKER_URL", broker)
    processes.start("beat", start, lambda: "beat: Waking up" in processes.log("beat"))


@pytest.mark.long
@ON_BOTH
@pytest.mark.parametrize("name", [FLOWER, SERVE])
def test_flower_and_serve_without_one_of_their_rights_say_so(
    account_of: Callable[[str], Account],
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    lay(data, lms)
    account = account_of(name)
    account.revoke(Right(*(("INSERT", "license_expiry_wait") if name == FLOWER else ("SELECT", "license_expiry_run"))))
    environment(DATABASE_URL=account.url)
    port = free_port()
    start = [*CELERY, "worker", "flower", f"--port={port}"] if name == FLOWER else [*COMMAND, "serve", f"--port={port}"]
    process = processes.start("it", start)
    eventually(lambda: process.poll() is not None or listens(port), what="its start or its end")
    if process.poll() is not None:  # MySQL and MariaDB do not even show it the table
        assert process.returncode == 2
        told = processes.log("it")
    elif name == FLOWER:
        told = form(f"http://127.0.0.1:{port}", "pause", reason="x").text
    else:
        told = requests.get(f"http://127.0.0.1:{port}/", timeout=20).text
        assert "The database cannot be read now: the log of license-expiry serve has the reason." in told
        told = processes.log("it")
    assert re.search("check DATABASE_URL, the account|run license-expiry init-db", unescape(told)), told
    assert "Traceback" not in told
