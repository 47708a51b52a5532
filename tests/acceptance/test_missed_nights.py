"""Missed or half-started nights are run late, once; two beats start one night."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from support.eventually import eventually
from support.processes import WORKER_SQLITE, a_minute_ago, at, kill_all_of, lay, listed, note_an_older_night, post, runs
from support.runs import assert_order, rows

from simulator.data.rows import DAY, Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes
from worker.db.ledger_tables import Night
from worker.ledger.order import Phase

# Kills the process that opens a run when two are opened, once.
DYING_DISPATCHER = """
import os
import signal
from pathlib import Path

import worker.runs.start
import worker.ledger.runs
from support.fast_app import app

open_runs = worker.ledger.runs.open_runs
opened = []
died = Path("{died}")


def open_two_and_die(*arguments, **request):
    opened.append(open_runs(*arguments, **request))
    if not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return opened[-1]


worker.runs.start.CHUNK = 2
worker.ledger.runs.open_runs = open_two_and_die
"""


def nights(engine: Engine) -> list[tuple[datetime, int]]:
    """The nights that are opened to their end, each with the number of tries."""
    return [(row["scheduled_for"], row["tries"]) for row in rows(engine, Night) if row["lease_until"] is None]


@pytest.mark.long
@WORKER_SQLITE
def test_a_night_that_beat_missed_is_made_good_once(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, beat: Any, reconciled: Any
) -> None:
    enterprises = lay(data, lms, enterprises=2)
    missed = a_minute_ago()
    older = note_an_older_night(engine, missed - 2 * DAY)
    environment(**at(missed), **listed(*enterprises))
    worker(app="support.fast_app")
    first = beat()
    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 2, what="the night, made good")
    assert nights(engine) == [(older, 1), (missed, 1)]
    assert_order(lms.journal)

    lay(Data(engine, seed=2), lms)  # due, so that a night that is started again is seen
    reconciled()
    kill_all_of(first)
    for schedule in ("beat", "another"):  # with its schedule file, and without one
        started = beat(name=schedule)
        reconciled()
        kill_all_of(started)
    assert nights(engine) == [(older, 1), (missed, 1)]
    assert {run.enterprise_customer_uuid for run in runs(engine)} == set(enterprises)
    assert len(runs(engine)) == 2


@pytest.mark.long
@WORKER_SQLITE
def test_a_new_ledger_starts_no_night_by_itself(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, beat: Any, reconciled: Any
) -> None:
    lay(data, lms, enterprises=2)
    before = a_minute_ago()
    environment(**at(before))
    worker(app="support.fast_app")
    beat()
    reconciled()
    assert runs(engine) == []
    assert nights(engine) == [(before, 0)], "noted as before its time"


@pytest.mark.long
@WORKER_SQLITE
def test_two_beats_and_reconcile_begin_one_night_between_them(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, beat: Any, processes: Processes
) -> None:
    enterprises = lay(data, lms, enterprises=3)
    environment(NIGHTLY_SCHEDULE="* * * * *", **listed(*enterprises))
    worker(concurrency=4, app="support.fast_app")
    beat(name="beat")
    beat(name="beat-2")

    def told() -> list[str]:
        log = processes.log("worker").splitlines()
        return [line for line in log if "the night" in line]

    both = "the word of one beat's task that another, or reconcile, was first"
    eventually(lambda: any("the night has already begun" in line for line in told()), seconds=130, what=both)
    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 3, what="the night")
    assert {run.enterprise_customer_uuid for run in runs(engine)} == set(enterprises)
    assert len(runs(engine)) == 3
    minutes = sorted(scheduled_for for scheduled_for, tries in nights(engine) if tries <= 1)
    assert len(minutes) == len(rows(engine, Night))
    assert [each - minutes[0] for each in minutes] == [timedelta(minutes=number) for number in range(len(minutes))]
    assert_order(lms.journal)


@WORKER_SQLITE
def test_a_night_whose_dispatcher_is_killed_is_opened_to_its_end(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, beat: Any, tmp_path: Path
) -> None:
    enterprises = lay(data, lms, enterprises=5)
    missed = a_minute_ago()
    older = note_an_older_night(engine, missed - 2 * DAY)
    (tmp_path / "dying.py").write_text(DYING_DISPATCHER.format(died=tmp_path / "died"))
    environment(**at(missed), **listed(*enterprises))
    worker(app="dying")
    beat()
    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 5, what="the runs of all")
    assert (tmp_path / "died").exists(), "or nothing was tried"
    assert len(runs(engine)) == 5, "one for each"
    assert nights(engine) == [(older, 1), (missed, 2)]
    assert_order(lms.journal)


@pytest.mark.long
@WORKER_SQLITE
def test_twenty_triggers_at_once_open_one_run_and_learn_its_id(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any
) -> None:
    (enterprise,) = lay(data, lms)
    lms.faults(Fault(kind="downgrade", delay=60))
    environment(**listed(enterprise))
    worker(concurrency=5)
    trigger = ("run_enterprise", {"enterprise_customer_uuid": str(enterprise)})
    told = [run for result in post(*[trigger] * 20, wait=True) for run in result["runs"]]
    (run,) = runs(engine)
    lms.wait_for(lambda: lms.calls("downgrade"))  # or it would be delayed after all
    lms.release()
    assert [each["run_id"] for each in told] == [str(run.id)] * 20
    assert sorted(each["already_live"] for each in told) == [False] + [True] * 19
    eventually(lambda: runs(engine, Phase.FINISHED), what="the one run")
    assert len(runs(engine)) == 1
    assert len(lms.calls("downgrade")) == 1
