"""`license-expiry status` and `held`, and what a live run looks like to the command."""

import re
from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from uuid import UUID

import pytest
from rich.console import Console
from sqlalchemy import Engine, update
from support.command_line import JANUARY, LIST, Clock, Use, json_of, license_expiry, runs_of
from support.runs import (
    Make,
    attempt,
    finish,
    lapse,
    lay,
    open_one,
    ready,
    rows,
    run_of,
    sent,
    times_sent,
)

from simulator.data.rows import DAY, Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.cli import tables, watch
from worker.db.ledger_tables import HeldLicense, Run
from worker.db.transactions import Database
from worker.ledger import claims
from worker.ledger.order import DOWNGRADE, Phase

pytestmark = pytest.mark.timeout(60)  # what waits for ever is told soon

Strand = Callable[[Database, Engine, UUID, UUID], None]


# A live run


def test_the_live_run_of_another_worker_is_reported_with_its_id_and_left_alone(
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
    name = "  Enterprise [0-9A-F][0-9a-fA-F]{7}"
    assert re.search(rf"^{ended} finished .*\n{name} +2 retries *\n  2025-01-15 12:00, 1:02:03 *$", shown, re.MULTILINE)
    assert re.search(
        rf"^{live} queued .*\n{name} *\n  20\d\d-\d\d-\d\d \d\d:\d\d, 0:00:\d\d so far *$", shown, re.MULTILINE
    )


def test_status_ends_with_1_while_the_newest_run_of_any_enterprise_is_failed(lms: Simulator, set_up: Use) -> None:
    laid = lay(lms, seed=1)
    lay(lms, seed=2)
    lms.faults(Fault("downgrade", enterprise=str(laid.enterprise), status=401))
    assert license_expiry("run", "--here").exit_code == 1
    failed = license_expiry("status")
    assert failed.exit_code == 1
    assert f"{laid.enterprise}: the LMS answered 401" in failed.stdout
    lms.faults()
    assert license_expiry("run", "--here").exit_code == 0
    mended = license_expiry("status")
    assert mended.exit_code == 0
    assert "401" not in mended.stdout


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
        "enterprise_customer_name": f"Enterprise {laid.enterprise.hex[:8].title()}",
        "step": "downgrade",
        "reason": "http_422",
        "tries": 2,
        "first_held_at": row["first_held_at"].isoformat(),
    }
    assert (result.exit_code, json_of(result)) == (1, {"held": [expected]})
    assert row["first_held_at"].utcoffset() == timedelta()
    table = license_expiry("held")
    assert table.exit_code == 1
    assert f"Enterprise {laid.enterprise}, {expected['enterprise_customer_name']}" in table.stdout
    assert re.search(rf"^{laid.licenses[0]} +downgrade +http_422 +2 ", table.stdout, re.MULTILINE)


def test_a_name_of_any_length_is_one_line_of_the_table() -> None:
    assert tables.short("") == ""
    assert tables.short("Elm\n Changed  Address") == "\n  Elm Changed Address"
    assert tables.short("University " * 21) == "\n  University University University …"
    assert len(tables.short("x" * 230)) == 3 + tables.NAME_WIDTH
