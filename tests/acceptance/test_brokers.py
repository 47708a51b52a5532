"""The promises hold on both brokers: nothing differs but CELERY_BROKER_URL."""

import os
import re
import signal
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine
from support.eventually import eventually
from support.processes import (
    BOTH_BROKERS,
    WORKER_SQLITE,
    assert_all_done,
    children,
    command,
    kill_all_of,
    lay,
    leases_of,
    listed,
    post,
    runs,
)
from support.runs import assert_order, sent, times_sent

from simulator.data.rows import Data
from simulator.data.showcase import demo
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes
from worker.ledger.order import Phase

# RabbitMQ on the quickest database alone: what a broker does depends on no database. Redis and SQLite: test_night.py;
# Redis and PostgreSQL: tests/chaos.
EACH = [("redis", "mariadb"), ("redis", "mysql"), ("redis", "mysql-8"), ("rabbitmq", "sqlite")]


@pytest.mark.parametrize(("broker", "engine_kind"), EACH, indirect=True)
def test_the_demo_night_is_in_order_and_a_second_one_sends_nothing(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any
) -> None:
    shown = demo(data, datetime.now(UTC))
    data.flush()
    lms.seed()
    environment(**listed(*shown.unlink_enabled))
    worker()

    status, night = command("run")
    assert status == 1, "the malformed e-mail is held"
    assert {run["phase"] for run in night["runs"]} == {"finished"}
    assert len(night["runs"]) == 13, "two of the fifteen have nothing due"
    assert sum(run["licenses_held"] for run in night["runs"]) == len(shown.planted_held) == 1
    assert_order(lms.journal)
    assert lms.calls("unlink"), "or the order is not worth asserting"

    lms.journal.clear()
    assert command("run") == (0, {"runs": []})
    assert lms.journal.entries == [], "not even for a token"
    assert command("held")[1]["held"][0]["reason"] == "http_400"


@WORKER_SQLITE
@BOTH_BROKERS
def test_the_order_holds_under_duplicates_and_tasks_posted_by_hand(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any
) -> None:
    enterprises = lay(data, lms, enterprises=3, licenses=12)
    lms.lms.latency = 0.1
    environment(LICENSE_EXPIRATION_BATCH_SIZE=3, LMS_PARALLEL_REQUESTS=2, **listed(*enterprises))
    assert command("run", "--no-wait")[0] == 0
    post(
        *(
            (task, {"enterprise_customer_uuid": str(run.enterprise_customer_uuid), "run_id": str(run.id)})
            for run in runs(engine)
            for task in ("unlink_learners", "downgrade_enrollments", "unlink_learners")
        )
    )
    worker(concurrency=4)
    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 3, what="all three")
    assert_all_done(engine, lms, enterprises=3, licenses=12)


@WORKER_SQLITE
@BOTH_BROKERS
@pytest.mark.parametrize("victim", ["one process", "the worker"])
def test_a_run_survives_that_its_worker_is_killed_in_a_downgrade(
    victim: str, engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, beat: Any
) -> None:
    (enterprise,) = lay(data, lms, licenses=30)
    lms.faults(Fault(kind="downgrade", nth=2, delay=60, times=1))
    sizes = {"LMS_PARALLEL_REQUESTS": 1, "LICENSE_EXPIRATION_BATCH_SIZE": 10}
    environment(**leases_of(5), **sizes, **listed(enterprise))
    started = worker(app="support.fast_app")
    beat()
    assert command("run", "--no-wait", fast=True)[0] == 0
    lms.wait_for(lambda: len(lms.calls("downgrade")) == 2)
    if victim == "the worker":
        kill_all_of(started)
        lms.wait_for(lambda: lms.calls("downgrade")[1].client_gone)
        worker(name="another", app="support.fast_app")
    else:
        (run,) = runs(engine, Phase.DOWNGRADING)
        (child,) = [each for each in children(started) if f"process {each} " in str(run.owner)]
        os.kill(child, signal.SIGKILL)
        lms.wait_for(lambda: lms.calls("downgrade")[1].client_gone)
    lms.release()
    eventually(lambda: runs(engine, Phase.FINISHED), what="the run, taken up again once its lease had lapsed")
    assert_order(lms.journal)
    times = times_sent(lms, "downgrade")
    assert len(times) == 30
    twice = {name for name, count in times.items() if count > 1}
    assert twice == set(sent(lms, "downgrade")[1]), "only the batch that was in flight went out twice"
    assert set(times_sent(lms, "unlink").values()) == {1}


@WORKER_SQLITE
@BOTH_BROKERS
def test_an_lms_that_is_unreachable_is_retried_and_the_unlink_waits(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, processes: Processes
) -> None:
    away, well = lay(data, lms, enterprises=2)
    lms.faults(Fault(kind="downgrade", enterprise=str(away), status=503, times=5))
    environment(TASK_RETRY_SECONDS=1, **listed(away, well))
    worker(app="support.fast_app")
    status, night = command("run")
    assert (status, {run["phase"] for run in night["runs"]}) == (0, {"finished"})
    retries = {run.enterprise_customer_uuid: run.retries for run in runs(engine)}[away]
    lines = [line for line in processes.log("worker").splitlines() if "step is retried" in line]
    (left,) = re.findall(r"tries_left=(\d+)", lines[-1])
    assert len(lines) >= retries == 5 - int(left) >= 1, "TASK_MAX_RETRIES; a wait for an outage costs no try"
    assert "seconds=1 " in lines[0]
    assert all("the LMS answered 503: look at the LMS [http_503]" in line for line in lines)
    assert_order(lms.journal)
