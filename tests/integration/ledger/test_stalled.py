"""Abandoned runs are found, published again, and given up in the end."""

import threading
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, event
from support.claims import (
    AS_OF,
    ENDS,
    HOUR,
    claim,
    end_well,
    open_run,
    seconds_left,
    set_run,
    wait,
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
    wait(claim(database, open_run(database)), HOUR)
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
    wait(claim(database, run), 0)
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


# Too old


@ON_EACH
@pytest.mark.parametrize(
    ("opened", "ended"),
    [
        pytest.param(timedelta(hours=-21), True, id="it waited over a weekend"),
        pytest.param(timedelta(hours=-19), False, id="a long night"),
        pytest.param(timedelta(hours=1), True, id="opened while the clock was ahead"),
        pytest.param(timedelta(minutes=5), False, id="a clock that is corrected a little"),
    ],
)
def test_a_run_that_is_too_old_is_ended_with_its_reason(
    opened: timedelta, ended: bool, database: Database, engine: Engine
) -> None:
    queued, handed_back = open_run(database), open_run(database)
    wait(claim(database, handed_back), 0)
    for run in (queued, handed_back):
        set_run(database, run, opened_at=database.now() + opened)
    _, gone = stalled.release_stalled(database, LONGEST)
    assert set(gone) == ({queued.id, handed_back.id} if ended else set())
    for run in (run_of(database, queued.id), run_of(database, handed_back.id)):
        assert (run.phase == Phase.ABANDONED, run.live is None) == (ended, ended)
        assert ("more than 20 hours ago" in str(run.error)) == ended
    assert ("the LMS is away" in str(run_of(database, handed_back.id).error)) is True


@ON_EACH
def test_a_run_that_is_too_old_is_let_be_while_a_worker_is_at_it(database: Database, engine: Engine) -> None:
    run = open_run(database)
    held = claim(database, run)
    set_run(database, run, opened_at=database.now() - timedelta(hours=30))
    assert stalled.release_stalled(database, LONGEST) == ([], [])
    held.record(licenses_downgraded=1)
    lapse(engine, run.id)
    assert stalled.release_stalled(database, LONGEST) == ([], [run.id])


@ON_EACH
@pytest.mark.parametrize("owned", [True, False])
def test_a_lease_of_the_far_future_is_cut_short(owned: bool, database: Database, engine: Engine) -> None:
    run = open_run(database)
    if owned:
        claim(database, run)
    set_run(database, run, lease_until=database.now() + timedelta(days=2))
    assert stalled.release_stalled(database, LONGEST) == ([], [])
    assert seconds_left(database, run) == pytest.approx(QUEUED_SECONDS, abs=30)


@ON_EACH
def test_a_lease_that_somebody_may_have_asked_for_is_let_be(database: Database, engine: Engine) -> None:
    waits = open_run(database)
    set_run(database, waits, publications=4, lease_until=DatabaseNow(LONGEST + QUEUED_SECONDS * 15))
    works = open_run(database)
    claim(database, works, lease=LONGEST - 10)
    stalled.release_stalled(database, LONGEST)
    assert seconds_left(database, waits) > LONGEST
    assert seconds_left(database, works) > QUEUED_SECONDS
