"""A run of which every worker dies is given up, and nobody else suffers."""

from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine
from support.eventually import eventually
from support.processes import WORKER_SQLITE, command, ended, lay, leases_of, listed, runs
from support.runs import assert_order

from simulator.data.rows import Data
from simulator.lms.server import Simulator
from worker.ledger.order import Phase
from worker.ledger.stalled import MAX_PUBLICATIONS

# Kills the process that is to downgrade any of these licenses.
DEADLY = """
import os
import signal

from support.fast_app import app
from worker.lms.client import LmsClient

downgrade = LmsClient.downgrade


def die(self, select, *arguments):
    if {deadly!r} & set(map(str, select().items)):
        os.kill(os.getpid(), signal.SIGKILL)
    downgrade(self, select, *arguments)


LmsClient.downgrade = die
"""


@pytest.mark.long
@WORKER_SQLITE
def test_a_run_that_kills_every_worker_is_given_up_and_nobody_else_suffers(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, beat: Any, tmp_path: Path
) -> None:
    deadly, *others = lay(data, lms, enterprises=3)
    licenses = {str(UUID(int=number)) for number, whose in lms.state.licenses.items() if whose == deadly}
    (tmp_path / "deadly.py").write_text(DEADLY.format(deadly=licenses))
    environment(**leases_of(3), **listed(deadly, *others))
    started = worker(app="deadly")
    beat()
    assert command("run", "--no-wait", fast=True)[0] == 0
    eventually(lambda: ended(engine), seconds=150, what="that run, given up")
    phases = {run.enterprise_customer_uuid: run.phase for run in runs(engine)}
    assert phases == {deadly: Phase.ABANDONED} | dict.fromkeys(others, Phase.FINISHED)
    assert lms.calls("unlink", deadly) == []
    assert_order(lms.journal)

    [told] = command("status", "--enterprise", str(deadly), fast=True)[1]["runs"]
    why = f"given up while downgrading: resumed {MAX_PUBLICATIONS} times without progress"
    assert (told["phase"], told["error"]) == ("abandoned", why)

    (new,) = lay(Data(engine, seed=2), lms)
    status, night = command("run", "--enterprise", str(new), fast=True)
    assert (status, [run["phase"] for run in night["runs"]]) == (0, ["finished"])
    assert started.poll() is None, "the same worker"
