"""The image's health check: it sees a worker or a beat that hangs or takes nothing, and outlasts a broker outage."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest
import redis
from celery import Celery
from support.eventually import eventually
from support.processes import ROOT, WORKER_SQLITE, command

from simulator.processes import Processes
from worker.settings import CONTROL_QUEUE, STEPS_QUEUE

pytestmark = [WORKER_SQLITE, pytest.mark.usefixtures("engine"), pytest.mark.timeout(300)]
WORKER, CONTROL = f"celery@{gethostname()}", f"celery-control@{gethostname()}"
QUEUES = {WORKER: STEPS_QUEUE, CONTROL: CONTROL_QUEUE}


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of the liveness files of the processes that are started from now on."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path / f"license-expiry-{os.getuid()}"


def health(files: Path) -> tuple[int, str]:
    [check] = re.findall(r"HEALTHCHECK .*\n  CMD (.+)", (ROOT / "Dockerfile").read_text())
    check = check.replace("/tmp", str(files.parent))
    done = subprocess.run(["sh", "-c", check], capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr
    return done.returncode, done.stdout


def seconds_since_noted(file: Path) -> float:
    return time.time() - file.stat().st_mtime


@pytest.mark.long
def test_a_worker_that_takes_nothing_is_not_well(
    files: Path, environment: Any, worker: Callable[..., Any], processes: Processes, broker: str
) -> None:
    environment()
    worker(name="celery", plain=True)
    eventually(lambda: f"{CONTROL} ready." in processes.log("celery"), what="its control process")
    assert {path.name for path in files.iterdir()} == set(QUEUES)
    assert health(files) == (0, "")
    app = Celery(broker=broker)  # anybody's who reaches the broker
    app.conf.broker_transport_options = {"global_keyprefix": "license_expiry:"}
    for host, queue in QUEUES.items():
        app.control.cancel_consumer(queue, destination=[host], reply=True, timeout=20, limit=1)
    assert len(app.control.ping(list(QUEUES), timeout=20, limit=2) or []) == 2
    eventually(lambda: health(files)[1].count(" takes no messages from its queue ") == 2, 40)
    status, said = health(files)
    assert status == 1
    told = [found["what"] for found in command("doctor")[1]["findings"] if found["status"] == "warning"]
    for host, queue in QUEUES.items():
        what = f"{host} takes no messages from its queue {queue}: "
        assert what in said
        assert [each for each in told if each.startswith(what)]
        assert f"celery -A worker control --destination {host} add_consumer {queue}" in said
        app.control.add_consumer(queue, destination=[host], reply=True, timeout=20, limit=1)
    eventually(lambda: health(files) == (0, ""), 40)


def test_a_broker_that_is_unreachable_makes_nobody_look_dead_and_a_process_that_hangs_does(
    files: Path, environment: Any, worker: Callable[..., Any], beat: Callable[..., Any], redis_server: redis.Redis
) -> None:
    environment()
    worker(name="celery")
    running = beat()
    noted = [files / WORKER, files / "beat"]
    eventually(lambda: all(file.exists() for file in noted), what="both have begun")
    assert health(files) == (0, "")
    redis_server.shutdown(nosave=True)
    running.kill()
    running.wait()
    for file in noted:
        os.utime(file, (0, 0))
        assert str(file) in health(files)[1]
    hanging = beat("late")  # one that has never been connected
    eventually(lambda: all(seconds_since_noted(file) < 60 for file in noted), 90, "both note it without a broker")
    assert health(files) == (0, "")
    hanging.send_signal(signal.SIGSTOP)
    long_ago = time.time() - 31 * 60
    os.utime(files / "beat", (long_ago, long_ago))
    time.sleep(2)
    assert health(files) == (1, f"{files}/beat\n")
