"""The tasks while everything is paused: a scheduled night is noted, others are refused, reconcile starts nothing."""

from typing import Any

import pytest
from support.runs import ON_SQLITE, Make, lapse, lay, open_one, rows, run_of
from support.wired import Queue

import tasks
from simulator.lms.server import Simulator
from worker.db.ledger_tables import Heartbeat, Night, Run
from worker.ledger import claims, nights, runs, waits
from worker.ledger.order import DOWNGRADE, Phase

pytestmark = ON_SQLITE


def test_the_scheduled_night_is_noted_and_begun_by_the_first_reconcile_afterwards(
    queue: Queue, lms: Simulator, wired: Make
) -> None:
    laid = lay(lms, licenses=2)
    deps = wired()
    nights.note_and_find_overdue(deps.database, tasks._latest_night(deps) or deps.database.now())
    waits.pause(deps.database, "ops on host", "an upgrade")
    for _ in range(2):  # and when the message comes twice
        tasks.run_nightly.apply_async(headers={"scheduled": True})
        result = queue.next()
        assert (result.state, result.result["runs"]) == ("SUCCESS", [])
        assert "is noted, and begins later: everything is paused since" in result.result["detail"]
        assert "by ops on host: an upgrade" in result.result["detail"]
    heard = rows(deps.database.engine, Heartbeat)
    tasks.reconcile.apply_async()
    assert queue.next().result == {"stopped": 0, "paused": True}
    assert rows(deps.database.engine, Heartbeat) != heard, "beat and a worker are there"
    assert (rows(deps.database.engine, Run), queue.empty()) == ([], True)
    assert [night["tries"] for night in rows(deps.database.engine, Night)] == [0]
    waits.resume(deps.database)
    tasks.reconcile.apply_async()
    assert queue.next().result["nights"] == 1
    [run] = rows(deps.database.engine, Run)
    [night] = rows(deps.database.engine, Night)
    assert (run["enterprise_customer_uuid"], run["scheduled_for"]) == (laid.enterprise, night["scheduled_for"])
    assert (night["tries"], night["lease_until"]) == (1, None)


TRIGGERS = {"run_nightly": {}, "a rehearsal": {"dry_run": True}, "run_enterprise": {"enterprise_customer_uuid": None}}


@pytest.mark.parametrize("kwargs", TRIGGERS.values(), ids=TRIGGERS)
def test_what_is_posted_by_hand_fails_at_once_with_one_sentence(
    kwargs: dict[str, Any], queue: Queue, lms: Simulator, wired: Make
) -> None:
    laid, deps = lay(lms, licenses=2), wired()
    waits.pause(deps.database, "ops on host", "an upgrade")
    if "enterprise_customer_uuid" in kwargs:
        tasks.run_enterprise.apply_async(kwargs={"enterprise_customer_uuid": str(laid.enterprise)})
    else:
        tasks.run_nightly.apply_async(kwargs=kwargs)
    result = queue.next()
    assert result.state == "FAILURE"
    assert str(result.result).endswith("by ops on host: an upgrade: license-expiry resume ends the pause")
    assert (rows(deps.database.engine, Run), queue.empty()) == ([], True)


def test_reconcile_publishes_nothing_and_still_ends_what_was_stopped(queue: Queue, lms: Simulator, wired: Make) -> None:
    lost, stopped = lay(lms, licenses=2, seed=1), lay(lms, licenses=2, seed=2)
    deps = wired()
    opened = {each.enterprise: open_one(deps, each.enterprise) for each in (lost, stopped)}
    for enterprise, run_id in opened.items():
        claims.claim(deps.database, run_id, enterprise, DOWNGRADE, "a worker that dies", 300)
    runs.stop_run(deps.database, opened[stopped.enterprise], "ops on host", "a wrong plan")
    for run_id in opened.values():
        lapse(deps.database.engine, run_id)
    waits.pause(deps.database, "ops on host", "an upgrade")
    tasks.reconcile.apply_async()
    assert queue.next().result == {"stopped": 1, "paused": True}
    assert run_of(deps.database, opened[stopped.enterprise]).phase == Phase.STOPPED
    assert run_of(deps.database, opened[lost.enterprise]).phase == Phase.DOWNGRADING
    waits.resume(deps.database)
    tasks.reconcile.apply_async()
    result = queue.next().result
    assert (result["published"], result["stopped"]) == (1, 0)
    assert queue.take().headers["task"] == DOWNGRADE.task


def test_a_step_of_a_stopped_run_says_so_in_flower_and_a_paused_one_comes_again(
    queue: Queue, lms: Simulator, wired: Make
) -> None:
    laid, deps = lay(lms, licenses=2), wired()
    run_id = open_one(deps, laid.enterprise)
    waits.pause(deps.database, "ops on host", "an upgrade")
    tasks.publish(laid.enterprise, run_id, 1)
    result = queue.next()
    assert result.state == "RETRY"
    assert "by ops on host: an upgrade: license-expiry resume ends the pause; retried at" in str(result.result)
    runs.stop_run(deps.database, run_id, "ops on host", "a wrong plan")
    waits.resume(deps.database)
    again = queue.next()
    assert (again.state, again.result["skipped"]) == (
        "SUCCESS",
        f"run {run_id} is stopped by ops on host: a wrong plan",
    )
