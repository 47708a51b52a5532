"""A worker, or the command, that is told to end in the middle: it ends soon, and nothing is lost or done twice."""

import signal
import subprocess
from itertools import count
from typing import Any, Literal

import pytest
from sqlalchemy import Engine
from support.eventually import eventually
from support.processes import COMMAND, WORKER_SQLITE, assert_all_done, command, ended, lay, listed, runs, seconds_to_end

from simulator.data.rows import Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes
from worker.ledger.order import Phase

# The call in flight and the step's last writes take less than a second; but Celery's children wait up to 30 s, once in
# some thirty times, for their parent to have read what they sent.
PROMPTLY = 45.0
# Calls of two, two at once, of 0.3 s each: 200 licenses take a step at least 15 s.
SMALL_BATCHES = {"LICENSE_EXPIRATION_BATCH_SIZE": 2, "BULK_UNLINK_BATCH_SIZE": 2, "LMS_PARALLEL_REQUESTS": 2}
LICENSES = 200
# For whoever goes on: what is left is not to take as long again.
LARGE_BATCHES = {"LICENSE_EXPIRATION_BATCH_SIZE": 100, "BULK_UNLINK_BATCH_SIZE": 100}
PHASES = {"downgrade": Phase.DOWNGRADING, "unlink": Phase.UNLINKING}


def assert_handed_back(engine: Engine, phase: Phase, waits_for: str | None = None) -> None:
    """The one run is live, in this phase, and nobody's; it may wait for something."""
    (run,) = runs(engine)
    assert (run.phase, run.owner) == (phase, None)
    assert run.live == run.enterprise_customer_uuid
    assert (run.tries, run.waits_for) == (0, waits_for), "a shutdown is no failure, nor is a throttle"


@WORKER_SQLITE
@pytest.mark.parametrize("step", ["downgrade", "unlink"])
def test_a_worker_ends_after_the_calls_in_flight_and_another_goes_on(
    step: Literal["downgrade", "unlink"], engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any
) -> None:
    (enterprise,) = lay(data, lms, licenses=LICENSES)
    lms.faults(Fault(kind=step, delay=0.3))
    environment(**SMALL_BATCHES, **listed(enterprise))
    first = worker()
    assert command("run", "--no-wait")[0] == 0
    lms.wait_for(lambda: len(lms.calls(step)) >= 6)
    assert seconds_to_end(first) < PROMPTLY
    assert len(lms.calls(step)) < LICENSES / 4, "far from the end of the step"
    assert all(entry.status and not entry.client_gone for entry in lms.calls(step)), "what was in flight was awaited"
    assert_handed_back(engine, PHASES[step])

    lms.faults()
    environment(**LARGE_BATCHES)
    worker(name="second")
    eventually(lambda: ended(engine), what="the run, by the second worker")
    assert_all_done(engine, lms, enterprises=1, licenses=LICENSES)


@pytest.mark.long
@WORKER_SQLITE
def test_a_worker_that_a_throttle_holds_up_ends_as_soon(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any
) -> None:
    (enterprise,) = lay(data, lms, licenses=20)
    lms.faults(Fault(kind="downgrade", first=3, status=429, headers={"Retry-After": "20"}))
    environment(**SMALL_BATCHES, **listed(enterprise))
    first = worker()
    assert command("run", "--no-wait")[0] == 0
    lms.wait_for(lambda: any(entry.status == 429 for entry in lms.calls("downgrade")))
    assert seconds_to_end(first) < PROMPTLY
    assert_handed_back(engine, Phase.DOWNGRADING, "throttled")

    lms.faults()
    worker(name="second")
    eventually(lambda: ended(engine), what="the run, by the second worker")
    assert_all_done(engine, lms, enterprises=1, licenses=20, status=200)


@WORKER_SQLITE
def test_an_interrupted_command_prints_a_message_and_resumes_when_run_again(
    engine: Engine, data: Data, lms: Simulator, environment: Any, processes: Processes
) -> None:
    (enterprise,) = lay(data, lms, licenses=LICENSES)
    lms.faults(Fault(kind="downgrade", delay=0.3))
    environment(**SMALL_BATCHES, **listed(enterprise))
    here = processes.start("here", [*COMMAND, "run", "--here"])
    lms.wait_for(lambda: len(lms.calls("downgrade")) >= 6)
    assert seconds_to_end(here, signal.SIGINT) < PROMPTLY
    assert here.returncode == 1
    said = " ".join(processes.log("here").split())
    assert "Unfinished runs stay live; resume them: license-expiry run --here" in said
    assert_handed_back(engine, Phase.DOWNGRADING)

    lms.faults()
    environment(**LARGE_BATCHES)
    status, night = command("run", "--here")
    assert (status, [run["phase"] for run in night["runs"]]) == (0, ["finished"])
    assert_all_done(engine, lms, enterprises=1, licenses=LICENSES)


@pytest.mark.long
@WORKER_SQLITE
def test_a_rolling_restart_loses_nothing_and_does_nothing_twice(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any
) -> None:
    enterprises = lay(data, lms, enterprises=4, licenses=110)
    lms.lms.latency = 0.3
    environment(**SMALL_BATCHES, **listed(*enterprises))
    serving: list[subprocess.Popen[bytes]] = [worker(name="worker-1"), worker(name="worker-2")]
    assert command("run", "--no-wait")[0] == 0
    numbers = count(3)

    def all_done_after_one_more_restart() -> bool:
        assert seconds_to_end(serving.pop(0)) < PROMPTLY
        serving.append(worker(name=f"worker-{next(numbers)}"))
        return ended(engine)

    eventually(all_done_after_one_more_restart, seconds=240, what="every run")
    assert next(numbers) > 5, "each was replaced at least once, and one of them again"
    assert_all_done(engine, lms, enterprises=4, licenses=110)
