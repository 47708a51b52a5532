"""An LMS that throttles or is away, with real processes: who is told what, and when; and who asks the LMS meanwhile."""

import os
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
import requests
from sqlalchemy import Engine
from support.eventually import eventually
from support.processes import (
    COMMAND,
    WORKER_SQLITE,
    assert_all_done,
    command,
    ended,
    lay,
    listed,
    read,
    runs,
)
from support.runs import rows

from simulator.data.rows import Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port, listens
from worker.db.ledger_tables import Retry
from worker.ledger.order import Phase

# `EXAMPLES=300` plays what the issue asks for; it takes four minutes on two processors.
ENTERPRISES = int(os.environ.get("EXAMPLES", "40"))
INTERVAL = 3


def pages(processes: Processes) -> str:
    port = free_port()
    processes.start("serve", [*COMMAND, "serve", "--port", str(port)], lambda: listens(port))
    return f"http://127.0.0.1:{port}"


@pytest.mark.long
@WORKER_SQLITE
def test_the_first_429_is_seen_everywhere_within_five_seconds_and_the_processes_are_free(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, flower: str, processes: Processes
) -> None:
    enterprise, other = lay(data, lms, enterprises=2)
    environment(**listed(enterprise, other))
    lms.faults(Fault(kind="unlink", status=429, headers={"Retry-After": "30"}))
    address = pages(processes)
    worker()
    assert command("run", "--enterprise", str(enterprise), "--no-wait")[0] == 0
    refused = eventually(lambda: [entry for entry in lms.calls("unlink") if entry.status == 429], what="the 429")[0]

    def told() -> dict[str, bool]:
        [run] = [run for run in command("status")[1]["runs"] if run["phase"] == Phase.UNLINKING]
        page = requests.get(f"{address}/runs/{run['run_id']}", timeout=10).text
        front = requests.get(address, timeout=10).text
        metrics = requests.get(f"{address}/metrics", timeout=10).text
        retried = list(read(f"{flower}/api/tasks?state=RETRY").values())
        return {
            "status": run.get("waits_for") == "throttled" and bool(run["again_at"]),
            "the run's page": "waits: the LMS&#x27;s throttle; retried at" in page.replace("&#39;", "&#x27;"),
            "the first page": "LMS throttles calls" in front and "next try " in front,
            "the waiting runs": 'license_expiry_waiting_runs{reason="throttled"} 1.0' in metrics,
            "the outage": "\nlicense_expiry_outage_next_try_timestamp_seconds 1." in metrics,
            "the 429": 'outcome="http_429",step="unlink"' in metrics or 'step="unlink",outcome="http_429"' in metrics,
            "Flower": any("retried at" in str(task) and "[throttled]" in str(task) for task in retried),
            "the log": "the LMS is unavailable: all runs wait" in processes.log("worker"),
        }

    eventually(lambda: set(told().values()) == {True}, 20, what="everybody's being told")
    assert refused.ended_at is not None
    [wait] = rows(engine, Retry)
    assert wait["at"] - refused.ended_at < timedelta(seconds=5)
    assert 25 <= (wait["again_at"] - wait["at"]).total_seconds() <= 40
    # Nobody sleeps meanwhile: what needs no LMS is done, and what needs it is asked what it waits for.
    assert command("run", "--enterprise", str(other), "--dry-run")[0] == 0
    assert command("run", "--enterprise", str(other), "--no-wait")[0] == 0
    others = [run.id for run in runs(engine) if run.enterprise_customer_uuid == other and not run.dry_run]
    assert len(others) == 1

    def begun() -> bool:
        return any(run.waits_for or run.downgrade_began_at for run in runs(engine) if run.id in others)

    eventually(begun, 15, what="the other's turn")


@pytest.mark.long
@WORKER_SQLITE
def test_an_outage_is_probed_once_an_interval_and_every_run_goes_on_by_itself(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any
) -> None:
    enterprises = lay(data, lms, enterprises=ENTERPRISES, licenses=2)
    environment(TASK_RETRY_SECONDS=INTERVAL, TASK_MAX_RETRIES=1, **listed(*enterprises))
    worker()
    lms.faults(Fault(status=503))
    assert command("run", "--no-wait")[0] == 0
    eventually(lambda: len([run for run in runs(engine) if run.waits_for]) == ENTERPRISES, 300, what="all wait")
    met = len(lms.calls())
    eventually(lambda: len(lms.calls()) >= met + 3, 120, what="three probes")
    asked = sorted(entry.started_at for entry in lms.calls())[met:]
    apart = [(later - earlier).total_seconds() for earlier, later in pairwise(asked)]
    assert min(apart) >= INTERVAL - 1, "asked at most once an interval"
    lms.faults()
    eventually(lambda: ended(engine), 300, what="all runs, by themselves")
    assert_all_done(engine, lms, ENTERPRISES, 2, status=200)
    waited = rows(engine, Retry)
    assert {row["reason"] for row in waited} <= {"http_503", "token_http_503"}
    assert len({row["run_id"] for row in waited}) == ENTERPRISES, "each run's page tells of it"
    assert max(run.tries_left or 0 for run in runs(engine)) <= 1
