"""A night through a real broker and a real prefork worker, and what must hold after any night."""

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import redis
import requests
from nights import assert_order, scan
from sqlalchemy import Engine, select
from waiting import eventually

from simulator.data import Data
from simulator.faults import Fault
from simulator.lms import Simulator
from simulator.processes import Processes, free_port, listens
from simulator.showcase import MALFORMED_EMAIL, demo
from worker.models import Phase, Run

CELERY = [sys.executable, "-m", "celery", "-A", "worker"]
COMMAND = [sys.executable, "-c", "from worker.cli import main; main()"]
DAY = timedelta(days=1)
WORKER_SQLITE = pytest.mark.parametrize("engine_kind", ["sqlite"], indirect=True)
WORKER_ENGINES = pytest.mark.parametrize("engine_kind", ["sqlite", "postgresql", "mariadb"], indirect=True)


def command(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Run license-expiry with --json; give its exit status and what it printed."""
    done = subprocess.run([*COMMAND, *arguments, "--json"], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def runs(engine: Engine, *phases: Phase) -> list[Any]:
    """The runs in these phases (all when none is named), in order of opening."""
    query = select(Run.id, Run.enterprise_customer_uuid, Run.phase, Run.error, Run.retries).order_by(Run.opened_at)
    with engine.connect() as connection:
        return list(connection.execute(query.where(Run.phase.in_(phases)) if phases else query))


def lay(data: Data, lms: Simulator, enterprises: int = 1, licenses: int = 6, days: float = 100) -> list[UUID]:
    """Enterprises with one plan each that expired so many days ago; give their UUIDs."""
    made = []
    for _ in range(enterprises):
        agreement = data.agreement()
        plan = data.plan(agreement, expires=data.now - days * DAY)
        for _ in range(licenses):
            data.license(plan)
        made.append(agreement.enterprise_customer_uuid)
    data.flush()
    lms.seed()
    return made


def listed(*enterprises: UUID) -> dict[str, str]:
    return {"CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED": ",".join(map(str, enterprises))}


@WORKER_ENGINES
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
def test_no_email_address_is_seen_anywhere(
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    worker: Any,
    processes: Processes,
    broker: redis.Redis,
    flower: str,
) -> None:
    shown = demo(data, datetime.now(UTC))
    data.flush()
    lms.seed()
    environment(**listed(*shown.unlink_enabled))
    lms.faults(Fault(kind="unlink", nth=1, status=503, times=1), Fault(kind="unlink", nth=3, status=500, times=1))
    heard: list[str] = []
    with broker.monitor() as monitor:  # type: ignore[no-untyped-call]  # all that goes through Redis, not only what is left of it
        listening = threading.Thread(target=lambda: heard.extend(str(each) for each in hear(monitor)), daemon=True)
        listening.start()
        worker()
        assert command("run")[0] == 1
        ids = list(requests.get(f"{flower}/api/tasks", auth=("operator", "secret"), timeout=10).json())
        addresses = ["/tasks", "/workers", "/broker", "/api/tasks", "/metrics", *(f"/task/{each}" for each in ids)]
        pages = {each: requests.get(flower + each, auth=("operator", "secret"), timeout=10).text for each in addresses}
        broker.publish("the", "end")
        listening.join(10)
    assert any(page.startswith("/task/") for page in pages)
    assert "unlink_learners" in "".join(heard)
    logs = {name: processes.log(name) for name in ("worker", "flower", "redis")}
    assert scan({**pages, **logs, "Redis": "\n".join(heard)}, engine) == []
    assert scan({"the scan itself": f"To: {MALFORMED_EMAIL}"}, engine) == ["the scan itself"]


def hear(monitor: Any) -> Any:
    for each in monitor.listen():
        yield each["command"]
        if each["command"] == "PUBLISH the end":
            return


@WORKER_SQLITE
def test_flower_starts_a_run_and_shows_a_wrong_argument_as_one_sentence(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, flower: str
) -> None:
    enterprise, _ = lay(data, lms, enterprises=2)
    environment(**listed(enterprise))
    worker()
    task = "/api/task/async-apply/license_expiry.run_enterprise"
    operator = ("operator", "secret")

    body = {"kwargs": {"enterprise_customer_uuid": str(enterprise)}}
    answer = requests.post(flower + task, json=body, auth=operator, timeout=10)
    answer.raise_for_status()
    eventually(lambda: runs(engine, Phase.FINISHED), what="the run that Flower started")
    assert {run.enterprise_customer_uuid for run in runs(engine)} == {enterprise}
    assert_order(lms.journal)
    result = eventually(lambda: finished(flower, answer.json()["task-id"]))
    assert result["state"] == "SUCCESS"
    assert str(runs(engine)[0].id) in result["result"]

    answer = requests.post(flower + task, json={"kwargs": {"enterprise_customer_uuid": "x"}}, auth=operator, timeout=10)
    result = eventually(lambda: finished(flower, answer.json()["task-id"]))
    assert result["state"] == "FAILURE"
    assert "enterprise_customer_uuid is not a UUID: 'x'" in result["exception"]
    assert requests.post(flower + task, json=body, timeout=10).status_code == 401
    assert len(runs(engine)) == 1


def finished(flower: str, task_id: str) -> dict[str, Any]:
    answer = requests.get(f"{flower}/api/task/info/{task_id}", auth=("operator", "secret"), timeout=10)
    info = answer.json() if answer.ok else {}
    return info if info.get("state") in ("SUCCESS", "FAILURE") else {}


@WORKER_SQLITE
def test_beat_fires_the_night_again_and_again(
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    worker: Any,
    processes: Processes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (first,) = lay(data, lms, days=10)
    environment()
    worker()
    (tmp_path / "every_two_seconds.py").write_text(
        "from worker.celery import app\n"
        "app.conf.beat_schedule = {**app.conf.beat_schedule}\n"
        "app.conf.beat_schedule['nightly'] = {**app.conf.beat_schedule['nightly'], 'schedule': 2.0}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    beat = [sys.executable, "-m", "celery", "-A", "every_two_seconds", "beat", "--loglevel=INFO"]
    processes.start("beat", [*beat, f"--schedule={tmp_path}/schedule"])

    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 1, what="the night that beat fires")
    (second,) = lay(Data(engine, seed=2), lms, days=10)
    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 2, what="the next night")
    assert [run.enterprise_customer_uuid for run in runs(engine)] == [first, second]


@WORKER_SQLITE
def test_an_lms_that_is_away_is_retried_visibly_and_the_unlink_waits(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, processes: Processes
) -> None:
    away, well = lay(data, lms, enterprises=2)
    lms.faults(Fault(kind="downgrade", enterprise=str(away), status=503, times=5))
    environment(TASK_RETRY_SECONDS=1, **listed(away, well))
    worker()
    status, night = command("run")
    assert (status, {run["phase"] for run in night["runs"]}) == (0, {"finished"})
    assert {run.enterprise_customer_uuid: run.retries for run in runs(engine)} == {away: 1, well: 0}
    assert "Retry in" in processes.log("worker")
    assert "the LMS answered 503 [http_503]" in processes.log("worker")
    assert_order(lms.journal)


@WORKER_SQLITE
def test_when_retries_are_spent_the_run_fails_and_nobody_is_unlinked(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any
) -> None:
    away, well = lay(data, lms, enterprises=2)
    lms.faults(Fault(kind="downgrade", enterprise=str(away), drop="before"))
    environment(TASK_MAX_RETRIES=0, **listed(away, well))
    worker()
    status, night = command("run")
    assert status == 1
    by_enterprise = {UUID(run["enterprise_customer_uuid"]): run for run in night["runs"]}
    assert by_enterprise[away]["phase"] == "failed"
    assert "connection_error" in by_enterprise[away]["error"]
    assert by_enterprise[well]["phase"] == "finished"
    assert lms.calls("unlink", away) == []


@WORKER_SQLITE
def test_a_run_survives_its_worker_process(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, processes: Processes
) -> None:
    (enterprise,) = lay(data, lms, licenses=30)
    lms.faults(Fault(kind="downgrade", nth=2, delay=60, times=1))
    times = {"BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS": 2, "BULK_UNLINK_REQUEST_TIMEOUT_SECONDS": 2}
    environment(
        LEASE_SECONDS=13, LMS_PARALLEL_REQUESTS=1, LICENSE_EXPIRATION_BATCH_SIZE=10, **times, **listed(enterprise)
    )
    worker(concurrency=1)
    assert command("run", "--no-wait")[0] == 0
    lms.wait_for(lambda: len(lms.calls("downgrade")) == 2)
    (child,) = children(processes)
    subprocess.run(["kill", "-KILL", child], check=True)
    eventually(lambda: "WorkerLostError" in processes.log("worker"), what="the worker's word that it lost a process")
    lms.release()
    reconcile = [*CELERY, "call", "license_expiry.reconcile"]

    def taken_up() -> bool:
        subprocess.run(reconcile, check=True, capture_output=True, timeout=60)
        return bool(runs(engine, Phase.FINISHED))

    eventually(taken_up, what="the run, taken up again once its lease had lapsed")
    assert_order(lms.journal)
    sent = [license for entry in lms.calls("downgrade") for license in entry.licenses]
    assert len(sent) == 40, "only the batch that was in flight went out twice"
    assert len(set(sent)) == 30


def children(processes: Processes) -> list[str]:
    """The process ids of the worker's children."""
    (worker,) = [process for name, process in processes.running if name == "worker"]
    return subprocess.run(["pgrep", "-P", str(worker.pid)], capture_output=True, text=True, check=True).stdout.split()


@WORKER_SQLITE
def test_the_order_holds_under_duplicates_and_tasks_posted_by_hand(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any
) -> None:
    enterprises = lay(data, lms, enterprises=3, licenses=12)
    lms.lms.latency = 0.1
    environment(LICENSE_EXPIRATION_BATCH_SIZE=3, LMS_PARALLEL_REQUESTS=2, **listed(*enterprises))
    assert command("run", "--no-wait")[0] == 0
    for run in runs(engine):
        names = json.dumps({"enterprise_customer_uuid": str(run.enterprise_customer_uuid), "run_id": str(run.id)})
        for task in ("unlink_learners", "downgrade_enrollments", "unlink_learners"):
            call = [*CELERY, "call", f"license_expiry.{task}", "--kwargs", names]
            subprocess.run(call, check=True, capture_output=True, timeout=60)
    worker(concurrency=4)
    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 3, what="all three")
    assert_order(lms.journal)
    sent = [license for entry in lms.calls("downgrade") for license in entry.licenses]
    assert len(sent) == len(set(sent)) == 36, "nothing was sent twice"


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
    assert processes.log("worker").count("license_expiry.downgrade_enrollments[") > 2
    assert len(lms.calls("downgrade")) == 12
    assert_order(lms.journal)


@pytest.fixture
def flower(processes: Processes, environment: Any) -> str:
    """A real Flower with a password; its address."""
    environment()
    port = free_port()
    start = [*CELERY, "flower", "--address=127.0.0.1", f"--port={port}", "--enable-events"]
    processes.start("flower", start, lambda: listens(port))
    return f"http://127.0.0.1:{port}"
