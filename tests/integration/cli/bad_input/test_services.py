"""A database or an LMS that cannot be used is told in a sentence with its remedy, by each command."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
from click.testing import Result
from sqlalchemy import Engine, MetaData, text
from support.bad_input import (
    PASSWORD,
    RUN,
    Bad,
    assert_refused,
    assert_told,
    cases,
)
from support.command_line import LIST, Use, license_expiry
from support.runs import ON_SERVERS, Laid, rows, snapshot

from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import free_port
from worker.cli import main
from worker.db.ledger_tables import Ledger
from worker.db.license_manager_tables import LicenseManager
from worker.db.schema_check import PLAN_HISTORY_TABLE
from worker.deps import make_deps
from worker.lms.patience import Patience

pytestmark = pytest.mark.timeout(60)  # what waits for ever is told soon


def drop(engine: Engine, *names: str) -> None:
    """Drop tables, whoever points at them."""
    metadata = MetaData()
    metadata.reflect(engine, only=lambda name, _: name in names)
    metadata.drop_all(engine)


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
def test_a_database_that_cannot_be_used_is_reported(bad: Bad, refused: Use, tmp_path: Path) -> None:
    notes = "Ask Ann for the password.\n" * 1000
    (tmp_path / "notes.txt").write_text(notes)
    nowhere = free_port()
    refused(**{name: value.format(nowhere=nowhere, folder=tmp_path) for name, value in bad.settings.items()})
    assert_refused(bad, license_expiry(*bad.command), {"nowhere": nowhere})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"notes.txt": notes}


@pytest.mark.parametrize("engine_kind", ["mariadb", "mysql"], indirect=True)
def test_a_database_that_does_not_let_us_in_is_reported(engine: Engine, lms: Simulator, set_up: Use) -> None:
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
def test_a_driver_that_is_not_installed_is_reported(
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
            assert_told(result.stderr, f"table {name} is missing", "DATABASE_URL", "migrations have run")
        assert (snapshot(engine), lms.calls()) == (before, [])


def test_a_database_without_the_ledger_is_reported_with_init_db(
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
                assert_told(result.stderr, f"table {one} lacks column {its}:", "DATABASE_URL", "migrations have run")
            assert len(result.stderr.splitlines()) == 1 + count
            assert (snapshot(engine), lms.calls()) == (before, [])


@ON_SERVERS
def test_a_column_that_is_missing_is_named_on_the_servers_too(
    engine: Engine, lms: Simulator, set_up: Use, laid: Laid
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE subscriptions_subscriptionplan DROP COLUMN expiration_processed"))
    before = snapshot(engine)
    result = license_expiry(*RUN)
    assert (result.exit_code, result.stdout) == (2, "")
    assert_told(
        result.stderr, "table subscriptions_subscriptionplan lacks column expiration_processed:", "migrations have run"
    )
    assert (snapshot(engine), lms.calls()) == (before, [])


def test_a_ledger_of_another_release_is_reported_with_init_db(
    engine: Engine, lms: Simulator, set_up: Use, laid: Laid
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE license_expiry_run RENAME COLUMN publications TO publications_of_old"))
    before = snapshot(engine)
    result = license_expiry(*RUN)
    assert (result.exit_code, result.stdout) == (2, "")
    assert_told(result.stderr, "table license_expiry_run lacks column publications:", "run license-expiry init-db")
    assert (snapshot(engine), lms.calls()) == (before, [])


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
    for noted in ("license_expiry_lms_call", "license_expiry_wait"):  # an outage is one, whatever becomes of the run
        after.pop(noted)
    assert after == {name: table for name, table in before.items() if name in after}
    assert_told(result.stderr)


def test_an_lms_that_cannot_be_reached_fails_the_run(engine: Engine, lms: Simulator, set_up: Use, laid: Laid) -> None:
    """Only after the client's own tries. Tokens are had from elsewhere, so that it is not these that fail it."""
    set_up(
        LMS_URL=f"http://127.0.0.1:{free_port()}",
        SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT=lms.url,
        TASK_MAX_RETRIES=0,
        **{LIST: laid.enterprise},
    )
    before = snapshot(engine)
    result = license_expiry(*RUN, "--json")
    assert_failed(engine, result, before, 1, "(Connection refused)", "check LMS_URL", "connection_error")
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
        ("check LMS_URL", "not_the_lms"),
    ),
    (
        "a token page that is no token",
        {},
        [Fault("token", status=200, body="<html>Sign in</html>")],
        ("text/html", "check SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT", "not_the_lms"),
    ),
    (
        "even the smallest call is too large for a proxy",
        {},
        [Fault("downgrade", status=413)],
        ("raise the limit", "http_413"),
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
    hasty = partial(make_deps, patience=Patience(first_wait=0.01))
    monkeypatch.setattr(main, "make_deps", hasty)
    set_up(SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT=f"http://127.0.0.1:{free_port()}", TASK_MAX_RETRIES=0)
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
