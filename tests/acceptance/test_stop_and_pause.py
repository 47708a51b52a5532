"""Stop, pause and resume with real processes: what holds, what goes on, and the night that a pause held back."""

import re
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine
from support.eventually import eventually
from support.processes import (
    BOTH_BROKERS,
    WORKER_SQLITE,
    a_minute_ago,
    assert_all_done,
    at,
    command,
    lay,
    listed,
    note_an_older_night,
    post,
    runs,
)
from support.runs import assert_order, rows, times_sent

from simulator.data.rows import DAY, Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes
from worker.db.ledger_tables import Night
from worker.ledger.nights import PASSED_OVER
from worker.ledger.order import ENDED, Phase

SMALL = {"LICENSE_EXPIRATION_BATCH_SIZE": 2, "BULK_UNLINK_BATCH_SIZE": 2, "LMS_PARALLEL_REQUESTS": 1}


@pytest.mark.long
@WORKER_SQLITE
@BOTH_BROKERS
def test_a_pause_in_the_middle_of_a_night_holds_everything_and_resume_finishes_it(
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    worker: Any,
    beat: Any,
    reconciled: Any,
    processes: Processes,
) -> None:
    enterprises = lay(data, lms, enterprises=4, licenses=12)
    lms.faults(Fault(kind="downgrade", delay=60, last=2))
    environment(**SMALL | {"LMS_PARALLEL_REQUESTS": 2}, **listed(*enterprises))
    worker(app="support.fast_app")
    beat()
    assert command("run", "--no-wait", fast=True)[0] == 0
    lms.wait_for(lambda: len(lms.calls("downgrade")) == 2)  # one in each process; two runs wait for these
    status, told = command("pause", "--reason", "the LMS is upgraded")
    assert (status, told["paused"]["reason"]) == (0, "the LMS is upgraded")
    lms.release()
    # A run at work hears of it before its next call, the others when they begin.
    eventually(lambda: {run.waits_for for run in runs(engine)} == {"paused"}, seconds=15, what="all runs wait")
    assert sum(run.licenses_downgraded for run in runs(engine)) == 4, "what was in flight is recorded"
    reconciled(4)  # long enough for each run to have come again, and for reconcile to have tried to publish it
    assert (len(lms.calls("downgrade")), lms.calls("unlink")) == (2, []), "nothing is sent"
    post(("run_nightly", {}))
    eventually(lambda: "task failed" in processes.log("worker"), what="a refusal")
    assert re.search(
        "everything is paused since .*: the LMS is upgraded: license-expiry resume ends the pause",
        processes.log("worker"),
    )
    assert command("resume")[0] == 0
    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 4, what="the night")
    assert_all_done(engine, lms, enterprises=4, licenses=12)


@pytest.mark.long
@WORKER_SQLITE
@BOTH_BROKERS
def test_a_stop_ends_one_enterprise_s_run_and_leaves_the_others(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, beat: Any
) -> None:
    stopped, *others = enterprises = lay(data, lms, enterprises=3, licenses=12)
    lms.lms.latency = 0.2
    lms.faults(Fault(kind="downgrade", enterprise=str(stopped), nth=2, delay=60, times=1))
    environment(**SMALL, **listed(*enterprises))
    worker(app="support.fast_app")
    beat()
    assert command("run", "--no-wait", fast=True)[0] == 0
    lms.wait_for(lambda: len(lms.calls("downgrade", stopped)) == 2)
    why = ("--reason", "the contract was extended")
    status, told = command("stop", "--enterprise", str(stopped), *why, "--no-wait")
    assert (status, told["runs"][0]["phase"]) == (1, "downgrading"), "its call is in flight"
    lms.release()
    status, told = command("stop", "--enterprise", str(stopped), *why)
    assert status == 0
    (run,) = runs(engine, Phase.STOPPED)
    assert run.enterprise_customer_uuid == stopped
    assert str(run.error).endswith(": the contract was extended")
    assert run.licenses_downgraded == 4, "what was in flight stays done"
    eventually(lambda: all(run.phase in ENDED for run in runs(engine)), what="the others")
    assert {run.enterprise_customer_uuid for run in runs(engine, Phase.FINISHED)} == set(others)
    assert len(lms.calls("downgrade", stopped)) == 2
    assert lms.calls("unlink", stopped) == []
    assert_order(lms.journal)
    lms.lms.latency = 0
    assert command("run")[0] == 0, "what is left is due"
    assert {UUID(str(run.enterprise_customer_uuid)) for run in runs(engine, Phase.FINISHED)} == set(enterprises)
    assert set(times_sent(lms, "downgrade").values()) == {1}


@pytest.mark.long
@WORKER_SQLITE
@BOTH_BROKERS
def test_a_night_that_is_scheduled_for_a_pause_is_begun_once_after_it(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, beat: Any
) -> None:
    enterprises = lay(data, lms, enterprises=2)
    missed = a_minute_ago()
    older = note_an_older_night(engine, missed - 2 * DAY)
    environment(**at(missed), **listed(*enterprises))
    assert command("pause", "--reason", "an upgrade")[0] == 0
    worker(app="support.fast_app")
    beat()

    def nights() -> dict[datetime, int]:
        return {row["scheduled_for"]: row["tries"] for row in rows(engine, Night)}

    eventually(lambda: nights() == {older: 1, missed: 0}, what="the night, noted")
    assert (runs(engine), lms.calls()) == ([], [])
    assert command("resume")[0] == 0
    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 2, what="the night")
    assert nights() == {older: 1, missed: 1}
    assert PASSED_OVER not in nights().values()
    assert_all_done(engine, lms, enterprises=2, licenses=6)
