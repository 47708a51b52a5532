"""Runs that are stopped: at once, by the worker that has them, or when that is lost; and never opened again."""

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import Engine
from support.claims import AS_OF, AWAY, HOUR, claim, end_well, open_run, set_run, wait
from support.runs import LONGEST, ON_EACH, ON_SQLITE, lapse, opened_run, rows, run_of, together

from worker.clock import steady
from worker.db.ledger_tables import Run
from worker.db.sql import DatabaseNow
from worker.db.transactions import Database
from worker.errors import BadArgument, LeaseLost, LicenseExpiryError, NotClaimed, Stopped
from worker.ledger import claims, nights, runs, stalled
from worker.ledger.claims import CHECKED_SECONDS, Claim
from worker.ledger.order import DOWNGRADE, UNLINK, Phase

TOLD = "stopped by ops on host: a wrong plan"
NIGHT = datetime(2026, 6, 2, 2, 0, tzinfo=AS_OF.tzinfo)


def stop(database: Database, run: Run) -> Run:
    [stopped] = runs.stop_run(database, run.id, "ops on host", "a wrong plan")
    return stopped


def assert_stopped(run: Run, told: str = TOLD) -> None:
    assert (run.phase, run.error, run.live, run.owner) == (Phase.STOPPED, told, None, None)
    assert (run.lease_until, run.waits_for, run.night_after) == (None, None, None)
    assert run.ended_at is not None


def _lapsed(database: Database, run: Run) -> None:
    claim(database, run)
    set_run(database, run, lease_until=DatabaseNow(-1))


FREE: dict[str, Callable[[Database, Run], object]] = {
    "queued: no worker has begun it": lambda database, run: None,
    "between its steps: its message is in the broker": lambda database, run: claim(database, run).advance(),
    "handed back by a worker that ends": lambda database, run: claim(database, run).release(),
    "waiting for a retry": lambda database, run: wait(claim(database, run), HOUR, AWAY),
    "its worker was lost": _lapsed,
}


@ON_EACH
@pytest.mark.parametrize("lies", FREE.values(), ids=FREE)
def test_a_run_that_no_worker_has_ends_at_once(lies: Callable[[Database, Run], object], database: Database) -> None:
    run, other = open_run(database, night_after=NIGHT), open_run(database)
    lies(database, run)
    before = run_of(database, run.id)
    stopped = stop(database, run)
    assert_stopped(stopped)
    assert stopped.fence > before.fence, "a worker that wakes is shut out"
    for step in (DOWNGRADE, UNLINK):
        with pytest.raises(NotClaimed, match="is stopped by ops on host: a wrong plan"):
            claim(database, run, step)
    assert run_of(database, other.id).phase == Phase.QUEUED
    assert nights.postponed(database) == [], "nor does the night begin that waited for it"


@ON_EACH
def test_a_worker_that_wakes_after_a_stop_records_nothing(database: Database) -> None:
    run = open_run(database)
    held = claim(database, run)
    set_run(database, run, lease_until=DatabaseNow(-1))
    assert_stopped(stop(database, run))
    with pytest.raises(LeaseLost):
        held.record(licenses_downgraded=1)
    assert run_of(database, run.id).licenses_downgraded == 0


def _refused(held: Claim) -> None:
    with pytest.raises(Stopped, match="was stopped by ops on host: a wrong plan"):
        held.guard()
    held.release()


GIVEN_BACK: dict[str, Callable[[Claim], object]] = {
    "before its next call": _refused,
    "when its time slice is over": lambda held: held.release(),
    "when it is to be tried again": lambda held: wait(held, HOUR, AWAY),
    "when its step is done, before the next": lambda held: held.advance(),
}


@ON_EACH
@pytest.mark.parametrize("give_back", GIVEN_BACK.values(), ids=GIVEN_BACK)
def test_a_run_that_a_worker_has_ends_when_it_is_given_back(
    give_back: Callable[[Claim], object], database: Database
) -> None:
    run = open_run(database)
    held = claim(database, run)
    marked = stop(database, run)
    assert (marked.phase, marked.stopped_by, marked.stop_reason) == (Phase.DOWNGRADING, "ops on host", "a wrong plan")
    held.record(licenses_downgraded=1)  # it was in flight
    give_back(held)
    ended = run_of(database, run.id)
    assert_stopped(ended)
    assert ended.licenses_downgraded == 1


@ON_EACH
@pytest.mark.parametrize(
    ("end", "phase"),
    [
        pytest.param(lambda held: held.advance(), Phase.FINISHED, id="its last call was in flight: all is done"),
        pytest.param(lambda held: held.fail("the LMS refuses"), Phase.FAILED, id="it fails before the stop is seen"),
    ],
)
def test_one_that_ends_first_has_ended_so(end: Callable[[Claim], object], phase: Phase, database: Database) -> None:
    run = open_run(database)
    claim(database, run).advance()
    held = claim(database, run, UNLINK)
    stop(database, run)
    end(held)
    assert run_of(database, run.id).phase == phase


@ON_EACH
def test_one_whose_worker_is_lost_meanwhile_is_ended_and_never_published(database: Database, engine: Engine) -> None:
    run, other = open_run(database), open_run(database)
    claim(database, run), claim(database, other)
    stop(database, run)
    assert stalled.end_lost_stops(database) == [], "its worker has it"
    lapse(engine, run.id)
    lapse(engine, other.id)
    with pytest.raises(NotClaimed, match="and will end: stopped by ops on host"):
        claim(database, run)
    again, given_up = stalled.release_stalled(database, LONGEST, 0)
    assert ([run.id for run in again], given_up) == ([other.id], [])
    assert stalled.end_lost_stops(database) == [run.id]
    assert_stopped(run_of(database, run.id))
    assert stalled.end_lost_stops(database) == []


@ON_SQLITE
def test_what_has_ended_and_what_was_stopped_before_stay_as_they_are(database: Database) -> None:
    ended, queued, at_work = (open_run(database) for _ in range(3))
    end_well(database, ended)
    assert stop(database, ended).phase == Phase.FINISHED
    stop(database, queued)
    held = claim(database, at_work)
    stop(database, at_work)
    for run in (queued, at_work):
        [again] = runs.stop_run(database, run.id, "another", "too")
        assert (again.stopped_by, again.stop_reason) == ("ops on host", "a wrong plan")
    held.release()
    assert_stopped(run_of(database, at_work.id))
    with pytest.raises(BadArgument, match="There is no run"):
        runs.stop_run(database, uuid4(), "ops on host", "a wrong plan")


@ON_EACH
def test_one_enterprise_or_all_are_stopped_and_nobody_else(database: Database, engine: Engine) -> None:
    ended, first, second, third = (open_run(database) for _ in range(4))
    end_well(database, ended)
    assert runs.stop_live_runs(database, ended.enterprise_customer_uuid, "ops on host", "a wrong plan") == []
    [stopped] = runs.stop_live_runs(database, first.enterprise_customer_uuid, "ops on host", "a wrong plan")
    assert stopped.id == first.id
    assert {row["phase"] for row in rows(engine, Run)} == {Phase.FINISHED, Phase.STOPPED, Phase.QUEUED}
    claim(database, third)
    at_once = runs.stop_live_runs(database, None, "ops on host", "a wrong night")
    assert {run.id: run.phase for run in at_once} == {second.id: Phase.STOPPED, third.id: Phase.DOWNGRADING}


@ON_SQLITE
def test_a_sentence_that_is_too_long_is_cut(database: Database) -> None:
    run = open_run(database)
    [stopped] = runs.stop_run(database, run.id, "o" * 255, "w" * 255)
    assert len(stopped.error or "") == 500


@ON_EACH
def test_a_night_that_goes_on_being_opened_leaves_out_what_was_stopped(database: Database) -> None:
    run = open_run(database, scheduled_for=NIGHT)
    stop(database, run)
    again = opened_run(database, run.enterprise_customer_uuid, AS_OF, scheduled_for=NIGHT)
    assert (again.run_id, again.new) == (run.id, False)
    for night in (None, NIGHT + timedelta(days=1)):
        following = opened_run(database, run.enterprise_customer_uuid, AS_OF, scheduled_for=night)
        assert following.new, "another night, and one by hand, are not concerned"
        end_well(database, run_of(database, following.run_id))


@ON_SQLITE
def test_outcomes_that_are_recorded_in_quick_succession_do_not_hide_a_stop(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(database)
    held = claim(database, run)
    stop(database, run)
    begun, calls = steady(), 0

    def call_and_record() -> None:
        nonlocal calls
        while calls < 100:
            calls += 1
            held.guard_of_batch()()
            held.record(licenses_downgraded=1)

    monkeypatch.setattr(claims, "steady", lambda: begun + calls * CHECKED_SECONDS / 5)
    with pytest.raises(Stopped):
        call_and_record()
    assert calls <= 6, "half a second later"


# Races


@ON_EACH
def test_a_stop_and_a_claim_at_the_same_moment_agree(database: Database) -> None:
    for _ in range(5):
        run = open_run(database)

        def one(number: int, run: Run = run) -> Claim | Run:
            return claim(database, run) if number else stop(database, run)

        _, claimed = together(2, one)
        if isinstance(claimed, Claim):  # the claim was first: the stop has marked its run
            with pytest.raises(Stopped):
                claimed.guard()
            claimed.release()
        else:
            assert isinstance(claimed, NotClaimed)
        assert_stopped(run_of(database, run.id))


@ON_EACH
def test_of_two_stops_one_is_kept_and_both_learn_of_it(database: Database) -> None:
    run = open_run(database)
    claim(database, run)
    told = together(4, lambda number: runs.stop_run(database, run.id, f"ops {number}", "a wrong plan"))
    whose = {each[0].stopped_by for each in told if not isinstance(each, LicenseExpiryError)}
    assert whose == {run_of(database, run.id).stopped_by}


@ON_EACH
def test_many_that_end_the_same_lost_run_end_it_once(database: Database, engine: Engine) -> None:
    run = open_run(database)
    claim(database, run)
    stop(database, run)
    lapse(engine, run.id)
    ended = together(4, lambda _: stalled.end_lost_stops(database))
    assert sorted(len(each) for each in ended if not isinstance(each, LicenseExpiryError)) == [0, 0, 0, 1]
    assert_stopped(run_of(database, run.id))
