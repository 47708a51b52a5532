"""Runs, claims on them and the throttle: one at a time, and nobody writes who has lost the run."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, event, insert, update
from sqlalchemy.orm import Session
from support.runs import ON_EACH, ON_SERVERS, ON_SQLITE, lapse, lost_commit_answer, opened_run, rows, run_of, together

from simulator.data.rows import Data
from worker.db.ledger_tables import Downgrade, LmsCall, Retry, Run, Throttle
from worker.db.sql import DatabaseNow
from worker.db.transactions import Database
from worker.errors import BadArgument, LeaseLost, LicenseExpiryError, NotClaimed, Unavailable
from worker.ledger import claims, confirmations, rate_limit, runs as opening, stalled
from worker.ledger.claims import Claim
from worker.ledger.lms_calls import CallTimings
from worker.ledger.order import DOWNGRADE, STEPS, UNLINK, Phase, Step
from worker.ledger.runs import QUEUED_SECONDS, Opened
from worker.ledger.stalled import MAX_PUBLICATIONS
from worker.runs import request as start

AS_OF = datetime(2026, 6, 1, 2, 0, tzinfo=UTC)
LEASE = 300
HOUR = 3600
AWAY = Unavailable("http_503", "the LMS is away")


@pytest.fixture
def database(engine: Engine) -> Database:
    return Database(engine)


def open_run(database: Database, enterprise: UUID | None = None, **request: Any) -> Run:
    return run_of(database, opened_run(database, enterprise or uuid4(), AS_OF, **request).run_id)


def claim(database: Database, run: Run, step: Step = DOWNGRADE, owner: str = "w1", lease: int = LEASE) -> Claim:
    return claims.claim(database, run.id, run.enterprise_customer_uuid, step, owner, lease)


def set_run(database: Database, run: Run, **values: Any) -> None:
    database.transact(lambda session: session.execute(update(Run).where(Run.id == run.id).values(**values)))


def write_downgrade(run: Run, license: UUID) -> Callable[[Session], Any]:
    row = {"license_uuid": license, "run_id": run.id, "confirmed_at": AS_OF}
    row["enterprise_customer_uuid"] = run.enterprise_customer_uuid
    return lambda session: session.execute(insert(Downgrade), [row])


def seconds_left(database: Database, run: Run) -> float:
    until = run_of(database, run.id).lease_until
    assert until is not None
    return (until - database.now()).total_seconds()


# Opening


def test_twenty_triggers_at_once_open_one_run_and_all_are_told_its_id(database: Database, engine: Engine) -> None:
    enterprise = uuid4()
    opened = together(20, lambda _: opened_run(database, enterprise, AS_OF))
    [run] = rows(engine, Run)
    assert [each for each in opened if isinstance(each, LicenseExpiryError)] == []
    assert {each.run_id for each in opened if isinstance(each, Opened)} == {run["id"]}
    assert sum(each.new for each in opened if isinstance(each, Opened)) == 1


def test_an_opened_run_holds_what_was_asked_for(database: Database) -> None:
    plan, enterprise = uuid4(), uuid4()
    request = start.parse_request(
        force=True, reason="restored — Ærø", plan_uuids=[plan], expired_after="2025-01-01"
    ).model_dump() | {"plan_uuids": [str(plan)], "expired_before": AS_OF.astimezone(timezone(5 * timedelta(hours=1)))}
    run = open_run(database, enterprise, **request)
    assert (run.phase, run.live, run.as_of) == (Phase.QUEUED, enterprise, AS_OF)
    assert (run.dry_run, run.force, run.reason, run.plan_uuids) == (False, True, "restored — Ærø", [str(plan)])
    assert (run.expired_after, run.expired_before) == (datetime(2025, 1, 1, tzinfo=UTC), AS_OF)
    assert (run.owner, run.fence, run.publications, run.retries, run.recorded) == (None, 0, 0, 0, 0)
    assert abs((run.opened_at - database.now()).total_seconds()) < 60
    assert seconds_left(database, run) == pytest.approx(QUEUED_SECONDS, abs=60)


def _finish(database: Database, run: Run) -> None:
    claim(database, run).advance()
    claim(database, run, UNLINK).advance()


def _fail(database: Database, run: Run) -> None:
    claim(database, run).fail("the LMS refuses")


def _abandon(database: Database, run: Run) -> None:
    set_run(database, run, publications=MAX_PUBLICATIONS, lease_until=DatabaseNow(-1))
    assert stalled.release_stalled(database) == ([], [run.id])


ENDS = {Phase.FINISHED: _finish, Phase.FAILED: _fail, Phase.ABANDONED: _abandon}


@ON_EACH
def test_an_ended_run_makes_room_for_the_next_one(database: Database, engine: Engine) -> None:
    enterprise = uuid4()
    for phase, end in ENDS.items():
        run = open_run(database, enterprise)
        assert opened_run(database, enterprise, AS_OF) == Opened(enterprise, run.id, new=False)
        end(database, run)
        ended = run_of(database, run.id)
        assert (ended.phase, ended.live, ended.owner, ended.lease_until) == (phase, None, None, None)
        assert ended.ended_at is not None
    assert len(rows(engine, Run)) == len(ENDS)
    assert opened_run(database, enterprise, AS_OF).new


@ON_EACH
def test_a_run_is_new_although_the_answer_to_its_commit_was_lost(database: Database, engine: Engine) -> None:
    with lost_commit_answer(engine) as lost:
        opened = opened_run(database, uuid4(), AS_OF)
    assert lost
    assert [(row["id"], opened.new) for row in rows(engine, Run)] == [(opened.run_id, True)]


@ON_SQLITE
def test_a_refusal_is_a_failed_run_that_stands_in_nobodys_way(database: Database) -> None:
    enterprise = uuid4()
    run = run_of(database, opening.record_refusal(database, enterprise, AS_OF, "no agreement"))
    assert (run.phase, run.live, run.error, run.lease_until) == (Phase.FAILED, None, "no agreement", None)
    assert run.ended_at is not None
    assert opened_run(database, enterprise, AS_OF).new
    assert stalled.release_stalled(database) == ([], [])


# Claiming


def test_one_of_many_threads_claims_a_run(database: Database) -> None:
    run = open_run(database)
    outcomes = together(12, lambda number: claim(database, run, owner=f"w{number}"))
    [won] = [each for each in outcomes if isinstance(each, Claim)]
    lost = [each for each in outcomes if isinstance(each, LicenseExpiryError)]
    assert len(lost) == 11
    assert {type(each) for each in lost} == {NotClaimed}
    now = run_of(database, run.id)
    assert (now.phase, now.fence, now.owner) == (Phase.DOWNGRADING, 1, won.run.owner)
    assert all(f"{won.run.owner} has it until" in str(each) for each in lost)
    won.guard()


# The phases in which a step can be claimed; in no other, and the refusal says why.
CLAIMABLE = {
    DOWNGRADE: {Phase.QUEUED, Phase.DOWNGRADING},
    UNLINK: {Phase.DOWNGRADED, Phase.UNLINKING},
}


@ON_EACH
def test_a_step_can_be_claimed_only_in_its_own_phases(database: Database) -> None:
    for phase in Phase:
        for step in STEPS:
            run = open_run(database)
            set_run(database, run, phase=phase)
            if phase in CLAIMABLE[step]:
                assert claim(database, run, step).run.fence == 1
                continue
            with pytest.raises(NotClaimed, match=rf"run {run.id} is {phase}"):
                claim(database, run, step)
            untouched = run_of(database, run.id)
            assert (untouched.phase, untouched.fence, untouched.owner) == (phase, 0, None)


@ON_EACH
def test_a_lapsed_lease_can_be_claimed_anew_and_an_unlapsed_one_not(database: Database, engine: Engine) -> None:
    run = open_run(database)
    first = claim(database, run, owner="w1")
    assert seconds_left(database, run) == pytest.approx(LEASE, abs=30)
    with pytest.raises(NotClaimed, match=r"w1 \(\w+\) has it until"):
        claim(database, run, owner="w2")
    lapse(engine, run.id)
    second = claim(database, run, owner="w2")
    assert (first.run.fence, second.run.fence) == (1, 2)
    assert run_of(database, run.id).owner == second.run.owner
    second.advance()
    third = claim(database, run, UNLINK, owner="w3")
    with pytest.raises(NotClaimed, match=r"w3 \(\w+\) has it until"):
        claim(database, run, UNLINK, owner="w4")
    lapse(engine, run.id)
    assert claim(database, run, UNLINK, owner="w4").run.fence == third.run.fence + 1 == 4


@ON_EACH
def test_a_released_run_can_be_claimed_at_once(database: Database) -> None:
    run = open_run(database)
    claim(database, run).release(HOUR, AWAY)
    released = run_of(database, run.id)
    assert (released.phase, released.owner, released.retries) == (Phase.DOWNGRADING, None, 1)
    assert (released.error, released.live) == (str(AWAY), run.enterprise_customer_uuid)
    # The broker has it for so long before reconcile thinks it lost.
    assert seconds_left(database, run) == pytest.approx(HOUR + QUEUED_SECONDS, abs=30)
    again = claim(database, run, owner="w2")
    assert (again.run.fence, str(again.run.owner).split()[0]) == (2, "w2")
    again.release()
    assert run_of(database, run.id).retries == 1  # handing itself on is no retry
    claim(database, run).advance()
    assert run_of(database, run.id).error is None


@ON_SQLITE
def test_guard_renews_the_lease(database: Database, engine: Engine) -> None:
    run = open_run(database)
    held = claim(database, run)
    lapse(engine, run.id)
    held.guard()  # nobody has taken it over: it is still ours
    assert seconds_left(database, run) == pytest.approx(LEASE, abs=30)
    with pytest.raises(NotClaimed):
        claim(database, run, owner="w2")


@ON_SQLITE
def test_no_run_of_another_enterprise_and_no_unknown_run_is_claimed(database: Database) -> None:
    run = open_run(database)
    for run_id, enterprise in ((run.id, uuid4()), (uuid4(), run.enterprise_customer_uuid)):
        with pytest.raises(BadArgument, match="license-expiry status lists them"):
            claims.claim(database, run_id, enterprise, DOWNGRADE, "w1", LEASE)
    assert run_of(database, run.id).phase == Phase.QUEUED


# Zombies


def lose_by_claim(database: Database, run: Run) -> None:
    lapse(database.engine, run.id)
    claim(database, run, owner="w2")


def lose_by_reconcile(database: Database, run: Run) -> None:
    lapse(database.engine, run.id)
    stalled.release_stalled(database)


def lose_by_next_step(database: Database, run: Run) -> None:
    lose_by_claim(database, run)
    set_run(database, run, phase=Phase.DOWNGRADED)
    claim(database, run, UNLINK, owner="w3")


def lose_by_end(database: Database, run: Run) -> None:
    lapse(database.engine, run.id)
    claim(database, run, owner="w2").fail("for another reason")


# Each way in which a worker loses its run while it is away; nobody tells it.
WAYS_TO_LOSE = [lose_by_claim, lose_by_reconcile, lose_by_next_step, lose_by_end]


def test_a_zombie_can_do_nothing(database: Database, engine: Engine) -> None:
    for lose in WAYS_TO_LOSE:
        run = open_run(database)
        zombie = claim(database, run)
        zombie.record(licenses_downgraded=1)
        lose(database, run)
        before = [row for row in rows(engine, Run) if row["id"] == run.id]
        deeds: dict[str, Callable[[], object]] = {
            "guard": zombie.guard,
            "record": partial(zombie.record, write_downgrade(run, uuid4()), licenses_downgraded=1),
            "advance": zombie.advance,
            "fail": partial(zombie.fail, "a zombie's word"),
            "release": partial(zombie.release, 1, AWAY),
        }
        for name, deed in deeds.items():
            with pytest.raises(LeaseLost, match=str(run.id)):
                deed()
            assert [row for row in rows(engine, Run) if row["id"] == run.id] == before, (lose, name)
        assert rows(engine, Downgrade) == []


@ON_SQLITE
def test_a_claim_ends_with_its_step(database: Database) -> None:
    for goes_well in (True, False):
        run = open_run(database)
        held = claim(database, run)
        held.advance() if goes_well else held.fail("no")
        with pytest.raises(LeaseLost):
            held.guard()
        with pytest.raises(LeaseLost):
            held.record(licenses_downgraded=1)
        assert run_of(database, run.id).licenses_downgraded == 0


# Recording


def test_what_is_recorded_adds_up(database: Database, engine: Engine) -> None:
    run = open_run(database)
    held = claim(database, run)
    license = uuid4()
    held.record(write_downgrade(run, license), licenses_downgraded=2)
    held.record(licenses_downgraded=3, licenses_held=1)
    now = run_of(database, run.id)
    assert (now.licenses_downgraded, now.licenses_held, now.recorded) == (5, 1, 2)
    assert [row["license_uuid"] for row in rows(engine, Downgrade)] == [license]
    lapse(engine, run.id)
    again = claim(database, run)  # goes on from what was recorded before it
    again.record(licenses_downgraded=1)
    assert run_of(database, run.id).licenses_downgraded == 6


def test_an_outcome_is_recorded_once_although_the_answer_to_its_commit_was_lost(
    database: Database, engine: Engine
) -> None:
    run = open_run(database)
    held = claim(database, run)
    license = uuid4()
    with lost_commit_answer(engine) as lost:
        held.record(write_downgrade(run, license), licenses_downgraded=3)
    assert lost
    assert run_of(database, run.id).licenses_downgraded == 3
    assert [row["license_uuid"] for row in rows(engine, Downgrade)] == [license]
    held.record(licenses_downgraded=4)
    assert run_of(database, run.id).licenses_downgraded == 7


@ON_SQLITE
def test_an_outcome_is_recorded_whole_or_not_at_all(database: Database, engine: Engine) -> None:
    run = open_run(database)
    held = claim(database, run)

    def write(session: Session) -> None:
        write_downgrade(run, uuid4())(session)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        held.record(write, licenses_downgraded=1)
    now = run_of(database, run.id)
    assert (now.licenses_downgraded, now.recorded, rows(engine, Downgrade)) == (0, 0, [])
    held.record(licenses_downgraded=2)
    assert run_of(database, run.id).licenses_downgraded == 2


# What is kept for the picture of a night


@ON_EACH
def test_a_run_tells_when_each_step_began_and_ended(database: Database) -> None:
    run = open_run(database, scheduled_for=AS_OF)
    assert (run.scheduled_for, run.downgrade_began_at, run.downgraded_at) == (AS_OF, None, None)
    claim(database, run).release()
    began = run_of(database, run.id).downgrade_began_at
    again = claim(database, run)
    assert run_of(database, run.id).downgrade_began_at == began, "a step that goes on began when it began"
    again.advance()
    claim(database, run, UNLINK).advance()
    end = run_of(database, run.id)
    assert began
    assert end.downgraded_at
    assert end.unlink_began_at
    assert end.ended_at
    assert run.opened_at <= began <= end.downgraded_at <= end.unlink_began_at <= end.ended_at


@ON_EACH
def test_each_retry_is_kept_with_its_reason_and_when_it_comes_again(database: Database, engine: Engine) -> None:
    run = open_run(database)
    claim(database, run).release(HOUR, AWAY)
    claim(database, run).release()  # handing itself on is none
    claim(database, run).release(60, Unavailable("timeout", "too slow"))
    kept = sorted(rows(engine, Retry), key=lambda row: int(row["fence"]))
    assert [(row["run_id"], row["step"], row["reason"]) for row in kept] == [
        (run.id, "downgrade", "http_503"),
        (run.id, "downgrade", "timeout"),
    ]
    waits = [(row["again_at"] - row["at"]).total_seconds() for row in kept]
    assert waits == [pytest.approx(HOUR, abs=2), pytest.approx(60, abs=2)]


@ON_EACH
@pytest.mark.parametrize("end", ["advance", "fail", "release"])
def test_the_calls_of_a_claim_are_kept_once_however_it_ends(database: Database, engine: Engine, end: str) -> None:
    run = open_run(database)
    deeds: dict[str, Callable[[Claim], None]] = {
        "advance": lambda claim: claim.advance(),
        "fail": lambda claim: claim.fail("http_403"),
        "release": lambda claim: claim.release(60, AWAY),
    }
    counted = CallTimings()
    held = claims.claim(database, run.id, run.enterprise_customer_uuid, DOWNGRADE, "w1", LEASE, counted)
    for seconds in (0.05, 0.07, 300):
        counted.observe("downgrade", "http_200", seconds)
    counted.observe("token", "http_200", 0.2)
    if end == "release":
        with lost_commit_answer(engine) as lost:
            deeds[end](held)
        assert lost
        assert run_of(database, run.id).retries == len(rows(engine, Retry)) == 1
    else:
        deeds[end](held)
    kept = {(row["step"], row["outcome"], row["le"]): (row["calls"], row["seconds"]) for row in rows(engine, LmsCall)}
    assert kept == {
        ("downgrade", "http_200", "0.1"): (2, pytest.approx(0.12)),
        ("downgrade", "http_200", "+Inf"): (1, 300),
        ("token", "http_200", "0.25"): (1, 0.2),
    }
    assert counted.drain() == []


@ON_SQLITE
def test_what_a_lost_claim_has_counted_is_not_the_next_ones(database: Database, engine: Engine) -> None:
    counted = CallTimings()
    counted.observe("downgrade", "http_200", 0.05)
    run = open_run(database)
    claims.claim(database, run.id, run.enterprise_customer_uuid, DOWNGRADE, "w1", LEASE, counted).advance()
    assert rows(engine, LmsCall) == []


@ON_SERVERS
def test_long_errors_are_cut_to_what_the_column_holds(database: Database) -> None:
    run = open_run(database)
    claim(database, run).release(1, Unavailable("database", "ø" * 600))
    assert run_of(database, run.id).error == "ø" * 500
    claim(database, run).fail("å" * 600)
    assert run_of(database, run.id).error == "å" * 500


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
    _finish(database, ended)
    set_run(database, ended, lease_until=DatabaseNow(-1))
    again, given_up = stalled.release_stalled(database)
    assert ({run.id for run in again}, given_up) == ({run.id for run in let_down}, [])
    for run, phase in zip(let_down, (Phase.QUEUED, Phase.DOWNGRADING, Phase.DOWNGRADED), strict=True):
        now = run_of(database, run.id)
        assert (now.phase, now.owner, now.publications) == (phase, None, 1)
    assert stalled.release_stalled(database) == ([], [])


@ON_EACH
def test_a_run_that_gets_no_further_is_given_up_with_a_reason(database: Database, engine: Engine) -> None:
    run = open_run(database)
    claim(database, run).release(0, AWAY)
    waits = []
    for _ in range(MAX_PUBLICATIONS):
        lapse(engine, run.id)
        again, given_up = stalled.release_stalled(database)
        assert ([each.id for each in again], given_up) == ([run.id], [])
        waits.append(seconds_left(database, run))
    assert waits == [pytest.approx(QUEUED_SECONDS * 2**n, abs=30) for n in range(MAX_PUBLICATIONS)]
    lapse(engine, run.id)
    assert stalled.release_stalled(database) == ([], [run.id])
    now = run_of(database, run.id)
    assert (now.phase, now.live, now.lease_until) == (Phase.ABANDONED, None, None)
    assert now.ended_at is not None
    assert now.error == (
        f"given up while downgrading: taken up {MAX_PUBLICATIONS} times without getting further; "
        "last: the LMS is away [http_503]"
    )
    assert stalled.release_stalled(database) == ([], [])
    with pytest.raises(NotClaimed, match="is abandoned"):
        claim(database, run)


@ON_EACH
def test_progress_takes_a_run_back_to_its_full_patience(database: Database, engine: Engine) -> None:
    run = open_run(database)
    for _ in range(MAX_PUBLICATIONS):
        lapse(engine, run.id)
        stalled.release_stalled(database)
    held = claim(database, run)
    held.guard()
    assert run_of(database, run.id).publications == MAX_PUBLICATIONS  # to begin is not to get further
    held.record(licenses_downgraded=1)
    assert run_of(database, run.id).publications == 0
    lapse(engine, run.id)
    again, given_up = stalled.release_stalled(database)
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
    outcomes = together(6, lambda _: stalled.release_stalled(database))
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

    outcomes = together(2, lambda _: stalled.release_stalled(database))
    assert [len(each[0]) for each in outcomes if not isinstance(each, LicenseExpiryError)] in ([0, 1], [1, 0])
    assert (run_of(database, run.id).publications, run_of(database, run.id).fence) == (1, 1)


# The throttle


@ON_EACH
def test_calls_of_many_threads_are_booked_one_after_the_other(database: Database, engine: Engine) -> None:
    calls, apart = 16, 1000.0
    waits = together(calls, lambda _: rate_limit.book_next_call(database, 60 / apart))
    slots = [round(wait / apart) for wait in waits if isinstance(wait, float)]
    assert sorted(slots) == list(range(calls))
    [row] = rows(engine, Throttle)
    ahead = (row["next_call_at"] - database.now()).total_seconds()
    assert ahead == pytest.approx(calls * apart, abs=60)


@ON_SQLITE
def test_a_quiet_hour_is_not_made_up_for(database: Database) -> None:
    late = database.now() - timedelta(hours=1)
    database.transact(lambda session: session.execute(update(Throttle).values(next_call_at=late)))
    first, second = (rate_limit.book_next_call(database, 0.1) for _ in range(2))
    assert first == 0
    assert second == pytest.approx(600, abs=30)


@ON_SQLITE
def test_without_a_rate_nothing_is_booked(database: Database, engine: Engine) -> None:
    before = rows(engine, Throttle)
    assert rate_limit.book_next_call(database, None) == 0
    assert rows(engine, Throttle) == before
