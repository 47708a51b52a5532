"""What is wrong is told in one clear sentence, the thing and the remedy; nothing is written and nothing is sent."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from kombu.exceptions import OperationalError
from sqlalchemy import Engine, MetaData, text
from support.runs import Laid, lay, rows, snapshot

import tasks
from simulator.data.schema import create_tables
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import free_port
from worker.cli import main
from worker.db.engine import make_engine
from worker.db.ledger_tables import Ledger, Run
from worker.db.license_manager_tables import LicenseManager
from worker.db.schema_check import PLAN_HISTORY_TABLE
from worker.deps import make_deps
from worker.ledger import migrations
from worker.lms.patience import Patience
from worker.settings import Settings
from worker.settings_sources import CONFIG_FILE_VARIABLE

COMMAND = Path(sys.executable).with_name("license-expiry")
LIST = "CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"
REQUIRED = ("DATABASE_URL", "LMS_URL", "BACKEND_SERVICE_EDX_OAUTH2_KEY", "BACKEND_SERVICE_EDX_OAUTH2_SECRET")
SETTINGS = (*Settings.model_fields, CONFIG_FILE_VARIABLE)
STRANGER = UUID("0000cccc-0000-4000-8000-00000000cccc")
PASSWORD = "hunter2"
RUN = ("run", "--here")
TOMORROW = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"

pytestmark = pytest.mark.timeout(60)  # what waits for ever is told soon

Use = Callable[..., None]


@dataclass(frozen=True)
class Bad:
    """What is wrong; the command; settings that are not the usual; patterns that one line must match, all of them.

    {plan}, {other_plan} and {enterprise} stand for what is in the database, {nowhere} for a port where nobody listens.
    """

    why: str
    command: tuple[str, ...]
    words: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict)
    status: int = 2


def cases(*table: Bad) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.why) for bad in table])


@dataclass(frozen=True)
class Standing:
    """A database with work due and its LMS, for all that is refused before anything is done."""

    url: str
    engine: Engine
    lms: Simulator
    laid: Laid
    other: Laid


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
def engine_kind(request: pytest.FixtureRequest) -> str:
    """SQLite, but where a test asks for more."""
    return str(getattr(request, "param", "sqlite"))


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


def settings_for(url: str, lms: Simulator) -> dict[str, str]:
    return dict(zip(REQUIRED, (url, lms.url, lms.client_id, lms.client_secret), strict=True))


def license_expiry(*arguments: object) -> Result:
    """The command in this process; any exception but its exit, which would print a traceback, fails the test."""
    return CliRunner().invoke(main.main, [str(each) for each in arguments], catch_exceptions=False)


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    command = [str(COMMAND), *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=90)


def assert_told(stderr: str, *words: str) -> None:
    """One line has all of these patterns; nobody is shown a traceback or a password."""
    assert "Traceback" not in stderr
    assert PASSWORD not in stderr
    lines = stderr.splitlines() or [""]
    assert any(all(re.search(word, line) for word in words) for line in lines), f"no line has {words}:\n{stderr}"


def assert_refused(bad: Bad, result: Result, names: dict[str, object]) -> None:
    assert (result.exit_code, result.stdout) == (bad.status, "")
    assert_told(result.stderr, *(word.format(**names) for word in bad.words))


def drop(engine: Engine, *names: str) -> None:
    """Drop tables, whoever points at them."""
    metadata = MetaData()
    metadata.reflect(engine, only=lambda name, _: name in names)
    metadata.drop_all(engine)


# Arguments

ARGUMENTS = cases(
    Bad("an enterprise that is no UUID", (*RUN, "--enterprise", "378d5bf0"), ("--enterprise", "378d5bf0", "UUID")),
    Bad("so too for status", ("status", "--enterprise", "acme"), ("--enterprise", "acme", "UUID")),
    Bad("a plan that is no UUID", (*RUN, "--plan", "gold"), ("--plan", "gold", "UUID")),
    Bad("a variable that is not set", (*RUN, "--enterprise", ""), ("--enterprise", "UUID")),
    Bad(
        "an enterprise that license-manager does not know",
        (*RUN, "--enterprise", str(STRANGER)),
        (str(STRANGER), "no customer agreement", "check the UUID"),
    ),
    Bad(
        "one of two enterprises is unknown: the other is not begun either",
        (*RUN, "--enterprise", "{enterprise}", "--enterprise", str(STRANGER)),
        (str(STRANGER), "no customer agreement", "check the UUID"),
    ),
    Bad(
        "a plan of another enterprise",
        (*RUN, "--enterprise", "{enterprise}", "--plan", "{other_plan}"),
        ("{other_plan}", "not a plan of enterprise {enterprise}", "check"),
    ),
    Bad(
        "one of two plans is another's: the right one is not begun either",
        (*RUN, "--enterprise", "{enterprise}", "--plan", "{plan}", "--plan", "{other_plan}"),
        ("{other_plan}", "not a plan of enterprise {enterprise}", "check"),
    ),
    Bad("an unknown plan", (*RUN, "--plan", str(STRANGER)), (str(STRANGER), "not a plan of any enterprise", "check")),
    Bad(
        "an enterprise where a plan is asked for",
        (*RUN, "--plan", "{enterprise}"),
        ("{enterprise}", "not a plan of any enterprise", "check"),
    ),
    Bad(
        "a window that begins in the future",
        (*RUN, "--expired-after", TOMORROW),
        ("expired.after", TOMORROW[:10], "future", "only expired plans"),
    ),
    Bad(
        "a window that ends in the future",
        (*RUN, "--expired-before", TOMORROW),
        ("expired.before", TOMORROW[:10], "future", "only expired plans"),
    ),
    Bad(
        "a window turned round",
        (*RUN, "--expired-after", "2026-02-01", "--expired-before", "2026-01-01"),
        ("expired.after", "later than", "expired.before", "exchange them"),
    ),
    Bad("a word for a date", (*RUN, "--expired-after", "yesterday"), ("expired.after", "yesterday", r"\d{{4}}-\d\d-")),
    Bad("a day that is none", (*RUN, "--expired-before", "2026-02-30"), ("expired.before", "2026-02-30", "date")),
    Bad(
        "a date as people write it",
        (*RUN, "--expired-before", "31.01.2026"),
        ("expired.before", r"31\.01\.2026", r"\d{{4}}-\d\d-"),
    ),
    Bad("a year alone is no number of seconds", (*RUN, "--expired-before", "2026"), ("expired.before", "date")),
    Bad("force without a reason", (*RUN, "--plan", "{plan}", "--force"), ("force", "needs a reason", "give.*reason")),
    Bad("force with a blank reason", (*RUN, "--force", "--reason", "  "), ("force", "needs a reason", "give.*reason")),
    Bad("a reason that does not fit", (*RUN, "--force", "--reason", "x" * 256), ("reason", "255")),
    Bad(
        "beside --json nothing is printed either", (*RUN, "--enterprise", str(STRANGER), "--json"), ("check the UUID",)
    ),
    Bad("so for a rehearsal", (*RUN, "--enterprise", str(STRANGER), "--dry-run"), ("check the UUID",)),
    Bad("an option that there is not", (*RUN, "--enterprize", "{enterprise}"), ("--enterprize", "--enterprise")),
    Bad("a command that there is not", ("dew",), ("dew",)),
    Bad("an argument that is none", (*RUN, "{enterprise}"), ("{enterprise}",)),
)


@ARGUMENTS
def test_a_wrong_argument_is_refused(bad: Bad, refused: Use, standing: Standing) -> None:
    laid, other = standing.laid, standing.other
    names: dict[str, object] = {"enterprise": laid.enterprise, "plan": laid.plan, "other_plan": other.plan}
    assert_refused(bad, license_expiry(*(each.format(**names) for each in bad.command)), names)


# An enterprise on the unlink list that license-manager does not know


def test_an_unknown_enterprise_on_the_list_is_a_failed_run_and_the_others_are_done(
    engine: Engine, set_up: Use, laid: Laid, other: Laid
) -> None:
    set_up(**{LIST: f"{laid.enterprise},{STRANGER}"})
    result = license_expiry(*RUN, "--json")
    assert result.exit_code == 1
    runs = {UUID(run["enterprise_customer_uuid"]): run for run in json.loads(result.stdout)["runs"]}
    assert {enterprise: run["phase"] for enterprise, run in runs.items()} == {
        laid.enterprise: "finished",
        other.enterprise: "finished",
        STRANGER: "failed",
    }
    assert_told(runs[STRANGER]["error"], str(STRANGER), "no customer agreement", f"take it off {LIST}")
    [ended] = [run for run in rows(engine, Run) if run["enterprise_customer_uuid"] == STRANGER]
    assert (ended["live"], ended["error"]) == (None, runs[STRANGER]["error"])
    shown = license_expiry("status")
    assert shown.exit_code == 1
    assert runs[STRANGER]["error"] in shown.stdout


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_due_warns_of_an_unknown_enterprise_on_the_list(
    refused: Use, standing: Standing, options: tuple[str, ...]
) -> None:
    refused(**{LIST: f"{standing.laid.enterprise},{STRANGER}"})
    result = license_expiry("due", *options)
    assert result.exit_code == 0
    assert str(STRANGER) not in result.stdout
    assert_told(result.stderr, "Warning", str(STRANGER), "no customer agreement", f"take it off {LIST}")


# Settings


def test_every_missing_setting_is_told_at_once(refused: Use) -> None:
    refused(**dict.fromkeys(REQUIRED))
    result = license_expiry("run")
    assert (result.exit_code, result.stdout) == (2, "")
    for name in (*REQUIRED, "CELERY_BROKER_URL"):
        assert_told(result.stderr, rf"^ *{name}: is not set\.", "for example")
    assert len(result.stderr.splitlines()) == 1 + len(REQUIRED) + 1


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("DATABASE_URL", "init-db"),
        ("DATABASE_URL", "due"),
        ("BACKEND_SERVICE_EDX_OAUTH2_KEY", "run --here"),
        ("BACKEND_SERVICE_EDX_OAUTH2_SECRET", "run --here --dry-run"),
        ("DATABASE_URL", "serve"),
        ("CELERY_BROKER_URL", "run --no-wait"),
    ],
)
def test_a_missing_setting_is_told_by_each_command(refused: Use, name: str, command: str) -> None:
    refused(**{name: None})
    result = license_expiry(*command.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert_told(result.stderr, f"{name}: is not set", "for example")
    assert len(result.stderr.splitlines()) == 2, "the others are set"


SETTING = cases(
    Bad("another database", RUN, ("DATABASE_URL", "mysql://", "postgresql://"), {"DATABASE_URL": "oracle://u@h/db"}),
    Bad(
        "a web address for the database",
        RUN,
        ("DATABASE_URL", "mysql://"),
        {"DATABASE_URL": f"https://user:{PASSWORD}@mysql/license_manager"},
    ),
    Bad(
        "a driver that is not brought",
        RUN,
        ("DATABASE_URL", "mysql://"),
        {"DATABASE_URL": f"mysql+mysqldb://user:{PASSWORD}@mysql/license_manager"},
    ),
    Bad(
        "a port that is none",
        RUN,
        ("DATABASE_URL", "for example"),
        {"DATABASE_URL": f"mysql://user:{PASSWORD}@mysql:port/license_manager"},
    ),
    Bad("no URL", RUN, ("DATABASE_URL", "URL", "for example"), {"DATABASE_URL": "license_manager"}),
    Bad("no scheme", RUN, ("LMS_URL", "https://", "for example"), {"LMS_URL": "courses.example.com"}),
    Bad("a wrong scheme", RUN, ("LMS_URL", "https://"), {"LMS_URL": "ftp://courses.example.com"}),
    Bad(
        "a token URL without a scheme",
        RUN,
        ("SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT", "https://"),
        {"SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT": "courses.example.com"},
    ),
    Bad(
        "a broker that is none",
        ("run", "--no-wait"),
        ("CELERY_BROKER_URL", "redis://", "amqp://"),
        {"CELERY_BROKER_URL": f"https://user:{PASSWORD}@redis"},
    ),
    Bad("a list that is not of UUIDs", RUN, (LIST, "acme", "UUID"), {LIST: f"{STRANGER},acme"}),
    Bad("a word for a number", RUN, ("UNLINK_AFTER_DAYS", "integer"), {"UNLINK_AFTER_DAYS": "ninety"}),
    Bad("days that are negative", RUN, ("UNLINK_AFTER_DAYS", "0"), {"UNLINK_AFTER_DAYS": "-1"}),
    Bad("a lease shorter than a call", RUN, ("LEASE_SECONDS", "more than", "TIMEOUT"), {"LEASE_SECONDS": "60"}),
    Bad(
        "a secret's file that is not there",
        RUN,
        ("BACKEND_SERVICE_EDX_OAUTH2_SECRET", "/run/nowhere", "cannot be read"),
        {"BACKEND_SERVICE_EDX_OAUTH2_SECRET_FILE": "/run/nowhere", "BACKEND_SERVICE_EDX_OAUTH2_SECRET": ""},
    ),
)


@SETTING
def test_a_wrong_setting_is_refused(bad: Bad, refused: Use) -> None:
    refused(**bad.settings)
    assert_refused(bad, license_expiry(*bad.command), {})


def test_all_wrong_settings_are_told_at_once(refused: Use) -> None:
    refused(DATABASE_URL="oracle://", LMS_URL="courses", UNLINK_AFTER_DAYS="-1", BACKEND_SERVICE_EDX_OAUTH2_KEY=None)
    result = license_expiry(*RUN)
    assert (result.exit_code, result.stdout) == (2, "")
    for name in ("DATABASE_URL", "LMS_URL", "UNLINK_AFTER_DAYS", "BACKEND_SERVICE_EDX_OAUTH2_KEY"):
        assert_told(result.stderr, f"^ *{name}: ")


NOT_YAML = [
    ("a list", b"- DATABASE_URL\n- LMS_URL\n"),
    ("a word", b"settings\n"),
    ("a bracket that is not closed", b"LMS_URL: [\n"),
    ("a tab", b"LMS_URL:\n\t- x\n"),
    ("an .env file", b"LMS_URL=https://courses.example.com\nUNLINK_AFTER_DAYS=90\n"),
    ("no text at all", b"\xff\xfe\x00\x80"),
]


@pytest.mark.parametrize("yaml", [pytest.param(row[1], id=row[0]) for row in NOT_YAML])
def test_a_yaml_file_that_is_none_is_refused(refused: Use, tmp_path: Path, yaml: bytes) -> None:
    path = tmp_path / "license_expiry.yml"
    path.write_bytes(yaml)
    refused(LICENSE_EXPIRY_CFG=path)
    result = license_expiry(*RUN)
    assert (result.exit_code, result.stdout) == (2, "")
    assert_told(result.stderr, "LICENSE_EXPIRY_CFG", re.escape(str(path)), "YAML")
    assert "dictionary update sequence" not in result.stderr, "that tells only whoever wrote the parser"


@pytest.mark.parametrize("name", ["", "not_there.yml"], ids=["a folder", "no file"])
def test_a_yaml_file_that_is_not_there_is_refused(refused: Use, tmp_path: Path, name: str) -> None:
    refused(LICENSE_EXPIRY_CFG=tmp_path / name)
    result = license_expiry(*RUN)
    assert (result.exit_code, result.stdout) == (2, "")
    assert_told(result.stderr, "LICENSE_EXPIRY_CFG", re.escape(str(tmp_path)), "is not a file", "existing YAML file")


# The database

UNREACHABLE = cases(
    Bad(
        "PostgreSQL is down",
        RUN,
        ("DATABASE_URL", "127.0.0.1:{nowhere}", "refused", "check"),
        {"DATABASE_URL": f"postgresql://license_expiry:{PASSWORD}@127.0.0.1:{{nowhere}}/license_manager"},
    ),
    Bad(
        "MariaDB is down",
        RUN,
        ("DATABASE_URL", "127.0.0.1:{nowhere}", "refused", "check"),
        {"DATABASE_URL": f"mysql://license_expiry:{PASSWORD}@127.0.0.1:{{nowhere}}/license_manager"},
    ),
    Bad(
        "so init-db",
        ("init-db",),
        ("DATABASE_URL", "refused", "check"),
        {"DATABASE_URL": f"mariadb://license_expiry:{PASSWORD}@127.0.0.1:{{nowhere}}/license_manager"},
    ),
    Bad(
        "so status",
        ("status", "--json"),
        ("DATABASE_URL", "refused", "check"),
        {"DATABASE_URL": f"postgresql://license_expiry:{PASSWORD}@127.0.0.1:{{nowhere}}/license_manager"},
    ),
    Bad(
        "the password is a parameter of the URL",
        RUN,
        ("DATABASE_URL", "refused", "check"),
        {"DATABASE_URL": f"postgresql://127.0.0.1:{{nowhere}}/license_manager?user=me&password={PASSWORD}"},
    ),
    Bad(
        "SQLite's file is in a folder that is not there",
        RUN,
        ("DATABASE_URL", "/nowhere/license_manager.sqlite3", "check"),
        {"DATABASE_URL": "sqlite:////nowhere/license_manager.sqlite3"},
    ),
    Bad("SQLite's file is a folder", RUN, ("DATABASE_URL", "check"), {"DATABASE_URL": "sqlite:///{folder}"}),
    Bad(
        "SQLite's file is something else",
        RUN,
        ("DATABASE_URL", "not a database", "check"),
        {"DATABASE_URL": "sqlite:///{folder}/notes.txt"},
    ),
)


@UNREACHABLE
def test_a_database_that_cannot_be_used_is_told(bad: Bad, refused: Use, tmp_path: Path) -> None:
    notes = "Ask Ann for the password.\n" * 1000
    (tmp_path / "notes.txt").write_text(notes)
    nowhere = free_port()
    refused(**{name: value.format(nowhere=nowhere, folder=tmp_path) for name, value in bad.settings.items()})
    assert_refused(bad, license_expiry(*bad.command), {"nowhere": nowhere})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"notes.txt": notes}


@pytest.mark.parametrize("engine_kind", ["mariadb"], indirect=True)
def test_a_database_that_does_not_let_us_in_is_told(engine: Engine, lms: Simulator, set_up: Use) -> None:
    before = snapshot(engine)
    for change, words in [
        ({"password": PASSWORD}, "Access denied for user 'root'"),
        ({"username": "nobody_knows", "password": PASSWORD}, "Access denied for user 'nobody_knows'"),
        ({"database": "license_expiry_nowhere"}, "Unknown database 'license_expiry_nowhere'"),
    ]:
        set_up(DATABASE_URL=engine.url.set(**change).render_as_string(hide_password=False))  # type: ignore[arg-type]
        result = license_expiry("due")
        assert (result.exit_code, result.stdout) == (2, "")
        assert_told(result.stderr, words, "check DATABASE_URL, the account's rights and the server")
    assert (snapshot(engine), lms.calls()) == (before, [])


@pytest.mark.parametrize(("kind", "driver"), [("mysql", "pymysql"), ("postgresql", "psycopg")])
def test_a_driver_that_is_not_installed_is_told(
    refused: Use, monkeypatch: pytest.MonkeyPatch, kind: str, driver: str
) -> None:
    """The drivers are extras of the package: easily forgotten."""
    monkeypatch.setitem(sys.modules, driver, None)
    refused(DATABASE_URL=f"{kind}://license_expiry:{PASSWORD}@127.0.0.1:9/license_manager")
    result = license_expiry("due")
    assert (result.exit_code, result.stdout) == (2, "")
    assert_told(result.stderr, "DATABASE_URL", driver, rf"install.*\[{kind}\]")


EACH_COMMAND = ("init-db", "due", "run --here", "run --here --dry-run", "status", "held")


def test_license_managers_tables_that_are_missing_are_named(engine: Engine, lms: Simulator, set_up: Use) -> None:
    theirs = [*LicenseManager.metadata.tables, PLAN_HISTORY_TABLE]
    drop(engine, *theirs)
    before = snapshot(engine)
    for command in EACH_COMMAND:
        result = license_expiry(*command.split())
        assert (result.exit_code, result.stdout) == (2, "")
        for name in theirs:
            assert_told(result.stderr, f"table {name} is missing", "DATABASE_URL", "migrated")
        assert (snapshot(engine), lms.calls()) == (before, [])


def test_a_database_without_the_ledger_is_told_of_init_db(
    engine: Engine, lms: Simulator, set_up: Use, laid: Laid
) -> None:
    drop(engine, *Ledger.metadata.tables, "license_expiry_alembic_version")
    before = snapshot(engine)
    for command in EACH_COMMAND[1:]:
        result = license_expiry(*command.split())
        assert (result.exit_code, result.stdout) == (2, "")
        for name in Ledger.metadata.tables:
            assert_told(result.stderr, f"table {name} is missing", "run license-expiry init-db")
        assert (snapshot(engine), lms.calls()) == (before, [])


COLUMNS = [
    *((f"{table}", f"{column.name}") for table in LicenseManager.metadata.sorted_tables for column in table.columns),
    *((PLAN_HISTORY_TABLE, column) for column in ("history_type", "history_date", "uuid")),
]


def test_each_column_of_license_managers_that_is_missing_is_named(
    engine: Engine, lms: Simulator, set_up: Use, laid: Laid
) -> None:
    """Renamed one after the other, until none that we use is there: all are told at once."""
    for count, (table, column) in enumerate(COLUMNS, 1):
        with engine.begin() as connection:
            connection.execute(text(f"ALTER TABLE {table} RENAME COLUMN {column} TO {column}_of_old"))
        if count in (1, len(COLUMNS) // 2, len(COLUMNS)):
            before = snapshot(engine)
            result = license_expiry(*RUN)
            assert (result.exit_code, result.stdout) == (2, "")
            for one, its in COLUMNS[:count]:
                assert_told(result.stderr, f"table {one} lacks column {its}:", "DATABASE_URL", "migrated")
            assert len(result.stderr.splitlines()) == 1 + count
            assert (snapshot(engine), lms.calls()) == (before, [])


@pytest.mark.parametrize("engine_kind", ["postgresql", "mariadb"], indirect=True)
def test_a_column_that_is_missing_is_named_on_the_servers_too(
    engine: Engine, lms: Simulator, set_up: Use, laid: Laid
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE subscriptions_subscriptionplan DROP COLUMN expiration_processed"))
    before = snapshot(engine)
    result = license_expiry(*RUN)
    assert (result.exit_code, result.stdout) == (2, "")
    assert_told(result.stderr, "table subscriptions_subscriptionplan lacks column expiration_processed:", "migrated")
    assert (snapshot(engine), lms.calls()) == (before, [])


def test_a_ledger_of_another_release_is_told_of_init_db(
    engine: Engine, lms: Simulator, set_up: Use, laid: Laid
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE license_expiry_run RENAME COLUMN publications TO publications_of_old"))
    before = snapshot(engine)
    result = license_expiry(*RUN)
    assert (result.exit_code, result.stdout) == (2, "")
    assert_told(result.stderr, "table license_expiry_run lacks column publications:", "run license-expiry init-db")
    assert (snapshot(engine), lms.calls()) == (before, [])


# The broker: in processes, because Celery reads its settings once in each

BROKER = cases(
    Bad(
        "it is down",
        ("run",),
        ("127.0.0.1:{nowhere}", "CELERY_BROKER_URL", "--here"),
        {"CELERY_BROKER_URL": f"redis://:{PASSWORD}@127.0.0.1:{{nowhere}}/5"},
    ),
    Bad(
        "it is down, and nobody waits",
        ("run", "--no-wait", "--json"),
        ("127.0.0.1:{nowhere}", "CELERY_BROKER_URL", "--here"),
        {"CELERY_BROKER_URL": f"amqp://user:{PASSWORD}@127.0.0.1:{{nowhere}}//"},
    ),
    Bad(
        "its password has a slash that is not quoted",
        ("run", "--no-wait"),
        ("CELERY_BROKER_URL", "for example|quote|%2F"),
        {"CELERY_BROKER_URL": f"redis://:{PASSWORD}/x@127.0.0.1:{{nowhere}}/5"},
    ),
)


@BROKER
def test_a_broker_that_cannot_be_used_is_told_and_no_run_is_opened(bad: Bad, refused: Use) -> None:
    nowhere = free_port()
    refused(**{name: value.format(nowhere=nowhere) for name, value in bad.settings.items()})
    result = process(*bad.command)
    assert_told(result.stderr, *(word.format(nowhere=nowhere) for word in bad.words))
    assert (result.returncode, result.stdout) == (2, "")


def test_a_broker_that_goes_away_while_runs_are_published_is_told(
    engine: Engine, lms: Simulator, set_up: Use, laid: Laid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one run that is open by then is found by `reconcile`, or by the next `run --here`."""

    def publish(*_: UUID) -> None:
        raise OperationalError("Error 111 connecting to 127.0.0.1:6379. Connection refused.")

    set_up(CELERY_BROKER_URL="memory://")
    monkeypatch.setattr(tasks, "publish", publish)
    result = license_expiry("run", "--no-wait")
    assert result.exit_code in (1, 2)
    assert_told(result.output, "broker", "CELERY_BROKER_URL")
    [run] = rows(engine, Run)
    assert (run["phase"], lms.calls()) == ("queued", [])


# The LMS: here a failed run is the answer, and its own row in the ledger all that is written


def assert_failed(engine: Engine, result: Result, before: dict[str, list[str]], enterprises: int, *words: str) -> None:
    """Each run failed with the reason and the remedy, and there is nothing in the database but its row and calls."""
    assert result.exit_code == 1
    runs = json.loads(result.stdout)["runs"]
    assert len(runs) == enterprises
    for run in runs:
        assert run["phase"] == "failed"
        assert_told(run["error"], *words)
        assert (run["plans_processed"], run["licenses_downgraded"], run["licenses_held"]) == (0, 0, 0)
    after = snapshot(engine)
    assert len(after.pop("license_expiry_run")) == len(runs)
    after.pop("license_expiry_lms_call")
    assert after == {name: table for name, table in before.items() if name in after}
    assert_told(result.stderr)


def test_an_lms_that_cannot_be_reached_fails_the_run(engine: Engine, lms: Simulator, set_up: Use, laid: Laid) -> None:
    """Only after the client's own tries. Tokens are had from elsewhere, so that it is not these that fail it."""
    set_up(
        LMS_URL=f"http://127.0.0.1:{free_port()}",
        SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT=lms.url,
        **{LIST: laid.enterprise},
    )
    before = snapshot(engine)
    result = license_expiry(*RUN, "--json")
    assert_failed(engine, result, before, 1, "connection to the LMS failed", "check LMS_URL", "connection_error")
    assert lms.calls("unlink") == []
    told = license_expiry("status", "--enterprise", laid.enterprise)
    assert told.exit_code == 1
    assert "check LMS_URL" in told.stdout


LMS = [
    (
        "a wrong secret",
        {"BACKEND_SERVICE_EDX_OAUTH2_SECRET": PASSWORD},
        [],
        ("no token", "check BACKEND_SERVICE_EDX_OAUTH2_KEY and", "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT", "token_http_401"),
    ),
    (
        "a wrong key",
        {"BACKEND_SERVICE_EDX_OAUTH2_KEY": "nobody"},
        [],
        ("no token", "check BACKEND_SERVICE_EDX_OAUTH2_KEY and", "token_http_401"),
    ),
    ("no right to a token", {}, [Fault("token", status=403)], ("no token", "check BACKEND_", "token_http_403")),
    (
        "no token endpoint",
        {},
        [Fault("token", status=404)],
        ("token", "check .*SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT", "http_404"),
    ),
    ("a token of another LMS", {}, [Fault("downgrade", status=401)], ("check BACKEND_SERVICE_EDX_OAUTH2", "http_401")),
    ("no right to downgrade", {}, [Fault("downgrade", status=403)], ("give .* service user .* role", "http_403")),
    ("not the LMS's API", {}, [Fault("downgrade", status=404)], ("LMS_URL", "http_404")),
    (
        "a redirect to the sign-in page",
        {},
        [Fault("downgrade", status=302, headers={"Location": "/login"})],
        ("check LMS_URL", "http_302"),
    ),
    (
        "a token page that is no token",
        {},
        [Fault("token", status=200, body="<html>Sign in</html>")],
        ("not a token", "check .*SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT", "bad_token"),
    ),
    (
        "a batch that is too large for a proxy",
        {},
        [Fault("downgrade", status=413)],
        ("lower .*_BATCH_SIZE", "http_413"),
    ),
]


@pytest.mark.parametrize(("settings", "faults", "words"), [pytest.param(*row[1:], id=row[0]) for row in LMS])
def test_an_lms_that_refuses_every_call_fails_the_run_with_the_remedy(
    engine: Engine,
    lms: Simulator,
    set_up: Use,
    laid: Laid,
    other: Laid,
    settings: dict[str, str],
    faults: list[Fault],
    words: tuple[str, ...],
) -> None:
    set_up(**settings, **{LIST: f"{laid.enterprise},{other.enterprise}"})
    lms.faults(*(replace(fault, met=0, fired=0) for fault in faults))
    before = snapshot(engine)
    assert_failed(engine, license_expiry(*RUN, "--json"), before, 2, *words)
    assert lms.calls("unlink") == []


def test_a_token_endpoint_that_cannot_be_reached_is_named(
    engine: Engine, lms: Simulator, set_up: Use, laid: Laid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be another server than LMS_URL's."""
    hasty = partial(make_deps, patience=Patience(longest_wait=0.05))
    monkeypatch.setattr(main, "make_deps", hasty)
    set_up(SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT=f"http://127.0.0.1:{free_port()}")
    before = snapshot(engine)
    result = license_expiry(*RUN, "--json")
    assert_failed(engine, result, before, 1, "connection", "check .*SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT")


@pytest.mark.parametrize("status", [403, 404])
def test_an_lms_that_refuses_the_unlink_fails_the_run_after_the_downgrade(
    engine: Engine, lms: Simulator, set_up: Use, laid: Laid, other: Laid, status: int
) -> None:
    remedy = {403: "give .* service user .* role", 404: "does not know the enterprise, or .* not active"}[status]
    set_up(**{LIST: f"{laid.enterprise},{other.enterprise}"})
    lms.faults(Fault("unlink", enterprise=str(laid.enterprise), status=status))
    result = license_expiry(*RUN, "--json")
    assert result.exit_code == 1
    runs = {UUID(run["enterprise_customer_uuid"]): run for run in json.loads(result.stdout)["runs"]}
    assert (runs[other.enterprise]["phase"], runs[other.enterprise]["learners_unlinked"]) == ("finished", 2)
    failed = runs[laid.enterprise]
    assert (failed["phase"], failed["licenses_downgraded"], failed["learners_unlinked"]) == ("failed", 2, 0)
    assert_told(failed["error"], remedy, f"http_{status}")
    assert len(rows(engine, "licenseevent")) == 2, "those of the other enterprise"
