"""A process of a worker that is killed within a step: Flower, the run's page and `status` say so, and what follows."""

import os
import re
import signal
import subprocess
from typing import Any

import pytest
import requests
from sqlalchemy import Engine
from support.eventually import eventually
from support.processes import (
    COMMAND,
    OPERATOR,
    ROOT,
    WORKER_SQLITE,
    children,
    command,
    lay,
    leases_of,
    listed,
    read,
    runs,
)

from simulator.data.rows import Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db.transactions import Database
from worker.ledger.order import Phase
from worker.web import html

FOLLOWS = re.compile(
    r"WorkerLostError\(.the process that ran this task was lost \(.*SIGKILL\).*; its run is resumed after "
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, when its lease has ended, by reconcile, which beat sends every 5 minutes.\)"
)


@pytest.mark.long
@WORKER_SQLITE
def test_a_process_killed_within_a_step_is_reported_as_lost_and_when_its_run_resumes(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, flower: str
) -> None:
    (enterprise,) = lay(data, lms)
    lms.faults(Fault(kind="downgrade", delay=120, times=1))
    environment(**leases_of(8), **listed(enterprise))
    started = worker(app="support.fast_app", concurrency=1)
    assert command("run", "--no-wait", fast=True)[0] == 0
    lms.wait_for(lambda: lms.calls("downgrade"))
    (run,) = runs(engine, Phase.DOWNGRADING)
    [task] = eventually(lambda: read(f"{flower}/api/tasks?state=STARTED"), what="Flower's having heard of it")
    page = requests.get(f"{flower}/task/{task}", auth=OPERATOR, timeout=10).text
    assert page.index('id="task-terminate"') < page.index("does not stop its run") < page.index("<dl")
    assert f"license-expiry stop {run.id} --reason TEXT" in page

    (child,) = [each for each in children(started) if f"process {each} " in str(run.owner)]
    os.kill(child, signal.SIGKILL)
    info = f"{flower}/api/task/info/{task}"
    eventually(lambda: read(info).get("state") == "FAILURE", what="the failure")
    assert FOLLOWS.fullmatch(read(info)["exception"]), read(info)["exception"]
    page = requests.get(f"{flower}/task/{task}", auth=OPERATOR, timeout=10).text
    assert "does not stop its run" not in page, "there is no button"

    eventually(lambda: "its worker was lost" in html.run_page(Database(engine), str(run.id)), what="the lease's end")
    told = subprocess.run([*COMMAND, "status"], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert f"{enterprise}: its worker was lost (" in told.stdout
    assert "reconcile, which beat sends every 5 minutes, resumes the run" in told.stdout
    lms.release()
