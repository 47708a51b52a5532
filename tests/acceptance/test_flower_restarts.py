"""A Flower that is started again still lists the tasks of the night, whether it was told to end or killed."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import Engine
from support.eventually import eventually
from support.processes import CELERY, OPERATOR, WORKER_SQLITE, lay, listed, post, read, runs, seconds_to_end

from simulator.data.rows import Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port, listens
from worker.ledger.order import Phase

ENDS = {"told to end": (signal.SIGTERM, 3_600_000), "killed": (signal.SIGKILL, 500)}


def start_flower(processes: Processes, folder: Path, interval: int) -> tuple[str, subprocess.Popen[bytes]]:
    """A Flower that saves its list this often, in milliseconds; its address."""
    port = free_port()
    keep = ["--persistent=True", f"--db={folder}/flower", f"--state_save_interval={interval}", "--max_tasks=20000"]
    start = [*CELERY, "worker", "flower", f"--port={port}", *keep]
    return f"http://127.0.0.1:{port}", processes.start("flower", start, lambda: listens(port))


def known(flower: str) -> dict[str, tuple[str, ...]]:
    """What Flower's API tells of each task."""
    told = read(f"{flower}/api/tasks")
    return {task: tuple(str(each.get(name)) for name in ("name", "state", "kwargs")) for task, each in told.items()}


@pytest.mark.long
@WORKER_SQLITE
@pytest.mark.parametrize("end", ENDS)
def test_a_flower_that_is_started_again_lists_the_tasks_as_they_were(
    end: str,
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    worker: Any,
    processes: Processes,
    tmp_path: Path,
) -> None:
    how, interval = ENDS[end]
    well, away = lay(data, lms, enterprises=2)
    environment(TASK_RETRY_SECONDS=600, **listed(well, away))
    folder = tmp_path / "kept"
    folder.mkdir()
    flower, process = start_flower(processes, folder, interval)
    worker(app="support.fast_app")
    post(("run_enterprise", {"enterprise_customer_uuid": str(well)}))
    eventually(lambda: runs(engine, Phase.FINISHED), what="the run")
    lms.faults(Fault(status=503, headers={"Retry-After": "600"}))
    post(("run_nightly", {}))
    eventually(lambda: read(f"{flower}/api/tasks?state=RETRY"), what="the step that is to be retried")
    eventually(lambda: len(read(f"{flower}/api/tasks?state=SUCCESS")) == 4, what="Flower's having heard of all")
    before = known(flower)
    assert len(before) == 5
    if end == "killed":
        heard = time.time()
        eventually(lambda: any(file.stat().st_mtime > heard + 1 for file in folder.iterdir()), what="a save")
    seconds_to_end(process, how)

    flower, _ = start_flower(processes, folder, interval)
    assert known(flower) == before
    [retried] = read(f"{flower}/api/tasks?state=RETRY")
    shown = requests.get(f"{flower}/task/{retried}", auth=OPERATOR, timeout=10)
    assert shown.status_code == 200
    assert "http_503" in shown.text
    assert "Failed to load" not in processes.log("flower")
