"""The command on real databases: as a process where a process matters, else in this one."""

import gc
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
from sqlalchemy import Engine, MetaData, create_engine, insert, inspect
from support.command_line import (
    COMMAND,
    HOLDS_ONE,
    JANUARY,
    LIST,
    Use,
    json_of,
    lay_demo,
    license_expiry,
    process,
)
from support.eventually import eventually
from support.runs import (
    ON_EACH,
    Make,
    assert_order,
    lay,
    open_one,
    raw,
    ready,
    rows,
    snapshot,
)
from support.services import missing

from simulator.data.rows import DAY, Data
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port, listens
from worker.cli import main
from worker.db.ledger_tables import HeldLicense, Ledger, Lms, Run
from worker.db.license_manager_tables import LicenseManager
from worker.db.transactions import Database
from worker.ledger.order import Phase

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


@pytest.fixture
def set_up_alone(use: Use, database_url: str) -> None:
    """The settings for this database, and an LMS that is nowhere."""
    given = {"DATABASE_URL": database_url, "LMS_URL": "http://127.0.0.1:9"}
    use(**given, BACKEND_SERVICE_EDX_OAUTH2_KEY="key", BACKEND_SERVICE_EDX_OAUTH2_SECRET="secret")


def drop_ledger(engine: Engine) -> None:
    """Drop the ledger's tables, as in a database that init-db has not seen."""
    metadata = MetaData()
    metadata.reflect(engine, only=lambda name, _: name.startswith("license_expiry_"))
    metadata.drop_all(engine)


# A whole pass


@ON_EACH
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
    assert [list(row) for row in json_of(due)["enterprises"]] == [[*fields, "enterprise_customer_name"]] * len(DUE)
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


def test_init_db_says_which_lms_the_database_belongs_to(lms: Simulator, engine: Engine, set_up: Use) -> None:
    lay(lms)
    assert license_expiry("run", "--here").exit_code == 0
    assert [row["url"] for row in rows(engine, Lms)] == [lms.url]
    set_up(LMS_URL="https://new.example.com")
    refused = license_expiry("run", "--here")
    assert refused.exit_code == 2
    assert f"the database belongs to the LMS {lms.url}, but LMS_URL is https://new.example.com" in refused.stderr
    assert license_expiry("init-db", "--lms-url", "https://new.example.com/").exit_code == 0
    assert license_expiry("run", "--here").stdout == "Nothing is due.\n"
    wrong = license_expiry("init-db", "--lms-url", "new.example.com")
    assert (wrong.exit_code, "--lms-url must begin with http:// or https://" in wrong.stderr) == (2, True)
    assert [row["url"] for row in rows(engine, Lms)] == ["https://new.example.com"]


def test_init_db_names_every_table_of_license_managers_that_is_missing(database_url: str, set_up_alone: None) -> None:
    result = license_expiry("init-db")
    assert result.exit_code == 2
    for name in [*LicenseManager.metadata.tables, "subscriptions_historicalsubscriptionplan"]:
        [line] = [line for line in result.stderr.splitlines() if f"table {name} is missing" in line]
        assert "check that DATABASE_URL is license-manager's database and that its migrations have run" in line
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
    assert row.pop("enterprise_customer_name")
    assert row == {"plans": 3, "downgrades": 6, "unlinks": 4, "protected": 0}
    lay(lms, seed=2, licenses=2)
    assert re.search(r"^all 2 +4 +8 +4 +0 *$", license_expiry("due").stdout, re.MULTILINE)


# serve and report


def test_the_pages_are_served_until_it_is_stopped(engine: Engine, use: Use, database_url: str, tmp_path: Path) -> None:
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
            rf"cannot listen on 127\.0\.0\.1, port {port} \(.*\): give another --address or --port",
            second.stderr.strip(),
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
    assert f"{ended}: {long.strip()}" in status.stdout, "an error is one line, to be found by grep"
    assert re.search(rf"^{held['license_uuid']} +downgrade +http_422 +1234 +2025-01-15 12:00 *$", licenses.stdout, re.M)
    assert re.search(rf"^{laid.enterprise} +1 +3 +3 +0 *$", due.stdout, re.MULTILINE)
    for output in (status.stdout, licenses.stdout, due.stdout):
        table = [line for line in output.splitlines() if ": the LMS answered" not in line]
        assert max(map(len, table)) <= 80
        assert "\x1b" not in output
