"""What a night bears: an LMS that is away, a database that drops its connections, a broker that stops and forgets."""

import re
import signal
from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool
from support.eventually import eventually
from support.processes import WORKER_SQLITE, assert_all_done, command, ended, lay, listed, read, runs
from support.runs import ON_SERVERS, assert_order, rows
from support.services import SERVERS

from simulator.data.rows import Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes
from worker.db.ledger_tables import Retry
from worker.ledger.order import Phase

REASON = "the LMS answered 503: look at the LMS [http_503]"
TRIES = 3  # of a call in place, before the task is retried
CONNECTIONS = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = :name",
    "mysql": "SELECT id FROM information_schema.processlist WHERE db = :name",
}
CUT = {"postgresql": "SELECT pg_terminate_backend({0})", "mysql": "KILL {0}"}


@pytest.mark.long
@WORKER_SQLITE
def test_flower_and_the_log_tell_each_retry_and_its_reason_and_the_waits_grow(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, flower: str, processes: Processes
) -> None:
    away, well = lay(data, lms, enterprises=2)
    lms.faults(Fault(kind="downgrade", enterprise=str(away), status=503, times=3 * TRIES))
    environment(TASK_RETRY_SECONDS=2, **listed(away, well))
    worker(app="support.fast_app")
    assert command("run", "--no-wait")[0] == 0

    def retrying() -> list[str]:
        return [id for id, task in read(f"{flower}/api/tasks").items() if task["state"] == "RETRY"]

    [task_id] = eventually(retrying, what="a task that Flower shows as RETRY")
    eventually(lambda: runs(engine, Phase.FINISHED), what="the other enterprise, meanwhile")
    shown = eventually(lambda: info_of_retry(flower, task_id), what="RETRY once more")
    told = r"the LMS answered 503: look at the LMS; retried at 20.* UTC; tries left: \d, .* \[http_503\]"
    assert re.search(told, shown["exception"])
    assert shown["name"] == "license_expiry.downgrade_enrollments"
    assert str(away) in shown["kwargs"]
    assert [run.enterprise_customer_uuid for run in runs(engine, Phase.FINISHED)] == [well]
    assert lms.calls("unlink", away) == []

    eventually(lambda: ended(engine), what="the run, once the LMS is back")
    assert {run.phase for run in runs(engine)} == {Phase.FINISHED}
    assert {run.enterprise_customer_uuid: run.retries for run in runs(engine)}[away] == 3
    lines = [line for line in processes.log("worker").splitlines() if "step is retried" in line]
    assert len(lines) == 3, "one for each retry"
    assert all(f'event="step is retried" enterprise={away}' in line and f"task={task_id}" in line for line in lines)
    assert all(REASON in line for line in lines)
    assert [wait >= least for wait, least in zip(waits_of(engine, away), (2, 4, 8), strict=True)] == [True] * 3
    assert_order(lms.journal)


def info_of_retry(flower: str, task_id: str) -> dict[str, Any]:
    info: dict[str, Any] = read(f"{flower}/api/task/info/{task_id}")
    return info if info.get("state") == "RETRY" else {}


def waits_of(engine: Engine, enterprise: UUID) -> list[float]:
    """The waits before the retries of an enterprise's run, in seconds, in their order."""
    ids = {run.id for run in runs(engine) if run.enterprise_customer_uuid == enterprise}
    kept = sorted((row for row in rows(engine, Retry) if row["run_id"] in ids), key=lambda row: str(row["at"]))
    return [(row["again_at"] - row["at"]).total_seconds() for row in kept]


@pytest.mark.long
@ON_SERVERS
def test_a_database_that_drops_every_connection_again_and_again(
    engine: Engine, engine_kind: str, data: Data, lms: Simulator, environment: Any, worker: Any
) -> None:
    enterprises = lay(data, lms, enterprises=3, licenses=30)
    lms.lms.latency = 0.1
    sizes = {"LICENSE_EXPIRATION_BATCH_SIZE": 3, "BULK_UNLINK_BATCH_SIZE": 3, "LMS_PARALLEL_REQUESTS": 2}
    environment(**sizes, **listed(*enterprises))
    worker()
    assert command("run", "--no-wait")[0] == 0
    cut = [drop_connections(engine, engine_kind) for calls in range(3, 58, 6) if lms_was_called(lms, calls)]
    assert sum(connections > 0 for connections in cut) >= 5, "or little was tried"
    engine.dispose()
    eventually(lambda: ended(engine), what="the runs")
    assert_all_done(engine, lms, enterprises=3, licenses=30)


def lms_was_called(lms: Simulator, calls: int) -> bool:
    lms.wait_for(lambda: len(lms.calls("downgrade")) + len(lms.calls("unlink")) >= calls)
    return True


def drop_connections(engine: Engine, engine_kind: str) -> int:
    """Cut all connections to the test's database, our own too; give how many there were."""
    kind = make_url(SERVERS[engine_kind]).get_backend_name()
    admin = create_engine(SERVERS[engine_kind], isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with admin.connect() as connection:
        found = connection.execute(text(CONNECTIONS[kind]), {"name": engine.url.database}).scalars().all()
        done = 0
        for each in found:
            try:
                connection.execute(text(CUT[kind].format(each)))
                done += 1
            except OperationalError:  # it is gone by itself
                continue
    return done


@pytest.mark.long
@WORKER_SQLITE
def test_a_redis_that_is_frozen_and_then_forgets_everything(
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    worker: Any,
    beat: Any,
    processes: Processes,
    redis_server: Redis,
) -> None:
    enterprises = lay(data, lms, enterprises=4, licenses=20)
    lms.lms.latency = 0.2
    sizes = {"LICENSE_EXPIRATION_BATCH_SIZE": 2, "BULK_UNLINK_BATCH_SIZE": 2, "LMS_PARALLEL_REQUESTS": 2}
    environment(**sizes, **listed(*enterprises))
    worker(app="support.fast_app")
    beat()
    assert command("run", "--no-wait", fast=True)[0] == 0
    (server,) = [process for name, process in processes.running if name == "redis"]
    lms.wait_for(lambda: len(lms.calls("downgrade")) >= 4)
    server.send_signal(signal.SIGSTOP)
    eventually(lambda: len(runs(engine, Phase.DOWNGRADED)) == 2, what="two steps that go to their end all the same")
    server.send_signal(signal.SIGCONT)
    lms.wait_for(lambda: len(lms.calls("unlink")) >= 4)
    redis_server.flushall()
    eventually(lambda: ended(engine), what="the night")
    assert_all_done(engine, lms, enterprises=4, licenses=20)
