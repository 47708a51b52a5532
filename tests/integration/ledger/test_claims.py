"""Claims on runs: one at a time, and nobody writes who has lost the run."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, insert
from sqlalchemy.orm import Session
from support.claims import AS_OF, AWAY, HOUR, LEASE, claim, open_run, seconds_left, set_run, wait
from support.runs import LONGEST, ON_EACH, ON_SERVERS, ON_SQLITE, lapse, lost_commit_answer, rows, run_of, together

from worker.db.ledger_tables import Downgrade, LmsCall, Retry, Run
from worker.db.transactions import Database
from worker.errors import BadArgument, LeaseLost, LicenseExpiryError, NotClaimed, Unavailable
from worker.ledger import claims, stalled
from worker.ledger.claims import Claim
from worker.ledger.lms_calls import CallTimings
from worker.ledger.order import DOWNGRADE, STEPS, UNLINK, Phase
from worker.ledger.stalled import QUEUED_SECONDS


def write_downgrade(run: Run, license: UUID) -> Callable[[Session], Any]:
    row = {"license_uuid": license, "run_id": run.id, "confirmed_at": AS_OF}
    row["enterprise_customer_uuid"] = run.enterprise_customer_uuid
    return lambda session: session.execute(insert(Downgrade), [row])


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
    wait(claim(database, run), HOUR)
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


@ON_EACH
def test_a_worker_of_any_name_claims_and_its_process_is_shown(database: Database) -> None:
    run = open_run(database)
    claim(database, run, owner=f"celery@{'h' * 300}, process 4711")
    owner = run_of(database, run.id).owner
    assert owner is not None
    assert owner.startswith("celery@hhh")
    assert ", process 4711 (" in owner


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
    stalled.release_stalled(database, LONGEST, 0)


def lose_by_next_step(database: Database, run: Run) -> None:
    lose_by_claim(database, run)
    set_run(database, run, phase=Phase.DOWNGRADED)
    claim(database, run, UNLINK, owner="w3")


def lose_by_end(database: Database, run: Run) -> None:
    lapse(database.engine, run.id)
    claim(database, run, owner="w2").fail("for another reason")


def lose_by_failover(database: Database, run: Run) -> None:
    """The commit of the claim was not on the replica that took over: another claim gets the same number."""
    fence = run_of(database, run.id).fence
    set_run(database, run, phase=Phase.QUEUED, fence=fence - 1, owner=None)
    assert claim(database, run, owner="w2").run.fence == fence


# Each way in which a worker loses its run while it is away; nobody tells it.
WAYS_TO_LOSE = [lose_by_claim, lose_by_reconcile, lose_by_next_step, lose_by_end, lose_by_failover]


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
            "release": partial(wait, zombie, 1),
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
    wait(claim(database, run), HOUR)
    claim(database, run).release()  # handing itself on is none
    wait(claim(database, run), 60, Unavailable("timeout", "too slow"))
    kept = sorted(rows(engine, Retry), key=lambda row: int(row["fence"]))
    assert [(row["run_id"], row["step"], row["reason"]) for row in kept] == [
        (run.id, "downgrade", "http_503"),
        (run.id, "downgrade", "timeout"),
    ]
    waits = [(row["again_at"] - row["at"]).total_seconds() for row in kept]
    assert waits == [pytest.approx(HOUR, abs=2), pytest.approx(60, abs=2)]


@ON_EACH
@pytest.mark.parametrize("end", ["advance", "fail", "wait"])
def test_the_calls_of_a_claim_are_kept_once_however_it_ends(database: Database, engine: Engine, end: str) -> None:
    run = open_run(database)
    deeds: dict[str, Callable[[Claim], None]] = {
        "advance": lambda claim: claim.advance(),
        "fail": lambda claim: claim.fail("http_403"),
        "wait": lambda claim: wait(claim, 60),
    }
    counted = CallTimings()
    held = claims.claim(database, run.id, run.enterprise_customer_uuid, DOWNGRADE, "w1", LEASE, counted)
    for seconds in (0.05, 0.07, 300):
        counted.observe("downgrade", "http_200", seconds)
    counted.observe("token", "http_200", 0.2)
    if end == "wait":
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
    wait(claim(database, run), 1, Unavailable("database", "ø" * 600))
    assert run_of(database, run.id).error == "ø" * 500
    claim(database, run).fail("å" * 600)
    assert run_of(database, run.id).error == "å" * 500


@ON_EACH
def test_a_run_judges_by_the_moment_at_which_its_first_step_is_first_claimed(
    database: Database, engine: Engine
) -> None:
    run = open_run(database)
    assert run.as_of == run.triggered_at == AS_OF
    before = database.now()
    began = claim(database, run).run.as_of
    assert before <= began <= database.now()
    lapse(engine, run.id)
    again = claim(database, run)
    assert again.run.as_of == began, "it goes on with what it began with"
    again.advance()
    assert claim(database, run, UNLINK).run.as_of == began
    assert run_of(database, run.id).triggered_at == AS_OF


@ON_EACH
@pytest.mark.parametrize("hours", [-21, 1])
def test_a_run_that_is_too_old_is_not_begun(hours: int, database: Database, engine: Engine) -> None:
    run = open_run(database)
    set_run(database, run, opened_at=database.now() + timedelta(hours=hours))
    with pytest.raises(NotClaimed, match="it is too old, and reconcile will end it"):
        claim(database, run)
