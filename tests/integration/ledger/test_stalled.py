"""Abandoned runs are found, published again, and given up in the end."""

import threading
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, event
from support.claims import (
    AS_OF,
    AWAY,
    ENDS,
    HOUR,
    claim,
    end_well,
    open_run,
    seconds_left,
    set_run,
)
from support.runs import LONGEST, ON_EACH, ON_SERVERS, lapse, rows, run_of, together

from simulator.data.rows import Data
from worker.db.ledger_tables import Downgrade, Run
from worker.db.sql import DatabaseNow
from worker.db.transactions import Database
from worker.errors import LicenseExpiryError, NotClaimed
from worker.ledger import confirmations, stalled
from worker.ledger.order import Phase
from worker.ledger.stalled import MAX_PUBLICATIONS, QUEUED_SECONDS

# Stalled runs


@ON_EACH
def test_only_live_runs_that_were_let_down_are_taken_up(database: Database, engine: Engine) -> None:
    queued, downgrading, handed_on = (open_run(database) for _ in range(3))
    claim(database, downgrading)
    claim(database, handed_on).advance()
    let_down = [queued, downgrading, handed_on]
    for run in let_down:
        lapse(engine, run.id)
    open_run(database)
    claim(database, open_run(database))
    claim(database, open_run(database)).release(HOUR, AWAY)
    ended = open_run(database)
    end_well(database, ended)
    set_run(database, ended, lease_until=DatabaseNow(-1))
    again, given_up = stalled.release_stalled(database, LONGEST)
    assert ({run.id for run in again}, given_up) == ({run.id for run in let_down}, [])
    for run, phase in zip(let_down, (Phase.QUEUED, Phase.DOWNGRADING, Phase.DOWNGRADED), strict=True):
        now = run_of(database, run.id)
        assert (now.phase, now.owner, now.publications) == (phase, None, 1)
    assert stalled.release_stalled(database, LONGEST) == ([], [])


@ON_EACH
def test_a_run_that_gets_no_further_is_given_up_with_a_reason(database: Database, engine: Engine) -> None:
    run = open_run(database)
    claim(database, run).release(0, AWAY)
    waits = []
    for _ in range(MAX_PUBLICATIONS):
        lapse(engine, run.id)
        again, given_up = stalled.release_stalled(database, LONGEST)
        assert ([each.id for each in again], given_up) == ([run.id], [])
        waits.append(seconds_left(database, run))
    assert waits == [pytest.approx(QUEUED_SECONDS * 2**n, abs=30) for n in range(MAX_PUBLICATIONS)]
    lapse(engine, run.id)
    assert stalled.release_stalled(database, LONGEST) == ([], [run.id])
    now = run_of(database, run.id)
    assert (now.phase, now.live, now.lease_until) == (Phase.ABANDONED, None, None)
    assert now.ended_at is not None
    assert now.error == (
        f"given up while downgrading: taken up {MAX_PUBLICATIONS} times without getting further; "
        "last: the LMS is away [http_503]"
    )
    assert stalled.release_stalled(database, LONGEST) == ([], [])
    with pytest.raises(NotClaimed, match="is abandoned"):
        claim(database, run)


@ON_EACH
def test_progress_takes_a_run_back_to_its_full_patience(database: Database, engine: Engine) -> None:
    run = open_run(database)
    for _ in range(MAX_PUBLICATIONS):
        lapse(engine, run.id)
        stalled.release_stalled(database, LONGEST)
    held = claim(database, run)
    held.guard()
    assert run_of(database, run.id).publications == MAX_PUBLICATIONS  # to begin is not to get further
    held.record(licenses_downgraded=1)
    assert run_of(database, run.id).publications == 0
    lapse(engine, run.id)
    again, given_up = stalled.release_stalled(database, LONGEST)
    assert ([each.id for each in again], given_up) == ([run.id], [])


@ON_EACH
def test_however_a_run_ends_confirmations_that_a_plan_s_mark_stands_for_are_dropped(
    database: Database, engine: Engine
) -> None:
    for end in ENDS.values():
        data = Data(engine, seed=len(rows(engine, Run)) + 1, now=AS_OF)
        agreement = data.agreement()
        marked = data.license(data.plan(agreement, expires=AS_OF - timedelta(days=3), expiration_processed=True))
        data.flush()
        run = open_run(database, agreement.enterprise_customer_uuid)
        database.transact(partial(confirmations.confirm_downgrades, run=run, licenses=[marked]))
        end(database, run)
        assert rows(engine, Downgrade) == [], end


def test_a_run_taken_up_by_many_at_once_is_published_once(database: Database, engine: Engine) -> None:
    runs = [open_run(database) for _ in range(3)]
    for run in runs:
        lapse(engine, run.id)
    outcomes = together(6, lambda _: stalled.release_stalled(database, LONGEST))
    taken = [run.id for each in outcomes if not isinstance(each, LicenseExpiryError) for run in each[0]]
    assert sorted(taken) == sorted(run.id for run in runs)
    assert {row["publications"] for row in rows(engine, Run)} == {1}


@ON_SERVERS
def test_of_two_that_find_the_same_stalled_run_one_publishes_it(database: Database, engine: Engine) -> None:
    run = open_run(database)
    lapse(engine, run.id)
    barrier, this_thread = threading.Barrier(2), threading.local()

    @event.listens_for(engine, "before_cursor_execute")
    def both_have_looked(_c: Any, _u: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE license_expiry_run") and not hasattr(this_thread, "waited"):
            this_thread.waited = True
            barrier.wait(30)

    outcomes = together(2, lambda _: stalled.release_stalled(database, LONGEST))
    assert [len(each[0]) for each in outcomes if not isinstance(each, LicenseExpiryError)] in ([0, 1], [1, 0])
    assert (run_of(database, run.id).publications, run_of(database, run.id).fence) == (1, 1)
