"""The queues: no avalanche, a fair turn for everybody, triggers that no step holds up; two installations on one."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from sqlalchemy import Engine
from support.eventually import eventually
from support.processes import (
    BOTH_BROKERS,
    CELERY,
    ROOT,
    WORKER_SQLITE,
    assert_all_done,
    children,
    command,
    ended,
    lay,
    listed,
    post,
    runs,
    seconds_to_end,
)

from simulator.data.rows import Data
from simulator.data.schema import create_tables
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port
from tasks.broker import count_messages
from worker.db.engine import make_engine
from worker.ledger import migrations
from worker.ledger.identity import ledger_at
from worker.ledger.order import Phase

# How many messages wait


@BOTH_BROKERS
def test_messages_that_wait_are_counted(broker: str) -> None:
    app = Celery("a test", broker=broker, set_as_current=False)
    app.conf.task_default_queue = "license_expiry"
    if broker.startswith("redis"):
        app.conf.broker_transport_options = {"global_keyprefix": "license_expiry:"}
    assert count_messages(app) == 0, "of a queue that nobody has used yet"
    for _ in range(3):
        app.send_task("license_expiry.downgrade_enrollments")
    assert count_messages(app) == 3
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue("license_expiry")
        messages = [queue.get(timeout=10) for _ in range(3)]
        assert count_messages(app) == 0, "what a worker has received does not wait"
        for message in messages:
            message.ack()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_unreachable_is_not_taken_for_an_empty_one(scheme: str) -> None:
    away = Celery("away", broker=f"{scheme}://127.0.0.1:{free_port()}//", set_as_current=False)
    assert count_messages(away) is None


# Fair, and without an avalanche

LONG = 12
SHORT_SLICES = """
from support.fast_app import app
from support.shorten import shorten

shorten({"worker.runs.attempt.SLICE_SECONDS": 0.5})
"""


def messages_of_steps(client: redis.Redis) -> int:
    """How many messages of steps the broker has, with those that a worker has received."""
    transaction: Any = client.pipeline(transaction=True)
    transaction.lrange("license_expiry:license_expiry", 0, -1).hvals("license_expiry:unacked")
    waiting, received = transaction.execute()
    messages = [json.loads(text) for text in waiting] + [json.loads(text)[0] for text in received]
    steps = ("license_expiry.downgrade_enrollments", "license_expiry.unlink_learners")
    return sum(message["headers"]["task"] in steps for message in messages)


@pytest.mark.long
@WORKER_SQLITE
def test_long_enterprises_that_share_a_process_make_no_avalanche_and_a_small_one_has_its_turn(
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    worker: Any,
    beat: Any,
    redis_server: redis.Redis,
    processes: Processes,
    tmp_path: Path,
) -> None:
    lay(data, lms, enterprises=LONG, licenses=120)
    lms.lms.latency = 0.1
    (tmp_path / "short_slices.py").write_text(SHORT_SLICES)
    environment(LICENSE_EXPIRATION_BATCH_SIZE=1, LMS_PARALLEL_REQUESTS=1)
    worker(concurrency=1, app="short_slices", plain=True)
    beat()
    most: list[tuple[int, int]] = []

    def slices() -> int:
        most.append((messages_of_steps(redis_server) - len([run for run in runs(engine) if run.live]), slices_now()))
        return slices_now()

    def slices_now() -> int:
        return processes.log("worker").count("step continues in a new message")

    assert command("run", "--no-wait", fast=True)[0] == 0
    eventually(lambda: slices() > 1.5 * LONG, what="a round, in which each has waited for longer than QUEUED_SECONDS")
    (small,) = lay(Data(engine, seed=2), lms, licenses=1)
    assert command("run", "--enterprise", str(small), "--no-wait", fast=True)[0] == 0
    before = slices()
    eventually(lambda: slices() and lms.calls("downgrade", small), what="the small one's turn")
    assert slices_now() - before <= 2 * LONG
    assert max(most)[0] <= 5
    assert {run.publications for run in runs(engine)} == {0}
    assert {run.message_number for run in runs(engine)} == {1}


# Triggers


@WORKER_SQLITE
@BOTH_BROKERS
def test_triggers_and_reconcile_are_begun_while_every_process_is_in_a_step(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any
) -> None:
    first, second, third = lay(data, lms, enterprises=3, licenses=2)
    lms.faults(Fault(kind="downgrade", delay=100))
    environment()
    worker(concurrency=2, plain=True)
    call = [*CELERY, "worker", "call", "license_expiry.run_enterprise", "--queue=license_expiry"]
    for enterprise in (first, second):  # as they were posted before the control queue was there
        subprocess.run([*call, f'--kwargs={{"enterprise_customer_uuid": "{enterprise}"}}'], check=True, cwd=ROOT)
    lms.wait_for(lambda: len(lms.calls("downgrade")) == 2)
    began = time.monotonic()
    post(("run_enterprise", {"enterprise_customer_uuid": str(third)}), ("reconcile", {}))
    eventually(lambda: runs(engine, Phase.QUEUED), seconds=20, what="the third run, opened")
    assert time.monotonic() - began < 10
    assert [run.enterprise_customer_uuid for run in runs(engine, Phase.QUEUED)] == [third]
    assert len(lms.calls("downgrade")) == 2, "both processes are in their step still"
    lms.release()


def control_process(worker: subprocess.Popen[bytes]) -> int | None:
    """The id of the process that a worker has started for the control queue."""
    found = subprocess.run(
        ["pgrep", "-P", str(worker.pid), "-f", "control@"], capture_output=True, text=True, check=False
    )
    return int(found.stdout) if found.stdout else None


def runs_still(process: int) -> bool:
    """Is there a process of this id, which is not a zombie?"""
    status = Path(f"/proc/{process}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def ready(processes: Processes, times: int) -> Any:
    return lambda: (
        processes.log("worker").count("worker-control@")
        and (len(re.findall(r"worker-control@\S+ ready", processes.log("worker"))) == times)
    )


@pytest.mark.long
@WORKER_SQLITE
def test_the_control_process_is_started_again_and_ends_with_its_worker(
    engine: Engine, environment: Any, worker: Any, processes: Processes
) -> None:
    environment()
    started = worker(concurrency=1, plain=True)
    eventually(ready(processes, 1), what="the control process")
    first = control_process(started)
    assert first is not None
    os.kill(first, signal.SIGKILL)
    eventually(ready(processes, 2), what="another one")
    second = control_process(started)
    assert second is not None
    assert second != first
    seconds_to_end(started)
    assert not runs_still(second)
    assert "not shut down in time" not in processes.log("worker")


@pytest.mark.long
@WORKER_SQLITE
def test_a_control_process_ends_when_its_worker_was_killed(
    engine: Engine, environment: Any, worker: Any, processes: Processes
) -> None:
    environment()
    started = worker(concurrency=1, plain=True)
    eventually(ready(processes, 1), what="the control process")
    left = control_process(started)
    assert left is not None
    os.kill(started.pid, signal.SIGKILL)
    eventually(lambda: not runs_still(left), what="its end")
    assert "the worker of this control process is gone" in processes.log("worker")


@WORKER_SQLITE
def test_a_worker_whose_queues_are_named_starts_no_control_process(
    engine: Engine, environment: Any, worker: Any
) -> None:
    environment()
    started = worker(concurrency=1)
    assert control_process(started) is None
    assert len(children(started)) == 1


# Two installations on one broker


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Engine]:
    """The database of another installation, with every table."""
    (tmp_path / "theirs").mkdir()
    engine = make_engine(f"sqlite:///{tmp_path}/theirs/license_manager.sqlite3")
    create_tables(engine)
    migrations.upgrade(engine)
    yield engine
    engine.dispose()


@pytest.mark.long
@WORKER_SQLITE
@BOTH_BROKERS
def test_two_installations_on_one_broker_do_their_own_runs_and_are_reported(
    engine: Engine,
    theirs: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    worker: Any,
    processes: Processes,
) -> None:
    mine = lay(data, lms, enterprises=2)
    with Simulator(theirs) as their_lms:
        others = lay(Data(theirs, seed=2), their_lms, enterprises=2)
        own = {"DATABASE_URL": str(theirs.url), "LMS_URL": their_lms.url}
        own |= {"BACKEND_SERVICE_EDX_OAUTH2_SECRET": their_lms.client_secret} | listed(*others)
        environment(**listed(*mine))
        worker(name="ours", concurrency=1, app="support.fast_app")
        environment(**own)
        assert command("run", "--no-wait", fast=True)[0] == 0
        eventually(lambda: "step could not begin: retried" in processes.log("ours"), what="a refusal")
        assert [run.phase for run in runs(theirs)] == [Phase.QUEUED] * 2
        worker(name="theirs", concurrency=1, app="support.fast_app")
        environment(**listed(*mine))
        assert command("run", "--no-wait", fast=True)[0] == 0
        eventually(lambda: ended(engine) and ended(theirs), what="all four")
        findings = command("doctor")[1]["findings"]
        assert_all_done(engine, lms, enterprises=2, licenses=6)
        assert_all_done(theirs, their_lms, enterprises=2, licenses=6)
    ledgers = {name: ledger_at(str(each.url)) for name, each in (("ours", engine), ("theirs", theirs))}
    told = f"this task is of the ledger {ledgers['theirs']}, and this worker of the ledger {ledgers['ours']}"
    assert told in processes.log("ours")
    assert "set another CELERY_BROKER_URL for each" in processes.log("ours")
    (warning,) = (found for found in findings if "another ledger" in found["what"])
    assert warning["status"] == "warning"
    assert re.search(rf"theirs@\S+ \({ledgers['theirs']}\)$", warning["what"])
