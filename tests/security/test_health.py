"""A worker that was told to take nothing answers a ping. The health check is not content with that, nor is doctor."""

import subprocess
import sys
from collections.abc import Callable
from socket import gethostname
from typing import Any

import pytest
from celery import Celery
from support.eventually import eventually
from support.processes import ROOT, WORKER_SQLITE, command

from simulator.processes import Processes
from worker.settings import CONTROL_QUEUE, STEPS_QUEUE


def health() -> tuple[int, str]:
    asked = [sys.executable, "-m", "tasks.healthy"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@WORKER_SQLITE
@pytest.mark.usefixtures("engine")
@pytest.mark.timeout(300)
def test_a_worker_that_takes_nothing_is_not_well(
    environment: Any, worker: Callable[..., Any], processes: Processes, broker: str
) -> None:
    environment()
    worker(name="celery", plain=True)
    control = f"celery-control@{gethostname()}"
    eventually(lambda: f"{control} ready." in processes.log("celery"), what="its control process")
    assert health() == (0, "")
    app = Celery(broker=broker)  # anybody's who reaches the broker
    app.conf.broker_transport_options = {"global_keyprefix": "license_expiry:"}
    hosts = {f"celery@{gethostname()}": STEPS_QUEUE, control: CONTROL_QUEUE}
    for host, queue in hosts.items():
        app.control.cancel_consumer(queue, destination=[host], reply=True, timeout=20, limit=1)
    assert len(app.control.ping(list(hosts), timeout=20, limit=2) or []) == 2
    status, said = health()
    assert (status, len(said.splitlines())) == (1, 2)
    told = [found["what"] for found in command("doctor")[1]["findings"] if found["status"] == "warning"]
    for host, queue in hosts.items():
        what = f"{host} takes no messages from its queue {queue}: "
        assert what in said
        assert [each for each in told if each.startswith(what)]
        assert f"celery -A worker control --destination {host} add_consumer {queue}.\n" in said
        app.control.add_consumer(queue, destination=[host], reply=True, timeout=20, limit=1)
    assert health() == (0, "")


@WORKER_SQLITE
@pytest.mark.usefixtures("engine")
def test_a_worker_that_is_not_there_is_not_well(environment: Any) -> None:
    environment()
    status, said = health()
    assert (status, "does not answer" in said) == (1, True)
