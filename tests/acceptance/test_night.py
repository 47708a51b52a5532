"""A night through a real broker and a real prefork worker: what is seen of it, and what sets it off."""

import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis
import requests
from sqlalchemy import Engine, update
from support.eventually import eventually
from support.processes import OPERATOR, WORKER_SQLITE, command, lay, listed, read, runs
from support.runs import assert_order, rows, scan

from simulator.data.rows import DAY, Data
from simulator.data.showcase import MALFORMED_EMAIL, demo
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes
from worker.db.ledger_tables import Night, Run
from worker.ledger.order import Phase


@WORKER_SQLITE
def test_no_email_address_is_seen_anywhere(
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    worker: Any,
    processes: Processes,
    redis_server: redis.Redis,
    flower: str,
) -> None:
    shown = demo(data, datetime.now(UTC))
    data.flush()
    lms.seed()
    environment(LOG_FORMAT="json", TASK_RETRY_SECONDS=1, **listed(*shown.unlink_enabled))
    lms.faults(Fault(kind="unlink", nth=1, status=503, times=1), Fault(kind="unlink", nth=3, status=500, times=1))
    heard: list[str] = []
    with redis_server.monitor() as monitor:  # type: ignore[no-untyped-call]  # all that goes through Redis, not only what is left of it
        listening = threading.Thread(target=lambda: heard.extend(str(each) for each in hear(monitor)), daemon=True)
        listening.start()
        worker()
        assert command("run")[0] == 1
        ids = list(read(f"{flower}/api/tasks"))
        addresses = ["/tasks", "/workers", "/broker", "/api/tasks", "/metrics", *(f"/task/{each}" for each in ids)]
        pages = {each: requests.get(flower + each, auth=OPERATOR, timeout=10).text for each in addresses}
        redis_server.publish("the", "end")
        listening.join(10)
    assert any(page.startswith("/task/") for page in pages)
    assert "unlink_learners" in "".join(heard)
    logs = {name: processes.log(name) for name in ("worker", "flower", "redis")}
    assert scan({**pages, **logs, "Redis": "\n".join(heard)}, engine) == []
    assert scan({"the scan itself": f"To: {MALFORMED_EMAIL}"}, engine) == ["the scan itself"]
    assert_the_log_is_a_story(logs["worker"], runs(engine))


def assert_the_log_is_a_story(log: str, runs: list[Run]) -> None:
    """Some lines for each run, however many its batches, and each says whose it is."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    told: dict[str, list[str]] = {}
    for line in lines:
        if line["event"].startswith("step"):
            assert line.keys() >= {"timestamp", "level", "enterprise", "run", "step", "task"}
            told.setdefault(line["run"], []).append(f"{line['step']}: {line['event']}")
    whole = [f"{step}: {event}" for step in ("downgrade", "unlink") for event in ("step begins", "step ends")]
    assert told.keys() == {str(run.id) for run in runs}
    assert [story for run in runs if run.retries == 0 for story in [told[str(run.id)]] if story != whole] == []
    assert sum(len(story) for story in told.values()) <= 6 * len(runs)


def hear(monitor: Any) -> Any:
    for each in monitor.listen():
        yield each["command"]
        if each["command"] == "PUBLISH the end":
            return


@pytest.mark.long
@WORKER_SQLITE
def test_flower_starts_a_run_and_shows_a_wrong_argument_as_one_sentence(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, flower: str
) -> None:
    enterprise, _ = lay(data, lms, enterprises=2)
    environment(**listed(enterprise))
    worker()
    task = "/api/task/async-apply/license_expiry.run_enterprise"

    body = {"kwargs": {"enterprise_customer_uuid": str(enterprise)}}
    answer = requests.post(flower + task, json=body, auth=OPERATOR, timeout=10)
    answer.raise_for_status()
    eventually(lambda: runs(engine, Phase.FINISHED), what="the run that Flower started")
    assert {run.enterprise_customer_uuid for run in runs(engine)} == {enterprise}
    assert_order(lms.journal)
    result = eventually(lambda: finished(flower, answer.json()["task-id"]))
    assert result["state"] == "SUCCESS"
    assert str(runs(engine)[0].id) in result["result"]

    answer = requests.post(flower + task, json={"kwargs": {"enterprise_customer_uuid": "x"}}, auth=OPERATOR, timeout=10)
    result = eventually(lambda: finished(flower, answer.json()["task-id"]))
    assert result["state"] == "FAILURE"
    assert "enterprise_customer_uuid is not a UUID: 'x'" in result["exception"]
    assert requests.post(flower + task, json=body, timeout=10).status_code == 401
    assert len(runs(engine)) == 1


def finished(flower: str, task_id: str) -> dict[str, Any]:
    info: dict[str, Any] = read(f"{flower}/api/task/info/{task_id}")
    return info if info.get("state") in ("SUCCESS", "FAILURE") else {}


@WORKER_SQLITE
def test_beat_fires_a_night_once_and_the_next_one_again(
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    worker: Any,
    beat: Any,
    processes: Processes,
    tmp_path: Path,
) -> None:
    (first,) = lay(data, lms, days=10)
    environment()
    worker()
    (tmp_path / "every_two_seconds.py").write_text(
        "from worker.celery import app\n"
        "app.conf.beat_schedule = {**app.conf.beat_schedule}\n"
        "app.conf.beat_schedule['nightly'] = {**app.conf.beat_schedule['nightly'], 'schedule': 2.0}\n"
    )
    beat(app="every_two_seconds")

    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 1, what="the night that beat fires")
    (second,) = lay(Data(engine, seed=2), lms, days=10)
    eventually(lambda: "the night has already begun" in processes.log("worker"), what="the same night, fired again")
    assert [run.enterprise_customer_uuid for run in runs(engine)] == [first]
    let_a_day_pass(engine)
    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 2, what="the next night")
    assert [run.enterprise_customer_uuid for run in runs(engine)] == [first, second]


def let_a_day_pass(engine: Engine) -> None:
    """Have the one night that the ledger knows be the one of the day before."""
    (night,) = rows(engine, Night)
    with engine.begin() as connection:
        connection.execute(update(Night).values(scheduled_for=night["scheduled_for"] - DAY))


@WORKER_SQLITE
def test_when_retries_are_spent_the_run_fails_and_nobody_is_unlinked(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any
) -> None:
    away, well = lay(data, lms, enterprises=2)
    lms.faults(Fault(kind="downgrade", enterprise=str(away), drop="before"))
    environment(TASK_MAX_RETRIES=0, TASK_RETRY_SECONDS=1, **listed(away, well))
    worker()
    status, night = command("run")
    assert status == 1
    by_enterprise = {UUID(run["enterprise_customer_uuid"]): run for run in night["runs"]}
    assert by_enterprise[away]["phase"] == "failed"
    assert "connection_error" in by_enterprise[away]["error"]
    assert by_enterprise[well]["phase"] == "finished"
    assert lms.calls("unlink", away) == []


@pytest.mark.long
@WORKER_SQLITE
def test_a_step_longer_than_its_time_slice_hands_itself_on(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, processes: Processes
) -> None:
    (enterprise,) = lay(data, lms, licenses=12)
    lms.lms.latency = 1.0
    times = {"BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS": 3, "BULK_UNLINK_REQUEST_TIMEOUT_SECONDS": 3}
    times |= {"LEASE_SECONDS": 14, "TASK_TIME_LIMIT_SECONDS": 15}
    environment(LICENSE_EXPIRATION_BATCH_SIZE=1, LMS_PARALLEL_REQUESTS=1, **times, **listed(enterprise))
    worker()
    assert command("run")[0] == 0
    assert "step continues in a new message" in processes.log("worker")
    assert len(lms.calls("downgrade")) == 12
    assert_order(lms.journal)
