"""What all runs wait for, as the ledger has it: outages, their probes, and the waits of single runs."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine, update
from support.claims import AWAY, claim, open_run, set_run, wait
from support.runs import ON_EACH, ON_SQLITE, let_waits_pass, lost_commit_answer, rows, run_of, together

from worker.db.ledger_tables import Retry, Wait
from worker.db.sql import DatabaseNow
from worker.db.transactions import Database
from worker.errors import LeaseLost, NotClaimed, Postponed, Stopped, Unavailable
from worker.ledger import waits
from worker.ledger.order import DOWNGRADE, UNLINK, Phase
from worker.ledger.stalled import MAX_RUN_AGE

THROTTLED = Unavailable("throttled", "the LMS throttles us", "", 30)


def standing(database: Database) -> Postponed | None:
    return database.transact(waits.postponement)


def pause(database: Database) -> None:
    row = Wait(kind=waits.PAUSE, since=database.now(), reason="an upgrade", set_by="ops@host", tries=0)
    database.transact(lambda session: session.add(row))


# An outage


@ON_EACH
def test_an_outage_stands_for_all_until_it_is_ended(database: Database, engine: Engine) -> None:
    assert standing(database) is None
    assert waits.begin_outage(database, AWAY, 60)
    assert not waits.begin_outage(database, AWAY, 60), "it had begun before"
    stands = standing(database)
    assert stands is not None
    assert stands.reason == "http_503"
    assert stands.retry_after == pytest.approx(60, abs=10)
    assert "all runs wait for the LMS since" in str(stands)
    assert str(AWAY.what) in str(stands)
    ended = waits.end_outage(database)
    assert ended is not None
    assert (ended.reason, ended.tries) == ("http_503", 0)
    assert (standing(database), rows(engine, Wait), waits.end_outage(database)) == (None, [], None)


@ON_EACH
def test_of_many_that_meet_an_outage_one_begins_it(database: Database, engine: Engine) -> None:
    begun = together(6, lambda _: waits.begin_outage(database, AWAY, 60))
    assert (begun.count(True), begun.count(False)) == (1, 5)
    assert len(rows(engine, Wait)) == 1


@pytest.mark.parametrize(
    ("first", "then", "left"),
    [
        pytest.param(60, 30, 60, id="sooner: what was asked for before holds"),
        pytest.param(60, 300, 300, id="later: that holds"),
    ],
)
@ON_SQLITE
def test_who_meets_it_once_more_can_only_make_it_longer(first: int, then: int, left: int, database: Database) -> None:
    waits.begin_outage(database, AWAY, first)
    waits.begin_outage(database, THROTTLED, then)
    stands = standing(database)
    assert stands is not None
    assert stands.reason == "throttled"
    assert stands.retry_after == pytest.approx(left, abs=10)


@ON_EACH
def test_a_probe_is_one_runs_and_only_when_its_moment_has_come(database: Database) -> None:
    assert not waits.take_probe(database, 60), "nothing stands"
    waits.begin_outage(database, AWAY, 60)
    assert not waits.take_probe(database, 60), "too early"
    let_waits_pass(database)
    taken = together(6, lambda _: waits.take_probe(database, 60))
    assert taken.count(True) == 1
    let_waits_pass(database)  # who had it was killed
    assert waits.take_probe(database, 60)
    waits.prolong_outage(database, THROTTLED, 30)
    stands = standing(database)
    assert stands is not None
    assert stands.reason == "throttled"
    assert stands.retry_after == pytest.approx(30, abs=10)
    assert (waits.end_outage(database) or Wait()).tries == 1


@ON_EACH
def test_a_moment_that_a_wrong_clock_has_set_is_probed_at_once(database: Database) -> None:
    waits.begin_outage(database, AWAY, 60)
    far = database.now() + timedelta(days=400)
    database.transact(lambda session: session.execute(update(Wait).values(again_at=far)))
    stands = standing(database)
    assert stands is not None
    assert (stands.retry_after or 0) <= waits.LONGEST
    assert waits.take_probe(database, 60)


@ON_SQLITE
def test_nothing_is_probed_while_all_is_paused(database: Database) -> None:
    waits.begin_outage(database, AWAY, 60)
    let_waits_pass(database)
    pause(database)
    stands = standing(database)
    assert stands is not None
    assert (stands.reason, stands.retry_after) == ("paused", waits.PAUSE_SECONDS)
    assert "by ops@host: an upgrade: license-expiry resume ends the pause" in str(stands)
    assert not waits.take_probe(database, 60)


@ON_EACH
def test_what_the_lms_has_answered_lately_is_known(database: Database) -> None:
    run = open_run(database)
    held = claim(database, run)
    held.record()  # a mark, say: no answer of the LMS
    assert not waits.answered_since(database, 60)
    held.record(licenses_downgraded=1)
    assert waits.answered_since(database, 60)
    set_run(database, run, confirmed_at=DatabaseNow(-100))
    assert not waits.answered_since(database, 60)


# A run that waits


@ON_EACH
def test_a_run_at_work_sends_nothing_more_once_an_outage_stands(database: Database) -> None:
    run = open_run(database)
    held = claim(database, run)
    held.guard()
    waits.begin_outage(database, AWAY, 60)
    with pytest.raises(Postponed, match="http_503"):
        held.guard()
    held.renew()  # what is in flight may end
    held.record(licenses_downgraded=1)
    waits.end_outage(database)
    held.guard()


@ON_EACH
def test_a_run_at_work_sends_nothing_more_once_it_is_stopped(database: Database) -> None:
    run = open_run(database)
    held = claim(database, run)
    set_run(database, run, stopped_by="ops@host", stop_reason="a wrong plan")
    with pytest.raises(Stopped, match="was stopped by ops@host: a wrong plan"):
        held.guard()
    held.record(licenses_downgraded=1)
    held.release()
    ended = run_of(database, run.id)
    assert (ended.phase, ended.live, ended.owner, ended.licenses_downgraded) == (Phase.STOPPED, None, None, 1)
    with pytest.raises(NotClaimed, match="is stopped by ops@host: a wrong plan"):
        claim(database, run, UNLINK)


@ON_SQLITE
def test_one_that_was_taken_over_meanwhile_hears_of_that_first(database: Database) -> None:
    run = open_run(database)
    held = claim(database, run)
    set_run(database, run, fence=9)
    waits.begin_outage(database, AWAY, 60)
    with pytest.raises(LeaseLost):
        held.guard()


@ON_EACH
def test_a_wait_is_kept_as_one_however_often_the_run_comes_in_vain(database: Database, engine: Engine) -> None:
    run = open_run(database)
    waits.begin_outage(database, AWAY, 60)
    for seconds in (60, 120, 240):
        stands = standing(database)
        assert stands is not None
        assert waits.postpone(database, run.id, DOWNGRADE, stands, seconds)
    waiting = run_of(database, run.id)
    assert (waiting.phase, waiting.waits_for, waiting.retries, waiting.tries) == (Phase.QUEUED, "http_503", 1, 0)
    assert waiting.gives_up_at == run.opened_at + MAX_RUN_AGE
    [kept] = rows(engine, Retry)
    assert (kept["step"], kept["reason"], kept["times"]) == ("downgrade", "http_503", 3)
    assert (kept["again_at"] - database.now()).total_seconds() == pytest.approx(240, abs=20)
    wait(claim(database, run), 60, THROTTLED, tries=0)
    assert [(row["reason"], row["times"]) for row in sorted(rows(engine, Retry), key=lambda row: row["fence"])] == [
        ("http_503", 3),
        ("throttled", 1),
    ]
    assert run_of(database, run.id).retries == 2


@ON_EACH
def test_tries_go_on_counting_until_the_run_gets_further(database: Database) -> None:
    run = open_run(database)
    for tries in (1, 2):
        held = claim(database, run)
        assert held.run.tries == tries - 1
        wait(held, 0, tries=tries)
    waiting = run_of(database, run.id)
    assert (waiting.tries, waiting.tries_left, waiting.waits_for) == (2, 3, "http_503")
    held = claim(database, run)
    held.record(licenses_downgraded=1)
    assert (held.run.tries, run_of(database, run.id).tries, run_of(database, run.id).waits_for) == (0, 0, None)


@pytest.mark.parametrize(
    ("dry_run", "owned", "step", "paused", "waits_too"),
    [
        pytest.param(False, False, DOWNGRADE, False, True, id="one that is queued"),
        pytest.param(False, True, DOWNGRADE, False, False, id="a worker has it: that one waits"),
        pytest.param(False, False, UNLINK, False, False, id="not ready for the step"),
        pytest.param(True, False, DOWNGRADE, False, False, id="a dry run needs no LMS"),
        pytest.param(True, False, DOWNGRADE, True, True, id="a pause is for dry runs too"),
    ],
)
@ON_SQLITE
def test_which_runs_wait(
    dry_run: bool, owned: bool, step: object, paused: bool, waits_too: bool, database: Database
) -> None:
    run = open_run(database, dry_run=dry_run)
    if owned:
        claim(database, run)
    waits.begin_outage(database, AWAY, 60)
    if paused:
        pause(database)
    stands = standing(database)
    assert stands is not None
    assert (waits.postpone(database, run.id, step, stands, 60) is not None) == waits_too  # type: ignore[arg-type]


@ON_SQLITE
def test_a_wait_is_recorded_once_if_the_answer_to_its_commit_is_lost(database: Database, engine: Engine) -> None:
    run = open_run(database)
    held = claim(database, run)
    with lost_commit_answer(engine) as lost:
        wait(held, 60)
    assert lost
    assert [row["times"] for row in rows(engine, Retry)] == [1]
    assert run_of(database, run.id).retries == 1
