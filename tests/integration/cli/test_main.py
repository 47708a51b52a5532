"""The command on real databases: as a process where a process matters, else in this one."""

import gc
import json
import logging
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis
import requests
from click.testing import CliRunner, Result
from rich.console import Console
from sqlalchemy import Engine, MetaData, create_engine, insert, inspect, update
from support.eventually import eventually
from support.runs import (
    Make,
    assert_order,
    attempt,
    emails,
    finish,
    lapse,
    lay,
    open_one,
    raw,
    ready,
    rows,
    run_of,
    sent,
    snapshot,
    times_sent,
)
from support.services import missing

from simulator.data.rows import DAY, Data
from simulator.data.showcase import CASES
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port, listens
from worker.cli import broker as broker_side, main, tables, watch
from worker.db.ledger_tables import HeldLicense, Ledger, Run
from worker.db.license_manager_tables import LicenseManager
from worker.db.transactions import Database
from worker.ledger import claims
from worker.ledger.order import DOWNGRADE, Phase
from worker.settings import Settings
from worker.settings_sources import CONFIG_FILE_VARIABLE

COMMAND = Path(sys.executable).with_name("license-expiry")
LIST = "CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"
SETTINGS = (*Settings.model_fields, CONFIG_FILE_VARIABLE, "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE")
QUEUE = "license_expiry"

pytestmark = pytest.mark.timeout(60)  # what waits for ever is told soon

# What is due in the demo's enterprises, the two largest left out: plans, downgrades, unlinks, protected.
DUE = {
    "Alder Chain": (3, 15, 0, 0),
    "Birch Open Renewal": (0, 3, 3, 0),
    "Dogwood Other Case": (1, 4, 3, 1),
    "Elm Changed Address": (1, 4, 3, 1),
    "Fir Revoked": (1, 3, 2, 1),
    "Ginkgo No Address": (1, 4, 3, 0),
    "Hazel Malformed": (1, 9, 9, 0),
    "Ilex Not Listed": (1, 6, 0, 0),
    "Larch Empty": (1, 0, 0, 0),
    "Maple Mixed": (1, 2, 0, 0),
    "Nutmeg Processed": (0, 0, 8, 0),
}
LARGE = ("Juniper Thousand", "Katsura Large")
HOLDS_ONE = "Hazel Malformed"

Use = Callable[..., None]
Strand = Callable[[Database, Engine, UUID, UUID], None]


@pytest.fixture
def engine_kind(request: pytest.FixtureRequest) -> str:
    """SQLite, but where a test asks for more: what the queries mean on each engine is tried elsewhere."""
    return str(getattr(request, "param", "sqlite"))


ON_EACH_SERVER = pytest.mark.parametrize("engine_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)


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


@pytest.fixture
def set_up_alone(use: Use, database_url: str) -> None:
    """The settings for this database, and an LMS that is nowhere."""
    given = {"DATABASE_URL": database_url, "LMS_URL": "http://127.0.0.1:9"}
    use(**given, BACKEND_SERVICE_EDX_OAUTH2_KEY="key", BACKEND_SERVICE_EDX_OAUTH2_SECRET="secret")


def license_expiry(*arguments: object) -> Result:
    """The command in this process; any exception but its exit fails the test."""
    return CliRunner().invoke(main.main, [str(each) for each in arguments], catch_exceptions=False)


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, with its output piped."""
    command = [str(COMMAND), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=90, env=environment
    )


def json_of(result: Result) -> Any:
    """What --json printed: one object, and nothing beside it."""
    return json.loads(result.stdout)


def runs_of(result: Result) -> dict[UUID, dict[str, Any]]:
    """The runs that --json printed, by their enterprises."""
    return {UUID(run["enterprise_customer_uuid"]): run for run in json_of(result)["runs"]}


def lay_demo(engine: Engine, lms: Simulator, *only: str) -> tuple[dict[str, str], str]:
    """Lay down these of the demo's enterprises, or all but the large; give their names by UUID, and the unlink list."""
    data = Data(engine)
    cases = [case for case in CASES if case.name in only or (not only and case.name not in LARGE)]
    for case in cases:
        case.lay(data, data.agreement(case.uuid, name=case.name, slug=case.slug))
    ready(data, lms)
    return {str(case.uuid): case.name for case in cases}, ",".join(str(case.uuid) for case in cases if case.unlinks)


def drop_ledger(engine: Engine) -> None:
    """Drop the ledger's tables, as in a database that init-db has not seen."""
    metadata = MetaData()
    metadata.reflect(engine, only=lambda name, _: name.startswith("license_expiry_"))
    metadata.drop_all(engine)


class Clock:
    """Stands in for the module `time` in the report: sleeping takes no time, and something may happen meanwhile."""

    def __init__(self, meanwhile: Callable[[float], object]) -> None:
        self.now = 0.0
        self.meanwhile = meanwhile

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 1200, "it waits and waits"
        self.meanwhile(self.now)


# A whole pass


@ON_EACH_SERVER
def test_a_whole_pass_from_init_db_to_held(engine: Engine, lms: Simulator, set_up: Use) -> None:
    drop_ledger(engine)
    names, unlinked = lay_demo(engine, lms)
    set_up(**{LIST: unlinked})
    assert process("init-db").returncode == 0

    before = snapshot(engine)
    due = license_expiry("due", "--json")
    assert due.exit_code == 0
    assert list(json_of(due)) == ["enterprises", "plans"]
    fields = ["enterprise_customer_uuid", "plans", "downgrades", "unlinks", "protected"]
    assert [list(row) for row in json_of(due)["enterprises"]] == [fields] * len(DUE)
    rows_due = {names[row["enterprise_customer_uuid"]]: row for row in json_of(due)["enterprises"]}
    assert {name: tuple(row[field] for field in fields[1:]) for name, row in rows_due.items()} == DUE
    assert (snapshot(engine), lms.calls()) == (before, []), "due changes nothing and sends nothing"

    night = process("run", "--here", "--json")
    assert night.returncode == 1, "a license is held"
    runs = json.loads(night.stdout)["runs"]
    done = {names[run["enterprise_customer_uuid"]]: run for run in runs}
    assert {name: run["licenses_held"] for name, run in done.items()} == {name: int(name == HOLDS_ONE) for name in DUE}
    assert {
        name: (
            run["plans_processed"],
            run["licenses_downgraded"],
            run["learners_unlinked"] + run["licenses_held"],
            run["learners_protected"],
        )
        for name, run in done.items()
    } == DUE
    assert {(run["phase"], run["dry_run"], run["error"]) for run in runs} == {("finished", False, None)}
    assert_order(lms.journal)

    lms.journal.clear()
    again = license_expiry("run", "--here", "--json")
    assert (again.exit_code, json_of(again), lms.calls()) == (0, {"runs": []}, [])

    status = license_expiry("status", "--json")
    assert status.exit_code == 1
    assert {run["run_id"]: run for run in json_of(status)["runs"]} == {run["run_id"]: run for run in runs}
    held = license_expiry("held", "--json")
    assert held.exit_code == 1
    [license] = json_of(held)["held"]
    assert (names[license["enterprise_customer_uuid"]], license["step"], license["tries"]) == (HOLDS_ONE, "unlink", 1)

    said = due.output + night.stdout + night.stderr + again.output + status.output + held.output
    assert [row["uuid"] for row in rows(engine, "license") if row["user_email"] and row["user_email"] in said] == []


# init-db


def test_init_db_makes_the_ledger_and_touches_nothing_else(engine: Engine, set_up_alone: None) -> None:
    drop_ledger(engine)
    before = snapshot(engine)
    first = license_expiry("init-db")
    assert (first.exit_code, first.stdout, first.stderr) == (0, "The ledger's tables are ready.\n", "")
    after = snapshot(engine)
    made = after.keys() - before.keys()
    assert made == {*Ledger.metadata.tables, "license_expiry_alembic_version"}
    assert {name: after[name] for name in before} == before


def test_init_db_again_keeps_what_the_ledger_holds(
    lms: Simulator, engine: Engine, set_up: Use, make_test_deps: Make
) -> None:
    open_one(make_test_deps(), lay(lms).enterprise)
    before, columns = snapshot(engine), raw(engine, "SELECT name, sql FROM sqlite_master")
    again = license_expiry("init-db", "--json")
    assert (again.exit_code, json_of(again)) == (0, {"ledger": "ready"})
    assert (snapshot(engine), raw(engine, "SELECT name, sql FROM sqlite_master")) == (before, columns)


def test_init_db_names_every_table_of_license_managers_that_is_missing(database_url: str, set_up_alone: None) -> None:
    result = license_expiry("init-db")
    assert result.exit_code == 2
    for name in [*LicenseManager.metadata.tables, "subscriptions_historicalsubscriptionplan"]:
        [line] = [line for line in result.stderr.splitlines() if f"table {name} is missing" in line]
        assert "is DATABASE_URL license-manager's database, and migrated?" in line
    engine = create_engine(database_url)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_init_db_needs_no_lms_and_no_broker_that_answers(
    database_url: str, engine: Engine, set_up_alone: None, use: Use
) -> None:
    drop_ledger(engine)
    use(CELERY_BROKER_URL="redis://127.0.0.1:9/0")
    assert license_expiry("init-db").exit_code == 0
    Database(engine).require_schema()


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
@pytest.mark.parametrize("command", ["init-db", "due", "run --here", "status", "held"])
def test_a_command_closes_its_connections(engine: Engine, lms: Simulator, set_up: Use, command: str) -> None:
    lay(lms)
    engine.dispose()
    assert license_expiry(*command.split()).exit_code == 0
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    try:
        eventually(lambda: raw(engine, others) == [(0,)], 5, f"{command} leaves a connection open")
    finally:
        with warnings.catch_warnings():  # told here; it must not fail some other test
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


@pytest.mark.parametrize("command", ["init-db", "due", "status", "held"])
def test_what_only_looks_needs_nothing_of_the_lms(engine: Engine, use: Use, database_url: str, command: str) -> None:
    use(DATABASE_URL=database_url)
    assert license_expiry(command).exit_code == 0


# due


def test_due_says_when_nothing_is(lms: Simulator, set_up: Use) -> None:
    lay(lms, days=-10)
    result = license_expiry("due")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "Nothing is due.\n", "")
    assert json_of(license_expiry("due", "--json")) == {"enterprises": [], "plans": []}
    assert len(license_expiry("due", "--csv").stdout.splitlines()) == 1


def test_due_names_no_enterprise_that_the_night_would_pass_over(engine: Engine, lms: Simulator, set_up: Use) -> None:
    """A learner who is protected for years is no work: `run` says that nothing is due, and so must `due`."""
    _, unlinked = lay_demo(engine, lms, "Dogwood Other Case")
    set_up(**{LIST: unlinked})
    license_expiry("run", "--here")
    assert license_expiry("run", "--here").stdout == "Nothing is due.\n"
    assert license_expiry("due").stdout == "Nothing is due.\n"


def test_due_does_not_list_the_same_enterprise_twice_and_adds_up_its_plans(
    engine: Engine, lms: Simulator, set_up: Use
) -> None:
    data = Data(engine)
    agreement = data.agreement()
    for days in (95, 10, 300):
        plan = data.plan(agreement, expires=data.now - days * DAY)
        for _ in range(2):
            data.license(plan)
    ready(data, lms)
    set_up(**{LIST: agreement.enterprise_customer_uuid})
    [row] = json_of(license_expiry("due", "--json"))["enterprises"]
    row.pop("enterprise_customer_uuid")
    assert row == {"plans": 3, "downgrades": 6, "unlinks": 4, "protected": 0}
    lay(lms, seed=2, licenses=2)
    assert re.search(r"^all 2 +4 +8 +4 +0 *$", license_expiry("due").stdout, re.MULTILINE)


# run


def test_a_run_prints_exactly_the_agreed_fields_and_status_the_same(
    engine: Engine, lms: Simulator, set_up: Use
) -> None:
    laid = lay(lms, licenses=2)
    result = license_expiry("run", "--here", "--json")
    [run] = rows(engine, Run)
    fields = {
        "run_id": str(run["id"]),
        "enterprise_customer_uuid": str(laid.enterprise),
        "phase": "finished",
        "dry_run": False,
        "plans_processed": 1,
        "licenses_downgraded": 2,
        "licenses_held": 0,
        "learners_unlinked": 0,
        "learners_protected": 0,
        "error": None,
    }
    assert result.exit_code == 0
    assert result.stdout == json.dumps({"runs": [fields]}, indent=2) + "\n"
    assert license_expiry("status", "--json").stdout == result.stdout


def test_a_second_run_says_that_nothing_is_due_and_asks_not_even_for_a_token(lms: Simulator, set_up: Use) -> None:
    laid = lay(lms)
    set_up(**{LIST: laid.enterprise})
    assert license_expiry("run", "--here").exit_code == 0
    assert (len(sent(lms, "downgrade")), len(sent(lms, "unlink"))) == (1, 1)
    lms.journal.clear()
    again = license_expiry("run", "--here")
    assert (again.exit_code, again.stdout, again.stderr, lms.calls()) == (0, "Nothing is due.\n", "", [])


def test_a_held_license_makes_the_exit_status_1_and_the_others_are_done(lms: Simulator, set_up: Use) -> None:
    laid = lay(lms, licenses=4)
    lms.faults(Fault("downgrade", license=str(laid.licenses[1]), status=422))
    result = license_expiry("run", "--here", "--json")
    run = runs_of(result)[laid.enterprise]
    assert (result.exit_code, run["phase"], run["licenses_held"], run["licenses_downgraded"]) == (1, "finished", 1, 3)


def test_a_failed_run_makes_the_exit_status_1_and_prints_its_error_and_the_others_are_done(
    lms: Simulator, set_up: Use
) -> None:
    bad, good = lay(lms, seed=1), lay(lms, seed=2)
    lms.faults(Fault("downgrade", enterprise=str(bad.enterprise), status=403))
    result = license_expiry("run", "--here")
    assert result.exit_code == 1
    assert re.search(rf"^{good.enterprise} finished ", result.stdout, re.MULTILINE)
    assert re.search(rf"^{bad.enterprise} failed ", result.stdout, re.MULTILINE)
    assert re.search(rf"^{bad.enterprise}: the LMS answered 403: .*role in the LMS", result.stdout, re.MULTILINE)


def test_a_rehearsal_counts_what_the_run_then_does_and_sends_nothing(
    engine: Engine, lms: Simulator, set_up: Use
) -> None:
    names, unlinked = lay_demo(engine, lms, "Birch Open Renewal", "Elm Changed Address", HOLDS_ONE, "Larch Empty")
    set_up(**{LIST: unlinked})
    before = {name: table for name, table in snapshot(engine).items() if name.startswith("subscriptions_")}
    rehearsal = license_expiry("run", "--here", "--dry-run", "--json")
    assert (rehearsal.exit_code, lms.calls()) == (0, [])
    assert {name: table for name, table in snapshot(engine).items() if name in before} == before
    rehearsed = runs_of(rehearsal)
    assert rehearsed.keys() == set(map(UUID, names))
    assert {(run["phase"], run["dry_run"]) for run in rehearsed.values()} == {("finished", True)}
    done = runs_of(license_expiry("run", "--here", "--json"))
    for run in [*rehearsed.values(), *done.values()]:
        del run["run_id"], run["dry_run"]
        run["learners_unlinked"] += run.pop("licenses_held")
    assert rehearsed == done


def test_a_rehearsal_says_that_it_was_one(lms: Simulator, set_up: Use) -> None:
    lay(lms)
    assert "sent nothing" in " ".join(license_expiry("run", "--here", "--dry-run").stdout.split())
    assert "sent nothing" in " ".join(license_expiry("status").stdout.split())


def test_only_the_enterprises_that_are_named_are_done(lms: Simulator, set_up: Use) -> None:
    first, other, last = (lay(lms, seed=seed).enterprise for seed in (1, 2, 3))
    result = license_expiry("run", "--here", "--json", "--enterprise", first, "--enterprise", last)
    assert result.exit_code == 0
    assert runs_of(result).keys() == {first, last}
    assert {each for entry in lms.calls("downgrade") for each in entry.enterprises} == {str(first), str(last)}
    assert json_of(license_expiry("due", "--json"))["enterprises"][0]["enterprise_customer_uuid"] == str(other)


def test_only_the_plans_that_are_named_are_done_in_both_steps(engine: Engine, lms: Simulator, set_up: Use) -> None:
    data = Data(engine)
    agreement = data.agreement()
    plans = [data.plan(agreement, expires=data.now - days * DAY) for days in (100, 101, 102)]
    licenses = {plan: data.license(plan) for plan in plans}
    ready(data, lms)
    set_up(**{LIST: agreement.enterprise_customer_uuid})
    named = plans[::2]
    result = license_expiry("run", "--here", "--json", "--plan", named[0], "--plan", named[1])
    [run] = json_of(result)["runs"]
    assert (run["plans_processed"], run["licenses_downgraded"], run["learners_unlinked"]) == (2, 2, 2)
    assert times_sent(lms, "downgrade").keys() == {str(licenses[plan]) for plan in named}
    assert times_sent(lms, "unlink").keys() == set(emails(engine, *(licenses[plan] for plan in named)))


JANUARY, FEBRUARY, MARCH = (datetime.fromisoformat(f"2025-0{month}-15T12:00:00+00:00") for month in (1, 2, 3))
WINDOWS: list[tuple[str, list[str], set[datetime]]] = [
    ("after: the bound itself is in", ["--expired-after", "2025-02-15T12:00:00Z"], {FEBRUARY, MARCH}),
    ("after: a second later it is not", ["--expired-after", "2025-02-15T12:00:01Z"], {MARCH}),
    ("before: the bound itself is in", ["--expired-before", "2025-02-15T12:00:00Z"], {JANUARY, FEBRUARY}),
    ("before: a second earlier it is not", ["--expired-before", "2025-02-15T11:59:59Z"], {JANUARY}),
    ("both", ["--expired-after", "2025-02-01", "--expired-before", "2025-03-01"], {FEBRUARY}),
    ("without a zone it is UTC", ["--expired-after", "2025-03-15 12:00:00"], {MARCH}),
    ("without dashes it is a date, not seconds since 1970", ["--expired-after", "20250216"], {MARCH}),
    ("a zone counts", ["--expired-after", "2025-03-15T13:00:00+01:00"], {MARCH}),
]


@pytest.mark.parametrize(("options", "done"), [pytest.param(*row[1:], id=row[0]) for row in WINDOWS])
def test_only_the_plans_within_the_window_are_done(
    engine: Engine, lms: Simulator, set_up: Use, options: list[str], done: set[datetime]
) -> None:
    data = Data(engine)
    agreement = data.agreement()
    licenses = {moment: data.license(data.plan(agreement, expires=moment)) for moment in (JANUARY, FEBRUARY, MARCH)}
    ready(data, lms)
    result = license_expiry("run", "--here", "--json", *options)
    assert result.exit_code == 0
    assert times_sent(lms, "downgrade").keys() == {str(licenses[moment]) for moment in done}
    assert [run["plans_processed"] for run in json_of(result)["runs"]] == ([len(done)] if done else [])


def test_force_sends_a_processed_plan_again_and_keeps_the_reason(engine: Engine, lms: Simulator, set_up: Use) -> None:
    laid = lay(lms, licenses=3, expiration_processed=True)
    other = lay(lms, licenses=3, seed=2, expiration_processed=True)
    assert license_expiry("run", "--here", "--plan", laid.plan).stdout == "Nothing is due.\n"
    result = license_expiry("run", "--here", "--json", "--plan", laid.plan, "--force", "--reason", "restored: Ærø 7/3")
    assert (result.exit_code, runs_of(result)[laid.enterprise]["licenses_downgraded"]) == (0, 3)
    assert times_sent(lms, "downgrade").keys() == set(map(str, laid.licenses))
    [run] = rows(engine, Run)
    assert (run["force"], run["reason"], run["plan_uuids"]) == (True, "restored: Ærø 7/3", [str(laid.plan)])
    assert other.enterprise != run["enterprise_customer_uuid"]


def test_force_takes_a_held_license_again_at_once(lms: Simulator, set_up: Use) -> None:
    laid = lay(lms, licenses=2)
    lms.faults(Fault("downgrade", license=str(laid.licenses[0]), status=422))
    assert license_expiry("run", "--here").exit_code == 1
    lms.faults()
    assert license_expiry("run", "--here").stdout == "Nothing is due.\n", "it waits for the next night"
    forced = license_expiry("run", "--here", "--enterprise", laid.enterprise, "--force", "--reason", "course mended")
    assert forced.exit_code == 0
    assert license_expiry("held").exit_code == 0


# A live run


def test_the_live_run_of_another_worker_is_told_with_its_id_and_left_alone(
    lms: Simulator, set_up: Use, make_test_deps: Make
) -> None:
    laid, other = lay(lms, seed=1), lay(lms, seed=2)
    deps = make_test_deps()
    run_id = open_one(deps, laid.enterprise)
    claim = claims.claim(deps.database, run_id, laid.enterprise, DOWNGRADE, "worker@elsewhere, process 7", 300)
    result = license_expiry("run", "--here", "--no-wait", "--json")
    [line] = [line for line in result.stderr.splitlines() if "live run" in line]
    assert str(run_id) in line
    assert str(laid.enterprise) in line
    runs = runs_of(result)
    assert (runs[laid.enterprise]["run_id"], runs[laid.enterprise]["phase"]) == (str(run_id), "downgrading")
    assert runs[other.enterprise]["phase"] == "finished"
    assert lms.calls("downgrade", laid.enterprise) == []
    claim.guard()  # still the other worker's


def test_the_live_run_of_another_worker_is_left_to_it(lms: Simulator, set_up: Use, make_test_deps: Make) -> None:
    laid, deps = lay(lms), make_test_deps()
    run_id = open_one(deps, laid.enterprise)
    claims.claim(deps.database, run_id, laid.enterprise, DOWNGRADE, "worker@elsewhere, process 7", 300)
    result = license_expiry("run", "--here")
    assert result.exit_code == 1
    assert re.search(r"worker@elsewhere, process 7 \(\w{8}\) has it until", result.stderr)
    assert lms.calls() == []


def test_here_does_not_wait_for_ever_for_a_run_whose_worker_died(
    engine: Engine, lms: Simulator, set_up: Use, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after Ctrl-C, or a kill, of an earlier --here: where there is no worker, nobody else takes it up."""
    laid, deps = lay(lms), make_test_deps()
    run_id = open_one(deps, laid.enterprise)
    claims.claim(deps.database, run_id, laid.enterprise, DOWNGRADE, "a process that was killed", 300)
    monkeypatch.setattr(watch, "time", Clock(lambda now: lapse(engine, run_id) if now == 300 else None))
    result = license_expiry("run", "--here")
    assert run_of(deps.database, run_id).phase == Phase.FINISHED or result.exit_code == 1


def _queued(database: Database, engine: Engine, run_id: UUID, enterprise: UUID) -> None:
    pass


def _released(database: Database, engine: Engine, run_id: UUID, enterprise: UUID) -> None:
    claims.claim(database, run_id, enterprise, DOWNGRADE, "a worker that was stopped", 300).release()


def _lapsed(database: Database, engine: Engine, run_id: UUID, enterprise: UUID) -> None:
    claims.claim(database, run_id, enterprise, DOWNGRADE, "a worker that was killed", 300)
    lapse(engine, run_id)


STRANDED: list[tuple[str, Strand]] = [
    ("its chain was lost with the broker", _queued),
    ("its worker gave it back", _released),
    ("its worker was killed, and the lease is over", _lapsed),
]


@pytest.mark.parametrize("strand", [pytest.param(row[1], id=row[0]) for row in STRANDED])
def test_a_stranded_run_is_taken_up_here(
    engine: Engine, lms: Simulator, set_up: Use, make_test_deps: Make, strand: Strand
) -> None:
    laid = lay(lms)
    set_up(**{LIST: laid.enterprise})
    deps = make_test_deps(**{LIST: str(laid.enterprise)})
    run_id = open_one(deps, laid.enterprise)
    strand(deps.database, engine, run_id, laid.enterprise)
    result = license_expiry("run", "--here", "--json")
    assert str(run_id) in result.stderr
    run = runs_of(result)[laid.enterprise]
    assert (result.exit_code, run["run_id"], run["phase"]) == (0, str(run_id), "finished")
    assert (run["licenses_downgraded"], run["learners_unlinked"]) == (6, 6)
    assert len(rows(engine, Run)) == 1


def test_a_run_that_was_stranded_between_its_steps_goes_on_with_the_unlink(
    lms: Simulator, set_up: Use, make_test_deps: Make
) -> None:
    laid = lay(lms)
    set_up(**{LIST: laid.enterprise})
    deps = make_test_deps(**{LIST: str(laid.enterprise)})
    run_id = open_one(deps, laid.enterprise)
    attempt(deps, laid.enterprise, run_id, DOWNGRADE)
    lms.journal.clear()
    result = license_expiry("run", "--here", "--json")
    assert (result.exit_code, runs_of(result)[laid.enterprise]["learners_unlinked"]) == (0, 6)
    assert (len(sent(lms, "downgrade")), len(sent(lms, "unlink"))) == (0, 1)


def test_a_rehearsal_does_not_take_up_a_stranded_run_in_earnest(
    lms: Simulator, set_up: Use, make_test_deps: Make
) -> None:
    """Whoever types --dry-run means that nothing is sent."""
    laid, deps = lay(lms), make_test_deps()
    run_id = open_one(deps, laid.enterprise)
    result = license_expiry("run", "--here", "--dry-run", "--no-wait")
    assert lms.calls() == []
    assert run_of(deps.database, run_id).phase == Phase.QUEUED
    assert str(run_id) in result.stderr


def test_a_run_for_one_plan_does_not_take_up_a_stranded_run_for_all(
    lms: Simulator, set_up: Use, make_test_deps: Make, engine: Engine
) -> None:
    """Whoever names a plan means that no other is touched."""
    data = Data(engine)
    agreement = data.agreement()
    plans = [data.plan(agreement, expires=data.now - 10 * DAY) for _ in range(2)]
    licenses = {plan: data.license(plan) for plan in plans}
    ready(data, lms)
    open_one(make_test_deps(), agreement.enterprise_customer_uuid)
    license_expiry("run", "--here", "--no-wait", "--plan", plans[0])
    assert str(licenses[plans[1]]) not in times_sent(lms, "downgrade")


# status


def test_status_says_when_there_were_no_runs(lms: Simulator, set_up: Use) -> None:
    result = license_expiry("status")
    assert (result.exit_code, result.stdout) == (0, "There were no runs yet.\n")
    assert json_of(license_expiry("status", "--json")) == {"runs": []}


def test_status_shows_the_newest_run_of_each_enterprise_and_all_of_one(lms: Simulator, set_up: Use) -> None:
    first, second = lay(lms, seed=1).enterprise, lay(lms, seed=2).enterprise
    rehearsals = runs_of(license_expiry("run", "--here", "--dry-run", "--json"))
    done = runs_of(license_expiry("run", "--here", "--json", "--enterprise", first))
    newest = license_expiry("status", "--json")
    assert newest.exit_code == 0
    assert runs_of(newest) == {first: done[first], second: rehearsals[second]}
    of_one = license_expiry("status", "--json", "--enterprise", first)
    assert json_of(of_one)["runs"] == [done[first], rehearsals[first]]


def test_status_shows_a_dry_run_only_where_there_was_no_other(lms: Simulator, set_up: Use) -> None:
    laid = lay(lms)
    done = license_expiry("run", "--here", "--json").stdout
    forced = ("--force", "--reason", "what would it be", "--plan", laid.plan)
    rehearsal = runs_of(license_expiry("run", "--here", "--dry-run", "--json", *forced))[laid.enterprise]
    assert rehearsal["dry_run"]
    assert license_expiry("status", "--json").stdout == done
    shown = license_expiry("status").stdout
    assert "dry run" not in shown.lower()
    assert "status --enterprise UUID" in shown, "it says how to see the others"
    assert json_of(license_expiry("status", "--json", "--enterprise", laid.enterprise))["runs"][0] == rehearsal


def test_status_tells_when_a_run_began_how_long_it_took_and_its_retries(
    engine: Engine, lms: Simulator, set_up: Use, make_test_deps: Make
) -> None:
    ended, live = lay(lms, seed=1).enterprise, lay(lms, seed=2).enterprise
    license_expiry("run", "--here", "--enterprise", ended)
    open_one(make_test_deps(), live)
    with engine.begin() as connection:
        times = {"opened_at": JANUARY, "ended_at": JANUARY + timedelta(hours=1, minutes=2, seconds=3)}
        connection.execute(update(Run).where(Run.enterprise_customer_uuid == ended).values(retries=2, **times))
    shown = license_expiry("status").stdout
    assert re.search(rf"^{ended} finished .*\n  2025-01-15 12:00, 1:02:03 +2 retries *$", shown, re.MULTILINE)
    assert re.search(rf"^{live} queued .*\n  20\d\d-\d\d-\d\d \d\d:\d\d, 0:00:\d\d so far *$", shown, re.MULTILINE)


def test_status_ends_with_1_while_the_newest_run_of_any_enterprise_is_failed(lms: Simulator, set_up: Use) -> None:
    laid = lay(lms, seed=1)
    lay(lms, seed=2)
    lms.faults(Fault("downgrade", enterprise=str(laid.enterprise), status=403))
    assert license_expiry("run", "--here").exit_code == 1
    failed = license_expiry("status")
    assert failed.exit_code == 1
    assert f"{laid.enterprise}: the LMS answered 403" in failed.stdout
    lms.faults()
    assert license_expiry("run", "--here").exit_code == 0
    mended = license_expiry("status")
    assert mended.exit_code == 0
    assert "403" not in mended.stdout


def test_status_watches_until_the_live_runs_have_ended(
    lms: Simulator, set_up: Use, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid, deps = lay(lms), make_test_deps()
    run_id = open_one(deps, laid.enterprise)
    assert runs_of(license_expiry("status", "--json"))[laid.enterprise]["phase"] == "queued"
    meanwhile = Clock(lambda now: finish(deps, laid.enterprise, run_id) if now == 10 else None)
    monkeypatch.setattr(watch, "time", meanwhile)
    watched = license_expiry("status", "--watch", "--json")
    assert (runs_of(watched)[laid.enterprise]["phase"], meanwhile.now) == ("finished", 10)


def test_status_waits_for_runs_that_begin_meanwhile_too(
    lms: Simulator, set_up: Use, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = lay(lms, seed=1).enterprise, lay(lms, seed=2).enterprise
    deps = make_test_deps()
    ids = {first: open_one(deps, first)}

    def meanwhile(now: float) -> None:
        if now == 3:
            ids[second] = open_one(deps, second)
        elif now in (5, 8):
            enterprise = {5: first, 8: second}[int(now)]
            finish(deps, enterprise, ids[enterprise])

    clock = Clock(meanwhile)
    monkeypatch.setattr(watch, "time", clock)
    shown = license_expiry("status", "--watch").stdout
    assert clock.now == 8
    assert [shown.index(f"{enterprise} finished plans") for enterprise in ids] == sorted(
        shown.index(f"{enterprise} finished plans") for enterprise in ids
    )


def test_a_terminal_shows_how_far_the_runs_are(
    lms: Simulator, set_up: Use, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid, deps = lay(lms), make_test_deps()
    run_id = open_one(deps, laid.enterprise)
    screen = StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80, _environ={"TERM": "xterm"})
    monkeypatch.setattr(tables, "out", terminal)
    monkeypatch.setattr(watch, "time", Clock(lambda now: finish(deps, laid.enterprise, run_id) if now == 5 else None))
    assert license_expiry("status", "--watch").exit_code == 0
    shown = re.sub(r"\x1b\[[\d;?]*\w", "", screen.getvalue())
    assert "\x1b[32mfinished" in screen.getvalue()
    assert "0 of 1 enterprises done" in shown
    assert "1 of 1 enterprises done" in shown
    assert re.search(rf"{laid.enterprise} +finished +1 +6 +0 +0 +0", shown)


# held


def test_held_says_when_none_is(lms: Simulator, set_up: Use) -> None:
    result = license_expiry("held")
    assert (result.exit_code, result.stdout) == (0, "No license is held.\n")
    assert json_of(license_expiry("held", "--json")) == {"held": []}


def test_held_lists_licenses_with_the_reason_and_the_tries(engine: Engine, lms: Simulator, set_up: Use) -> None:
    laid = lay(lms, licenses=3)
    lms.faults(Fault("downgrade", license=str(laid.licenses[0]), status=422))
    license_expiry("run", "--here")
    license_expiry("run", "--here", "--force", "--reason", "once more", "--plan", laid.plan)
    [row] = rows(engine, HeldLicense)
    result = license_expiry("held", "--json")
    expected = {
        "license_uuid": str(laid.licenses[0]),
        "enterprise_customer_uuid": str(laid.enterprise),
        "step": "downgrade",
        "reason": "http_422",
        "tries": 2,
        "first_held_at": row["first_held_at"].isoformat(),
    }
    assert (result.exit_code, json_of(result)) == (1, {"held": [expected]})
    assert row["first_held_at"].utcoffset() == timedelta()
    table = license_expiry("held")
    assert table.exit_code == 1
    assert f"Enterprise {laid.enterprise}" in table.stdout
    assert re.search(rf"^{laid.licenses[0]} +downgrade +http_422 +2 ", table.stdout, re.MULTILINE)


# serve and report


def test_the_pages_are_served_until_it_is_told_to_end(
    engine: Engine, use: Use, database_url: str, tmp_path: Path
) -> None:
    port = free_port()
    use(DATABASE_URL=database_url, NIGHTLY_SCHEDULE="17 5 * * *", TIME_ZONE="Asia/Kolkata")
    with Processes(tmp_path) as processes:
        serving = processes.start("serve", [str(COMMAND), "serve", "--port", str(port)], lambda: listens(port))
        assert requests.get(f"http://127.0.0.1:{port}/healthz", timeout=10).status_code == 200
        nights = requests.get(f"http://127.0.0.1:{port}/", timeout=10)
        assert (nights.status_code, "23:47" in nights.text) == (200, True), "the next night, in UTC"
        second = process("serve", "--port", port)
        assert (second.returncode, second.stdout) == (2, "")
        assert re.fullmatch(
            rf"127\.0\.0\.1, port {port}, cannot be .*: give another --address or --port", second.stderr.strip()
        )
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(20) == 0


def test_a_report_is_written_whole_or_not_at_all(lms: Simulator, set_up: Use, tmp_path: Path) -> None:
    file = tmp_path / "night.html"
    file.write_text("yesterday's")
    early = license_expiry("report", "--html", file)
    assert (early.exit_code, early.stdout, file.read_text()) == (2, "", "yesterday's")
    assert "no night yet" in early.stderr
    laid = lay(lms)
    license_expiry("run", "--here")
    written = license_expiry("report", "--html", file)
    assert (written.exit_code, written.stdout) == (0, f"{file} is written.\n")
    assert str(laid.enterprise) in file.read_text()
    piped = license_expiry("report", "--html", "-")
    assert (piped.exit_code, str(laid.enterprise) in piped.stdout, piped.stdout[:9].lower()) == (0, True, "<!doctype")
    other = license_expiry("report", "--html", file, "--night", "2020-01-01T000000Z")
    assert (other.exit_code, other.stdout, str(laid.enterprise) in file.read_text()) == (2, "", True)
    nowhere = license_expiry("report", "--html", tmp_path / "no" / "night.html")
    assert (nowhere.exit_code, "cannot be written (No such file" in nowhere.stderr) == (2, True)
    folder = license_expiry("report", "--html", tmp_path)
    assert (folder.exit_code, "cannot be written (Is a directory" in folder.stderr) == (2, True)
    assert [each.name for each in tmp_path.glob("*.part*")] + [
        each.name for each in tmp_path.parent.glob("*.part")
    ] == []


# What is read


def test_bash_completes_a_command_as_help_says() -> None:
    bash = shutil.which("bash")
    if bash is None:
        missing("bash", "install bash")
    line = re.search(r"eval \S+ .*?\)\"", license_expiry("--help").stdout)
    assert line
    ours, theirs = pty.openpty()
    environment = os.environ | {"PATH": f"{COMMAND.parent}:{os.environ['PATH']}", "PS1": "ready> ", "TERM": "dumb"}
    with subprocess.Popen(
        [bash, "--norc", "--noprofile", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    ) as shell:
        try:
            for typed, awaited in (
                ("", "ready> "),
                (f"{line[0]}\n", "ready> "),
                ("license-expiry hel\t", "license-expiry held "),
            ):
                os.write(ours, typed.encode())
                shown, deadline = "", time.monotonic() + 20
                while awaited not in shown.replace("\r", "").removeprefix(typed):
                    assert select.select([ours], [], [], deadline - time.monotonic())[0], shown
                    shown += os.read(ours, 4096).decode()
        finally:
            shell.kill()
            os.close(ours)
            os.close(theirs)


@pytest.mark.parametrize("command", [(), *((name,) for name in sorted(main.main.commands))], ids=" ".join)
def test_help_teaches_by_examples(command: tuple[str, ...]) -> None:
    result = license_expiry(*command, "--help")
    assert result.exit_code == 0
    assert "\\b" not in result.stdout, "a mark for click that click did not understand"
    usage, _, taught = result.stdout.partition("\n")
    examples = [line for line in taught.splitlines() if " ".join(("license-expiry", *command)) in line]
    assert examples, f"no example under {usage}"


def test_help_prints_each_example_on_a_line_of_its_own() -> None:
    shown = license_expiry("run", "--help").stdout
    assert re.search(r"license-expiry run --enterprise [0-9a-f-]{36}$", shown, re.MULTILINE)
    assert re.search(r"license-expiry run --dry-run$", shown, re.MULTILINE)
    assert re.search(r'license-expiry run --plan UUID --force --reason ".*"$', shown, re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= 100
    assert re.search(r"license-expiry init-db$", license_expiry("--help").stdout, re.MULTILINE)


def test_help_tells_the_exit_statuses() -> None:
    shown = " ".join(license_expiry("--help").stdout.split())
    assert re.search(r"0 all done, 1 something failed or is held, 2 wrong usage", shown)


def test_what_is_piped_fits_80_columns_has_no_escape_codes_and_breaks_no_number(
    engine: Engine, lms: Simulator, set_up: Use
) -> None:
    laid = lay(lms, licenses=3)
    set_up(**{LIST: laid.enterprise})
    run: dict[str, Any] = {"as_of": JANUARY, "force": False, "opened_at": JANUARY, "reason": None, "retries": 12}
    run["ended_at"] = JANUARY + timedelta(days=1, hours=23, minutes=59, seconds=59)
    many = {"plans_processed": 123, "licenses_downgraded": 1234567, "licenses_held": 1234}
    more = {"learners_unlinked": 1234566, "learners_protected": 123456}
    long = "the LMS answered 403: " + "the service user lacks the permission, " * 5
    going, ended = uuid4(), uuid4()
    for enterprise, phase, counted in [(going, Phase.DOWNGRADING, many), (ended, Phase.ABANDONED, many | more)]:
        values = run | counted | {"id": uuid4(), "enterprise_customer_uuid": enterprise, "phase": phase}
        with engine.begin() as connection:
            connection.execute(insert(Run).values(dry_run=True, error=long, **values))
    held: dict[str, Any] = {"license_uuid": uuid4(), "enterprise_customer_uuid": going, "run_id": uuid4()}
    held |= {"step": "downgrade", "reason": "http_422", "tries": 1234, "first_held_at": JANUARY, "as_of": JANUARY}
    with engine.begin() as connection:
        connection.execute(insert(HeldLicense).values(held))

    status, licenses, due = process("status"), license_expiry("held"), license_expiry("due")
    assert (status.returncode, licenses.exit_code, due.exit_code) == (1, 1, 0)
    assert re.search(rf"^{going} +downgra\S+ +123 +1234567 +1234 +0 +0 *$", status.stdout, re.MULTILINE)
    assert re.search(rf"^{ended} +abandoned +123 +1234567 +1234 +1234566 +123456 *$", status.stdout, re.MULTILINE)
    assert f"{ended}: {long}" in status.stdout, "an error is one line, to be found by grep"
    assert re.search(rf"^{held['license_uuid']} +downgrade +http_422 +1234 +2025-01-15 12:00 *$", licenses.stdout, re.M)
    assert re.search(rf"^{laid.enterprise} +1 +3 +3 +0 *$", due.stdout, re.MULTILINE)
    for output in (status.stdout, licenses.stdout, due.stdout):
        table = [line for line in output.splitlines() if ": the LMS answered" not in line]
        assert max(map(len, table)) <= 80
        assert "\x1b" not in output


# With a broker


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """fakeredis's server in a process of its own, as in the demo."""
    port = free_port()
    serve = f"from fakeredis import TcpFakeServer; TcpFakeServer(('127.0.0.1', {port})).serve_forever()"
    with Processes(tmp_path_factory.mktemp("broker")) as processes, redis.Redis(port=port) as client:
        processes.start("redis", [sys.executable, "-c", serve], lambda: listens(port))
        yield client


@pytest.fixture
def with_broker(set_up: Use, broker: redis.Redis) -> Use:
    broker.flushall()
    set_up(CELERY_BROKER_URL=f"redis://127.0.0.1:{broker.connection_pool.connection_kwargs['port']}/0")
    return set_up


def queued(broker: redis.Redis) -> int:
    return broker.llen(f"license_expiry:{QUEUE}")


def test_no_wait_opens_and_publishes_the_runs_and_ends_at_once(
    engine: Engine, lms: Simulator, with_broker: Use, broker: redis.Redis
) -> None:
    enterprises = {lay(lms, seed=seed).enterprise for seed in (1, 2)}
    first = process("run", "--no-wait", "--json")
    runs = json.loads(first.stdout)["runs"]
    assert first.returncode == 0
    assert {(UUID(run["enterprise_customer_uuid"]), run["phase"]) for run in runs} == {
        (enterprise, "queued") for enterprise in enterprises
    }
    assert (queued(broker), lms.calls(), len(rows(engine, Run))) == (2, [], 2)
    second = process("run", "--no-wait", "--json")
    assert json.loads(second.stdout) == json.loads(first.stdout)
    assert (queued(broker), second.returncode) == (2, 0), "a live run is not published twice"
    for run in runs:
        assert second.stderr.count(run["run_id"]) == 1, "each live run is told, once"


def test_ctrl_c_while_waiting_ends_promptly_and_says_that_the_runs_go_on(
    engine: Engine, lms: Simulator, with_broker: Use, broker: redis.Redis
) -> None:
    lay(lms)
    # Its first words, that no worker has taken the run up, are the sign that it waits.
    impatient = "from worker.cli import main, watch; watch.PATIENCE_SECONDS = 0"
    hurry = f"{impatient}; main.main(['run'], prog_name='license-expiry')"
    with subprocess.Popen(
        [sys.executable, "-c", hurry],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        try:
            assert running.stderr is not None
            assert "No worker has taken these runs up" in running.stderr.readline()
            running.send_signal(signal.SIGINT)
            stdout, stderr = running.communicate(timeout=10)
        finally:
            running.kill()
    [run] = rows(engine, Run)
    assert (run["phase"], run["owner"], queued(broker)) == ("queued", None, 1), "it does go on"
    assert "Traceback" not in stderr
    assert running.returncode in (1, 130)
    assert "go on" in stdout + stderr
    assert "license-expiry status" in stdout + stderr


def publish_to(published: list[tuple[UUID, UUID]]) -> Callable[[], Callable[[UUID, UUID], None]]:
    return lambda: lambda *run: published.append(run)


HINT = "celery -A worker worker"


@pytest.mark.parametrize(
    ("taken_up_after", "hints"),
    [
        pytest.param(60, 1, id="a minute without any worker: said once, and it waits on"),
        pytest.param(15.5, 1, id="just after the patience is over"),
        pytest.param(10, 0, id="a worker that is only busy for a while: nothing is said"),
    ],
)
def test_it_says_when_no_worker_takes_the_runs_up(
    lms: Simulator,
    set_up: Use,
    make_test_deps: Make,
    monkeypatch: pytest.MonkeyPatch,
    taken_up_after: float,
    hints: int,
) -> None:
    lay(lms)
    set_up(CELERY_BROKER_URL="redis://127.0.0.1:9/0")
    deps = make_test_deps()
    published: list[tuple[UUID, UUID]] = []
    monkeypatch.setattr(broker_side, "publisher", publish_to(published))
    clock = Clock(lambda now: finish(deps, *published.pop()) if now > taken_up_after else None)
    monkeypatch.setattr(watch, "time", clock)
    result = license_expiry("run")
    assert result.exit_code == 0
    assert result.stderr.count(HINT) == hints
    assert re.search(r"^\S{36} finished plans_processed=1 licenses_downgraded=6 ", result.stdout, re.MULTILINE)


def test_the_hint_does_not_come_once_any_run_is_taken_up(
    lms: Simulator, set_up: Use, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        lay(lms, seed=seed)
    set_up(CELERY_BROKER_URL="redis://127.0.0.1:9/0")
    deps = make_test_deps()
    published: list[tuple[UUID, UUID]] = []
    monkeypatch.setattr(broker_side, "publisher", publish_to(published))
    clock = Clock(lambda now: finish(deps, *published.pop()) if now in (5, 300) else None)
    monkeypatch.setattr(watch, "time", clock)
    result = license_expiry("run")
    assert (result.exit_code, result.stderr, clock.now) == (0, "", 300)
