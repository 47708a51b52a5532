"""`license-expiry run`: what it starts, waits for and shows, with a broker and without."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from getpass import getuser
from socket import gethostname
from uuid import UUID

import pytest
import redis
from sqlalchemy import Engine
from support.command_line import (
    FEBRUARY,
    HOLDS_ONE,
    JANUARY,
    LIST,
    MARCH,
    Clock,
    Use,
    json_of,
    lay_demo,
    license_expiry,
    process,
    runs_of,
)
from support.runs import (
    Make,
    emails,
    finish,
    lay,
    ready,
    rows,
    sent,
    snapshot,
    times_sent,
    unlinking,
)

from simulator.data.rows import DAY, Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port, listens
from worker.cli import broker as broker_side, watch
from worker.db.ledger_tables import Run

pytestmark = pytest.mark.timeout(60)  # what waits for ever is told soon

QUEUE = "license_expiry"


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
        "triggered_by": f"{getuser()} on {gethostname()}",
        "reason": None,
        "plans_processed": 1,
        "licenses_downgraded": 2,
        "licenses_held": 0,
        "learners_unlinked": 0,
        "learners_protected": 0,
        "error": None,
        "enterprise_customer_name": f"Enterprise {laid.enterprise.hex[:8].title()}",
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
    lms.faults(Fault("downgrade", enterprise=str(bad.enterprise), status=401))
    result = license_expiry("run", "--here")
    assert result.exit_code == 1
    assert re.search(rf"^{good.enterprise} finished ", result.stdout, re.MULTILINE)
    assert re.search(rf"^{bad.enterprise} failed ", result.stdout, re.MULTILINE)
    assert re.search(
        rf"^{bad.enterprise}: the LMS answered 401: .*BACKEND_SERVICE_EDX_OAUTH2_SECRET", result.stdout, re.MULTILINE
    )


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


def test_the_two_commands_that_a_run_above_the_limit_names_lead_to_its_end(
    engine: Engine, lms: Simulator, set_up: Use
) -> None:
    laid = lay(lms, licenses=3)
    set_up(UNLINK_LIMIT=2, **unlinking(laid.enterprise))
    refused = license_expiry("run", "--here", "--json")
    assert refused.exit_code == 1
    error = runs_of(refused)[laid.enterprise]["error"]
    steps = ("to check them", "to approve them")
    look, go = (re.findall(rf"{step}: license-expiry ([^;\[]+)", error)[0].split() for step in steps)
    looked = license_expiry(*look)
    assert looked.exit_code == 0
    assert f"More unlinks than UNLINK_LIMIT, 2, need your approval: license-expiry {' '.join(go)}" in looked.stdout
    gone = license_expiry(*go, "--here", "--json")
    assert (gone.exit_code, runs_of(gone)[laid.enterprise]["learners_unlinked"]) == (0, 3)
    run = next(run for run in rows(engine, Run) if run["approve_unlinks"])
    assert (run["approve_unlinks"], run["reason"]) == (3, "TEXT")
    assert run["triggered_by"] == f"{getuser()} on {gethostname()}"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        pytest.param(["--approve-unlinks", 5], "name it with --enterprise", id="for every enterprise"),
        pytest.param(["--approve-unlinks", 0], "0 is not in the range", id="for nobody"),
        pytest.param(["--approve-unlinks", "all"], "'all' is not a valid integer", id="for whoever there is"),
        pytest.param(
            ["--approve-unlinks", 5, "--enterprise", UUID(int=4)],
            "--approve-unlinks needs a --reason",
            id="for no reason",
        ),
    ],
)
def test_leave_to_unlink_is_for_one_enterprise_a_number_and_a_reason(
    options: list[object], complaint: str, engine: Engine, set_up: Use
) -> None:
    result = license_expiry("run", "--here", *options)
    assert result.exit_code == 2
    assert complaint in result.stderr
    assert rows(engine, Run) == []


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
    # Its first words, that no worker has started the run, are the sign that it waits.
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
            assert "No worker has started these runs" in running.stderr.readline()
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


def publish_to(published: list[tuple[UUID, UUID]]) -> Callable[[UUID | None], Callable[[UUID, UUID, int], None]]:
    return lambda ledger: lambda enterprise, run, number: published.append((enterprise, run))


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
