"""Abandoned runs are found, published again, and given up in the end."""

import threading
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, event
from support.claims import (
    AS_OF,
    ENDS,
    HOUR,
    LEASE,
    claim,
    end_well,
    open_run,
    seconds_left,
    set_run,
    wait,
)
from support.runs import LONGEST, ON_EACH, ON_SERVERS, ON_SQLITE, lapse, rows, run_of, together

from simulator.data.rows import Data
from worker.db.ledger_tables import Downgrade, Run
from worker.db.sql import DatabaseNow
from worker.db.transactions import Database
from worker.errors import LicenseExpiryError, NotClaimed, Postponed
from worker.ledger import claims, confirmations, runs as opening, stalled, waits
from worker.ledger.order import DOWNGRADE, UNLINK, Phase
from worker.ledger.stalled import MAX_PUBLICATIONS, QUEUED_SECONDS

# Stalled runs

SEVERAL = 7  # messages in the broker's queue


def worked_on(database: Database, queued_at: int, **values: Any) -> Run:
    """A run that a worker is at, whose message could be received so many seconds from now."""
    run = open_run(database)
    claim(database, run)
    set_run(database, run, queued_at=DatabaseNow(queued_at), **values)
    return run


def publish_again(database: Database, messages: int | None = SEVERAL) -> list[tuple[UUID, int]]:
    """The runs that are published again, and the numbers of their messages; none is given up."""
    again, given_up = stalled.release_stalled(database, LONGEST, messages)
    assert given_up == []
    return [(run.id, run.message_number) for run in again]


@ON_EACH
def test_runs_whose_worker_is_lost_are_taken_from_it(database: Database, engine: Engine) -> None:
    lost, well = open_run(database), open_run(database)
    claim(database, lost)
    claim(database, well)
    lapse(engine, lost.id)
    assert publish_again(database) == [(lost.id, 2)]
    now = run_of(database, lost.id)
    assert (now.phase, now.owner, now.publications, now.message_number) == (Phase.DOWNGRADING, None, 1, 2)
    assert seconds_left(database, now) == pytest.approx(QUEUED_SECONDS, abs=30)
    assert publish_again(database) == []


@ON_EACH
def test_a_run_that_waits_its_turn_is_let_be_and_never_given_up(database: Database, engine: Engine) -> None:
    waits = [open_run(database) for _ in range(3)]
    worked_on(database, -2 * QUEUED_SECONDS)
    for run in waits:
        lapse(engine, run.id)
    set_run(database, waits[1], publications=MAX_PUBLICATIONS)
    for messages in (SEVERAL, 0):  # an empty queue shows nothing while a worker is at a run: they may just be received
        assert publish_again(database, messages) == []
    assert {run_of(database, run.id).message_number for run in waits} == {1}


@ON_EACH
def test_a_run_that_was_overtaken_is_published_again_and_that_does_not_count(
    database: Database, engine: Engine
) -> None:
    lost = [open_run(database) for _ in range(3)]
    wait(claim(database, lost[1]), HOUR)
    claim(database, lost[2]).advance()
    set_run(database, lost[0], publications=MAX_PUBLICATIONS)
    for run in lost:
        lapse(engine, run.id)
    waits = open_run(database)
    half = QUEUED_SECONDS // 2
    set_run(database, waits, queued_at=DatabaseNow(-half - QUEUED_SECONDS), lease_until=DatabaseNow(-half))
    worked_on(database, -half - 5)
    assert publish_again(database) == []
    worked_on(database, 0)
    assert sorted(publish_again(database)) == sorted((run.id, 2) for run in [*lost, waits])
    told = [run_of(database, run.id) for run in lost]
    assert [run.publications for run in told] == [MAX_PUBLICATIONS, 0, 0]
    assert [run.phase for run in told] == [Phase.QUEUED, Phase.DOWNGRADING, Phase.DOWNGRADED]
    assert publish_again(database) == []


@ON_EACH
@pytest.mark.parametrize("how", ["it was retried", "its lease has lapsed", "it ended", "a clock was wrong"])
def test_a_run_that_shows_nothing_of_the_queue_overtakes_nobody(how: str, database: Database, engine: Engine) -> None:
    waits = open_run(database)
    lapse(engine, waits.id)
    worked_on(database, -2 * QUEUED_SECONDS)
    if how == "it was retried":  # it has waited in its worker's memory, not in the queue
        run = open_run(database)
        for _ in range(3):
            wait(claim(database, run), 0)
        claim(database, run)
    elif how == "its lease has lapsed":
        worked_on(database, 0, lease_until=DatabaseNow(-1), live=None)
    elif how == "it ended":
        end_well(database, open_run(database))
    else:
        worked_on(database, 2 * HOUR)
    assert publish_again(database) == []


@ON_EACH
def test_when_the_queue_is_empty_and_no_worker_is_at_a_run_all_messages_are_lost(
    database: Database, engine: Engine
) -> None:
    runs = [open_run(database) for _ in range(2)]
    for run in runs:
        lapse(engine, run.id)
    open_run(database)
    assert publish_again(database, SEVERAL) == []
    assert sorted(publish_again(database, 0)) == sorted((run.id, 2) for run in runs)


@ON_EACH
def test_a_run_whose_message_was_not_sent_waits_for_nothing(database: Database) -> None:
    run = open_run(database)
    opening.let_lapse(database, [run.id])
    worked_on(database, -HOUR)
    assert publish_again(database) == [(run.id, 2)]


@ON_EACH
def test_one_that_a_worker_has_or_that_has_ended_is_not_called_unsent(database: Database) -> None:
    has, ended = worked_on(database, 0), open_run(database)
    end_well(database, ended)
    opening.let_lapse(database, [has.id, ended.id])
    assert (seconds_left(database, has) > 0, run_of(database, ended.id).lease_until) == (True, None)


@ON_SQLITE
def test_nothing_is_published_again_while_the_broker_cannot_be_asked(database: Database, engine: Engine) -> None:
    old, lost = open_run(database), open_run(database)
    claim(database, lost)
    lapse(engine, lost.id)
    set_run(database, old, opened_at=database.now() - timedelta(hours=21))
    assert stalled.release_stalled(database, LONGEST, None) == ([], [old.id])


@ON_EACH
def test_a_run_that_gets_no_further_is_given_up_with_a_reason(database: Database, engine: Engine) -> None:
    run = open_run(database)
    wait(claim(database, run), 0)
    for number in range(MAX_PUBLICATIONS):
        claim(database, run)
        lapse(engine, run.id)
        assert publish_again(database) == [(run.id, number + 2)]
    claim(database, run)
    lapse(engine, run.id)
    assert stalled.release_stalled(database, LONGEST, SEVERAL) == ([], [run.id])
    now = run_of(database, run.id)
    assert (now.phase, now.live, now.lease_until) == (Phase.ABANDONED, None, None)
    assert now.ended_at is not None
    assert now.error == (
        f"given up while downgrading: resumed {MAX_PUBLICATIONS} times without progress; "
        "last: the LMS is away [http_503]"
    )
    assert stalled.release_stalled(database, LONGEST, 0) == ([], [])
    with pytest.raises(NotClaimed, match="is abandoned"):
        claim(database, run)


@ON_EACH
def test_progress_takes_a_run_back_to_its_full_patience(database: Database, engine: Engine) -> None:
    run = open_run(database)
    for _ in range(MAX_PUBLICATIONS):
        claim(database, run)
        lapse(engine, run.id)
        publish_again(database)
    held = claim(database, run)
    held.guard()
    assert run_of(database, run.id).publications == MAX_PUBLICATIONS  # to begin is not to get further
    held.record(licenses_downgraded=1)
    assert run_of(database, run.id).publications == 0
    lapse(engine, run.id)
    assert publish_again(database) == [(run.id, MAX_PUBLICATIONS + 2)]


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
    claim(database, runs[0])
    for run in runs:
        lapse(engine, run.id)
    outcomes = together(6, lambda _: stalled.release_stalled(database, LONGEST, 0))
    taken = [run.id for each in outcomes if not isinstance(each, LicenseExpiryError) for run in each[0]]
    assert sorted(taken) == sorted(run.id for run in runs)
    assert {row["message_number"] for row in rows(engine, Run)} == {2}


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

    outcomes = together(2, lambda _: stalled.release_stalled(database, LONGEST, 0))
    assert [len(each[0]) for each in outcomes if not isinstance(each, LicenseExpiryError)] in ([0, 1], [1, 0])
    assert (run_of(database, run.id).message_number, run_of(database, run.id).fence) == (2, 1)


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
    _, gone = stalled.release_stalled(database, LONGEST, 0)
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
    assert stalled.release_stalled(database, LONGEST, 0) == ([], [])
    held.record(licenses_downgraded=1)
    lapse(engine, run.id)
    assert stalled.release_stalled(database, LONGEST, SEVERAL) == ([], [run.id])


@ON_EACH
@pytest.mark.parametrize("owned", [True, False])
def test_a_lease_of_the_far_future_is_cut_short(owned: bool, database: Database, engine: Engine) -> None:
    run = open_run(database)
    if owned:
        claim(database, run)
    set_run(database, run, lease_until=database.now() + timedelta(days=2))
    assert stalled.release_stalled(database, LONGEST, 0) == ([], [])
    assert seconds_left(database, run) == pytest.approx(QUEUED_SECONDS, abs=30)


@ON_EACH
def test_a_lease_of_a_possible_length_is_not_shortened(database: Database, engine: Engine) -> None:
    waits = open_run(database)
    wait(claim(database, waits), LONGEST - 10)
    works = open_run(database)
    claim(database, works, lease=LONGEST - 10)
    stalled.release_stalled(database, LONGEST, 0)
    assert seconds_left(database, waits) > LONGEST
    assert seconds_left(database, works) > QUEUED_SECONDS


# Replaced messages


@ON_EACH
def test_a_message_that_was_replaced_neither_claims_its_run_nor_waits_for_it(
    database: Database, engine: Engine
) -> None:
    run = open_run(database)
    opening.let_lapse(database, [run.id])
    assert publish_again(database) == [(run.id, 2)]
    ask = partial(claims.claim, database, run.id, run.enterprise_customer_uuid, owner="w1", lease_seconds=LEASE)
    paused = Postponed("paused", "everything is paused", "", 60)
    assert waits.postpone(database, run.id, DOWNGRADE, paused, 60, message=1) is None
    with pytest.raises(NotClaimed, match="is queued: message 1 was replaced by message 2"):
        ask(step=DOWNGRADE, message=1)
    assert waits.postpone(database, run.id, DOWNGRADE, paused, 60, message=2) is not None
    ask(step=DOWNGRADE, message=2).release()
    ask(step=DOWNGRADE).release()  # posted by hand
    set_run(database, run, message_number=None)  # opened by a worker of the release before
    with pytest.raises(NotClaimed, match="is not ready"):
        ask(step=UNLINK, message=1)
    ask(step=DOWNGRADE, message=1).release()
    opening.let_lapse(database, [run.id])
    assert publish_again(database) == [(run.id, 2)]
