"""`license-expiry stop`, `pause` and `resume`: what they say and do, and what `status` and `run` make of it."""

import os
import re
from typing import Any

import pytest
from sqlalchemy import Engine
from support.claims import claim
from support.command_line import Clock, Use, json_of, license_expiry, runs_of
from support.runs import Laid, Make, lay, open_one, rows, run_of, sent

from simulator.lms.server import Simulator
from worker.cli import options, watch
from worker.db.ledger_tables import Run, Wait
from worker.deps import Deps
from worker.ledger import claims, waits
from worker.ledger.order import Phase
from worker.runs import attempt, steps

pytestmark = pytest.mark.timeout(120)

REASON = ("--reason", "a wrong plan")


@pytest.fixture
def deps(set_up: Use, make_test_deps: Make) -> Deps:
    return make_test_deps()


@pytest.fixture(autouse=True)
def _who(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "getuser", lambda: "ops")
    monkeypatch.setattr(options, "gethostname", lambda: "host")


def opened(lms: Simulator, deps: Deps, count: int) -> list[tuple[Laid, Run]]:
    laid = [lay(lms, seed=seed) for seed in range(1, count + 1)]
    return [(each, run_of(deps.database, open_one(deps, each.enterprise))) for each in laid]


def test_one_run_an_enterprises_or_all_are_stopped(engine: Engine, lms: Simulator, deps: Deps) -> None:
    (_, one), (second, _), *_ = opened(lms, deps, 4)
    result = license_expiry("stop", one.id, *REASON)
    assert result.exit_code == 0
    assert f"{one.enterprise_customer_uuid}: stopped by ops on host: a wrong plan\n" in result.stdout
    assert run_of(deps.database, one.id).phase == Phase.STOPPED
    result = license_expiry("stop", "--enterprise", second.enterprise, *REASON, "--json")
    [told] = json_of(result)["runs"]
    assert (told["phase"], told["stopped_by"], told["stop_reason"]) == ("stopped", "ops on host", "a wrong plan")
    assert told["enterprise_customer_uuid"] == str(second.enterprise)
    assert len(json_of(license_expiry("stop", "--all", *REASON, "--json"))["runs"]) == 2
    assert {row["phase"] for row in rows(engine, Run)} == {Phase.STOPPED}
    result = license_expiry("stop", "--all", *REASON)
    assert (result.exit_code, result.stdout) == (0, "No run is live.\n")
    result = license_expiry("stop", one.id, *REASON)
    assert (result.exit_code, "stopped by ops on host: a wrong plan" in result.stdout) == (0, True)


def test_it_waits_for_a_run_that_a_worker_has(lms: Simulator, deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    [(_, run)] = opened(lms, deps, 1)
    held = claim(deps.database, run)
    result = license_expiry("stop", run.id, *REASON, "--no-wait")
    assert result.exit_code == 1
    assert f"Run {run.id} is stopped by ops on host: a wrong plan. The runs end after their calls" in result.stderr
    assert "stopping" in result.stdout
    assert license_expiry("stop", run.id, *REASON, "--no-wait", "--json").exit_code == 1
    monkeypatch.setattr(watch, "time", Clock(lambda now: held.release() if now == 2 else None))
    result = license_expiry("stop", run.id, "--reason", "another")
    assert (result.exit_code, run_of(deps.database, run.id).error) == (0, "stopped by ops on host: a wrong plan")


def test_one_that_ends_first_is_reported_as_it_ended(
    lms: Simulator, deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    [(_, run)] = opened(lms, deps, 1)
    held = claim(deps.database, run)
    monkeypatch.setattr(watch, "time", Clock(lambda now: held.fail("the LMS refuses") if now == 2 else None))
    result = license_expiry("stop", run.id, *REASON)
    assert result.exit_code == 0
    assert f"Run {run.id} is already failed: there is nothing to stop." in result.stderr


WRONG: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing named": (("stop", *REASON), "Give one of RUN, --enterprise UUID and --all"),
    "two named": (("stop", "--all", "--enterprise", "378d5bf0-f67d-4bf7-8b2a-cbbc53d0f772", *REASON), "Give one of"),
    "no UUID": (("stop", "last", *REASON), "not a valid UUID"),
    "an unknown run": (("stop", "378d5bf0-f67d-4bf7-8b2a-cbbc53d0f772", *REASON), "There is no run 378d5bf0"),
    "a stop without a reason": (("stop", "--all"), "Missing option '--reason'"),
    "a pause without a reason": (("pause",), "Missing option '--reason'"),
    "an empty reason": (("pause", "--reason", "  "), "must have 1 to 255 characters"),
    "a reason that is too long": (("pause", "--reason", "x" * 256), "must have 1 to 255 characters"),
    "two lines": (("stop", "--all", "--reason", "one\ntwo"), "without control characters"),
    "an escape sequence": (("pause", "--reason", "\x1b[31mred"), "without control characters"),
    "bytes that are not UTF-8": (("pause", "--reason", "\udcff"), "without control characters"),
}


@pytest.mark.parametrize(("arguments", "told"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_refused_in_one_sentence_and_stops_nothing(
    arguments: tuple[str, ...], told: str, engine: Engine, lms: Simulator, deps: Deps
) -> None:
    opened(lms, deps, 1)
    result = license_expiry(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in result.stderr
    assert [row["phase"] for row in rows(engine, Run)] == [Phase.QUEUED]
    assert rows(engine, Wait) == []


@pytest.mark.parametrize("reason", ["x" * 255, 'é ü 中文: "quoted" [b]100 %[/b]'])
def test_a_reason_is_kept_and_shown_as_it_was_given(reason: str, lms: Simulator, deps: Deps) -> None:
    assert license_expiry("pause", "--reason", f" {reason} ").exit_code == 0
    assert json_of(license_expiry("status", "--json"))["paused"]["reason"] == reason
    assert reason in license_expiry("status").stdout


def test_a_pause_is_shown_held_against_runs_and_ended(
    engine: Engine, lms: Simulator, deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = lay(lms)
    assert license_expiry("pause", "--reason", "an upgrade").exit_code == 0
    monkeypatch.setattr(options, "getuser", lambda: "another")
    again = license_expiry("pause", "--reason", "too")
    assert (again.exit_code, "by ops on host: an upgrade" in again.stdout) == (0, True), "who has it already"
    told = r"verything is paused since .* UTC by ops on host: an upgrade"
    status = license_expiry("status")
    assert (status.exit_code, bool(re.match(f"E{told}", status.stdout))) == (0, True)
    for arguments in ((), ("--dry-run",), ("--enterprise", laid.enterprise)):
        refused = license_expiry("run", "--here", *arguments)
        assert (refused.exit_code, refused.stdout) == (2, "")
        assert re.fullmatch(rf"e{told}: license-expiry resume ends the pause\n", refused.stderr)
    assert (rows(engine, Run), lms.calls()) == ([], [])
    ended = license_expiry("resume")
    assert (ended.exit_code, bool(re.match("Resumed. Everything was paused since", ended.stdout))) == (0, True)
    assert license_expiry("resume").stdout == "Nothing is paused.\n"
    assert license_expiry("run", "--here").exit_code == 0
    assert "paused" not in license_expiry("status").stdout


def test_as_json(lms: Simulator, deps: Deps) -> None:
    paused = json_of(license_expiry("pause", "--reason", "an upgrade", "--json"))
    assert paused["paused"].keys() == {"since", "by", "reason"}
    assert json_of(license_expiry("status", "--json")) == {**paused, "runs": []}
    assert json_of(license_expiry("resume", "--json")) == {"paused": None, "ended": paused["paused"]}
    assert json_of(license_expiry("resume", "--json")) == {"paused": None, "ended": None}


def test_a_stopped_run_is_no_failure_to_status_but_its_run_has_not_done_all(
    lms: Simulator, deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = lay(lms, licenses=4)
    stop_at_first_call(deps, monkeypatch)
    monkeypatch.setattr(claims, "CHECKED_SECONDS", 0.0)  # as half a second later
    result = license_expiry("run", "--here", "--json")
    assert (result.exit_code, runs_of(result)[laid.enterprise]["phase"]) == (1, "stopped")
    assert sent(lms, "downgrade") == []
    status = license_expiry("status")
    assert status.exit_code == 0
    assert f"{laid.enterprise}: stopped by ops on host: a wrong plan" in status.stdout


def stop_at_first_call(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an operator stop everything as soon as a step has claimed its run."""
    do_step = steps.do_step

    def stopped(*arguments: Any) -> bool:
        assert license_expiry("stop", "--all", "--no-wait", *REASON).exit_code == 1
        return do_step(*arguments)

    monkeypatch.setattr(attempt, "do_step", stopped)


def test_a_user_without_a_name_is_reported_by_number(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> str:
        raise KeyError("getpwuid(): uid not found: 1000770000")

    monkeypatch.setattr(options, "getuser", nobody)
    monkeypatch.setattr(os, "getuid", lambda: 1000770000)
    license_expiry("pause", "--reason", "an upgrade")
    pause = deps.database.transact(waits.standing_pause)
    assert (pause or Wait()).set_by == "user 1000770000 on host"
