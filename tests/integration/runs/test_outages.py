"""An outage of the LMS is met once and probed once, and runs wait for it without a call and without spending a try."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update
from support.claims import set_run
from support.runs import (
    LONGEST,
    ON_SQLITE,
    Laid,
    Make,
    attempt,
    batches_of,
    finish,
    lay,
    let_waits_pass,
    open_one,
    rows,
    run_of,
    step_of,
    unlinking,
)
from support.steps import KINDS, Kind, in_background, meet, reach

from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db.ledger_tables import LmsCall, Retry, Throttle, Wait
from worker.db.sql import DatabaseNow
from worker.deps import Deps
from worker.errors import Postponed, Unavailable
from worker.ledger import claims, waits
from worker.ledger.order import DOWNGRADE, Phase
from worker.ledger.stalled import MAX_RUN_AGE, release_stalled
from worker.lms.client import NOBODYS_LICENSE
from worker.runs import outages
from worker.runs.attempt import Retry as ComesAgain

AWAY = [
    pytest.param({"status": 503}, "http_503", 1, id="503"),
    pytest.param({"status": 502, "body": "<html>"}, "http_502", 1, id="a gateway's 502"),
    pytest.param({"status": 504}, "http_504", 1, id="504"),
    pytest.param({"drop": "before"}, "connection_error", 1, id="no connection"),
    pytest.param({"status": 429, "headers": {"Retry-After": "30"}}, "throttled", 0, id="the throttle is no fault"),
    pytest.param({"status": 429}, "throttled", 0, id="a throttle that does not say for how long"),
]


def many(lms: Simulator, count: int, licenses: int = 2) -> list[Laid]:
    return [lay(lms, licenses=licenses, seed=seed) for seed in range(1, count + 1)]


def comes_again(deps: Deps, laid: Laid, run_id: Any) -> ComesAgain:
    retry = attempt(deps, laid.enterprise, run_id, DOWNGRADE).retry
    assert retry is not None
    return retry


def outage(deps: Deps) -> dict[str, Any] | None:
    found = rows(deps.database.engine, Wait)
    return found[0] if found else None


@ON_SQLITE
@pytest.mark.parametrize(("fault", "reason", "spent"), AWAY)
def test_what_one_run_meets_all_others_wait_for_without_a_call(
    fault: dict[str, Any], reason: str, spent: int, lms: Simulator, make_test_deps: Make
) -> None:
    laid = many(lms, 4)
    deps = make_test_deps(TASK_MAX_RETRIES=3, **unlinking(*(each.enterprise for each in laid)))
    runs = [open_one(deps, each.enterprise) for each in laid]
    lms.faults(Fault(kind="downgrade", **fault))
    first = comes_again(deps, laid[0], runs[0])
    assert (first.error.reason, first.left) == (reason, 3 - spent)
    assert (run_of(deps.database, runs[0]).tries, run_of(deps.database, runs[0]).waits_for) == (spent, reason)
    made = len(lms.calls())
    for each, run_id in zip(laid[1:], runs[1:], strict=True):
        retry = comes_again(deps, each, run_id)
        waiting = run_of(deps.database, run_id)
        assert (retry.error.reason, retry.left, retry.gives_up_at) == (reason, 3, waiting.opened_at + MAX_RUN_AGE)
        assert (waiting.phase, waiting.tries, waiting.waits_for, waiting.owner) == (Phase.QUEUED, 0, reason, None)
        assert waiting.as_of == waiting.triggered_at, "it judges by the moment at which it begins"
    assert len(lms.calls()) == made, "none of them has asked the LMS"
    lms.faults()
    for each, run_id in zip(laid, runs, strict=True):
        assert finish(deps, each.enterprise, run_id).phase == Phase.FINISHED
    assert outage(deps) is None


@ON_SQLITE
def test_the_first_429_is_in_the_ledger_before_anything_is_waited_for(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=4)
    deps = make_test_deps(TASK_MAX_RETRIES=3, **batches_of(2))
    run_id = open_one(deps, laid.enterprise)
    lms.faults(Fault(kind="downgrade", nth=2, status=429, headers={"Retry-After": "30"}))
    retry = comes_again(deps, laid, run_id)
    assert 30 <= retry.seconds <= 40
    run = run_of(deps.database, run_id)
    assert run.licenses_downgraded == 2, "what was confirmed before it is recorded"
    assert (run.queued_at - deps.database.now()).total_seconds() == pytest.approx(retry.seconds, abs=5)
    assert [(row["reason"], row["step"]) for row in rows(deps.database.engine, Retry)] == [("throttled", "downgrade")]
    outcomes = {row["outcome"] for row in rows(deps.database.engine, LmsCall)}
    assert "http_429" in outcomes
    stands = outage(deps)
    assert stands is not None
    assert (stands["reason"], stands["tries"]) == ("throttled", 0)


@ON_SQLITE
def test_one_probe_for_all_and_only_when_its_moment_has_come(lms: Simulator, make_test_deps: Make) -> None:
    laid = many(lms, 3)
    deps = make_test_deps(TASK_MAX_RETRIES=3, TASK_RETRY_SECONDS=60)
    runs = [open_one(deps, each.enterprise) for each in laid]
    lms.faults(Fault(kind="downgrade", status=503))
    comes_again(deps, laid[0], runs[0])
    for probes in range(1, 4):
        let_waits_pass(deps.database)
        lms.journal.clear()
        for each, run_id in zip(laid, runs, strict=True):
            assert 1 <= comes_again(deps, each, run_id).seconds <= 72
        [probe] = lms.calls("downgrade")
        assert probe.licenses == [str(NOBODYS_LICENSE)], "it concerns nobody"
        stands = outage(deps)
        assert stands is not None
        assert stands["tries"] == probes
    assert [run_of(deps.database, run_id).tries for run_id in runs] == [1, 0, 0], "an outage spends nobody's tries"
    kept = {row["run_id"]: row["times"] for row in rows(deps.database.engine, Retry)}
    assert [kept[run_id] for run_id in runs[1:]] == [3, 3], "and is one row of each run's story"


@ON_SQLITE
@pytest.mark.parametrize(
    "status",
    [
        pytest.param(403, id="the LMS answers: what it refuses is for each run to meet"),
        pytest.param(500, id="a 500 is an answer too"),
        pytest.param(200, id="it works"),
    ],
)
def test_an_lms_that_answers_its_probe_is_back(status: int, lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(TASK_MAX_RETRIES=3)
    run_id = open_one(deps, laid.enterprise)
    waits.begin_outage(deps.database, Unavailable("http_503", "away"), 60)
    let_waits_pass(deps.database)
    lms.faults(Fault(kind="downgrade", nth=1, status=status))
    attempt(deps, laid.enterprise, run_id, DOWNGRADE)
    assert outage(deps) is None
    assert finish(deps, laid.enterprise, run_id).phase == Phase.FINISHED


@ON_SQLITE
@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_of_one_enterprise_alone_is_no_outage(kind: Kind, lms: Simulator, make_test_deps: Make) -> None:
    """Its calls fail though the LMS answers others meanwhile: it spends its own tries, and fails."""
    away, well = many(lms, 2)
    deps = make_test_deps(TASK_MAX_RETRIES=1, **unlinking(away.enterprise, well.enterprise))
    other, run_id = open_one(deps, well.enterprise), reach(deps, away, kind)
    fails: dict[str, Any] = {"kind": kind, "enterprise": str(away.enterprise), "status": 503}
    lms.faults(Fault(times=1, delay=60, **fails), Fault(**fails))
    lms.journal.clear()
    with in_background(lms, lambda: attempt(deps, away.enterprise, run_id, step_of(kind))) as running:
        meet(lms, running, lambda: lms.calls(kind))
        assert attempt(deps, well.enterprise, other, DOWNGRADE).run
        lms.release()
        retry = running.result().retry
    assert retry is not None
    assert (retry.left, outage(deps)) == (0, None)
    lms.faults(Fault(**fails))
    with pytest.raises(Unavailable, match="http_503"):
        attempt(deps, away.enterprise, run_id, step_of(kind))
    assert run_of(deps.database, run_id).phase == Phase.FAILED
    let_waits_pass(deps.database)
    assert finish(deps, well.enterprise, other).phase == Phase.FINISHED


@ON_SQLITE
def test_a_500_that_stays_is_no_outage(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(TASK_MAX_RETRIES=2)
    run_id = open_one(deps, laid.enterprise)
    lms.faults(Fault(kind="downgrade", status=500))
    assert comes_again(deps, laid, run_id).left == 1
    assert outage(deps) is None


@ON_SQLITE
def test_a_run_at_work_on_another_host_sends_nothing_more(
    lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "CHECKED_SECONDS", 0.0)  # else it is half a second in which all may be sent
    laid = lay(lms, licenses=20)
    deps = make_test_deps(TASK_MAX_RETRIES=3, **batches_of(2, parallel=2), **unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    lms.faults(Fault(kind="downgrade", delay=60, last=2))
    with in_background(lms, lambda: attempt(deps, laid.enterprise, run_id, DOWNGRADE)) as running:
        meet(lms, running, lambda: len(lms.calls("downgrade")) == 2)
        waits.begin_outage(deps.database, Unavailable("throttled", "another host was throttled", "", 30), 30)
        lms.release()
        outcome = running.result()
    assert outcome.retry is not None
    assert (outcome.retry.error.reason, outcome.retry.left) == ("throttled", 3)
    assert len(lms.calls("downgrade")) == 2
    run = run_of(deps.database, run_id)
    assert (run.licenses_downgraded, run.tries, run.owner) == (4, 0, None)
    let_waits_pass(deps.database)
    assert finish(deps, laid.enterprise, run_id).phase == Phase.FINISHED


@ON_SQLITE
def test_a_run_that_waited_for_20_hours_is_ended_and_its_reason_reported(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(TASK_MAX_RETRIES=3)
    run_id = open_one(deps, laid.enterprise)
    waits.begin_outage(deps.database, Unavailable("http_503", "away"), 60)
    comes_again(deps, laid, run_id)
    set_run(deps.database, run_of(deps.database, run_id), opened_at=deps.database.now() - timedelta(hours=21))
    release_stalled(deps.database, LONGEST, 0)
    ended = run_of(deps.database, run_id)
    assert ended.phase == Phase.ABANDONED
    assert "more than 20 hours ago" in str(ended.error)
    assert "all runs wait for the LMS since" in str(ended.error)


@ON_SQLITE
def test_a_prober_that_died_holds_nobody_up_for_ever(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(TASK_MAX_RETRIES=3)
    run_id = open_one(deps, laid.enterprise)
    waits.begin_outage(deps.database, Unavailable("http_503", "away"), 60)
    let_waits_pass(deps.database)
    assert waits.take_probe(deps.database, 60)  # and is killed
    assert comes_again(deps, laid, run_id).seconds >= 50
    assert lms.calls() == []
    let_waits_pass(deps.database)
    assert finish(deps, laid.enterprise, run_id).phase == Phase.FINISHED


@ON_SQLITE
def test_who_looks_during_a_probe_waits_one_interval_and_no_longer(lms: Simulator, make_test_deps: Make) -> None:
    """It waited for as long as a call may take, 130 s, though the LMS was back after one."""
    laid = lay(lms, licenses=2)
    deps = make_test_deps(TASK_RETRY_SECONDS=20)
    run_id = open_one(deps, laid.enterprise)
    waits.begin_outage(deps.database, Unavailable("http_503", "away"), 60)
    let_waits_pass(deps.database)
    lms.faults(Fault(delay=60))
    with in_background(lms, lambda: outages.look(deps)) as probing:
        meet(lms, probing, lambda: bool(lms.calls()))
        assert comes_again(deps, laid, run_id).seconds <= 25, "with its jitter"
        lms.faults()
        lms.release()
        assert probing.result() is None
    let_waits_pass(deps.database)
    assert finish(deps, laid.enterprise, run_id).phase == Phase.FINISHED


@ON_SQLITE
def test_a_probe_of_an_lms_that_never_answers_ends_before_the_next(
    lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay(lms, licenses=2)
    monkeypatch.setattr("worker.runs.outages.LEAST_PROBE_SECONDS", 0.5)
    deps = make_test_deps(TASK_RETRY_SECONDS=1, BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS=120)
    waits.begin_outage(deps.database, Unavailable("http_503", "away"), 60)
    let_waits_pass(deps.database)
    lms.faults(Fault(kind="downgrade", delay=60))
    wait = outages.look(deps)  # or the test's own time-out ends it
    lms.faults()
    lms.release()
    assert wait is not None
    assert wait.reason == "timeout"
    assert len(lms.calls("downgrade")) == 1


@ON_SQLITE
def test_a_booked_rate_is_waited_for_outside_and_spends_nothing(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=6)
    deps = make_test_deps(TASK_MAX_RETRIES=1, LMS_REQUESTS_PER_MINUTE=600, **batches_of(2))
    run_id = open_one(deps, laid.enterprise)
    others = update(Throttle).values(next_call_at=DatabaseNow(40))
    deps.database.transact(lambda session: session.execute(others))
    retry = comes_again(deps, laid, run_id)
    assert (retry.error.reason, retry.left, outage(deps), lms.calls()) == ("booked", 1, None, [])
    assert 30 <= retry.seconds <= 50
    run = run_of(deps.database, run_id)
    assert (run.tries, run.waits_for, run.retries) == (0, "booked", 1)


@ON_SQLITE
@pytest.mark.parametrize("per_minute", [30, 90, 600])
def test_a_low_rate_is_slow_and_gets_there(per_minute: int, lms: Simulator, make_test_deps: Make) -> None:
    """From a call's token to the call, and from the question for a learner to the unlink."""
    laid = lay(lms, licenses=1)
    deps = make_test_deps(LMS_REQUESTS_PER_MINUTE=per_minute, **unlinking(laid.enterprise))
    run = finish(deps, laid.enterprise, open_one(deps, laid.enterprise))
    assert (run.phase, run.learners_unlinked) == (Phase.FINISHED, 1)


@ON_SQLITE
@pytest.mark.parametrize("reason", ["booked", "too_late", "no_thread", "database"])
def test_a_probe_that_never_reached_the_lms_ends_no_outage(
    reason: str, lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = lay(lms, licenses=1)
    deps = make_test_deps(TASK_MAX_RETRIES=1)
    run_id = open_one(deps, laid.enterprise)
    waits.begin_outage(deps.database, Unavailable("http_503", "away"), 60)
    let_waits_pass(deps.database)
    error = (Postponed if reason == "booked" else Unavailable)(reason, "not asked", "", 1)
    monkeypatch.setattr(deps.lms, "sleep", raising(error))
    assert comes_again(deps, laid, run_id).error.reason == "http_503"
    assert outage(deps) is not None


def raising(error: Exception) -> Callable[[float], None]:
    def sleep(_: float) -> None:
        raise error

    return sleep


@ON_SQLITE
def test_a_time_out_is_reported_at_once_and_not_tried_again_in_place(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(TASK_MAX_RETRIES=3, BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS=2)
    run_id = open_one(deps, laid.enterprise)
    lms.faults(Fault(kind="downgrade", delay=100))
    retry = comes_again(deps, laid, run_id)
    lms.release()
    assert retry.error.reason == "timeout"
    assert len(lms.calls("downgrade")) == 1
    run = run_of(deps.database, run_id)
    assert (run.tries, run.tries_left) == (1, 2)


@ON_SQLITE
def test_the_waits_of_a_database_that_is_unreachable_are_short(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=2)
    run_id = open_one(make_test_deps(), laid.enterprise)
    away = make_test_deps(DATABASE_URL="mysql://root@127.0.0.1:9/nothing", TASK_RETRY_SECONDS=60)
    retry = comes_again(away, laid, run_id)
    assert (retry.error.reason, retry.left, retry.gives_up_at) == ("database", None, None)
    assert 60 <= retry.seconds <= 72
