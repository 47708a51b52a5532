"""A pause: set once, held against everything that starts a run; and the nights that it holds back."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine
from support.claims import claim, open_run
from support.runs import ON_EACH, ON_SQLITE, Make, lay, lost_commit_answer, rows, run_of, together, unlinking

from simulator.lms.server import Simulator
from worker.db.ledger_tables import Night, Run, Wait
from worker.db.transactions import Database
from worker.deps import Deps
from worker.errors import BadArgument, Paused, Postponed
from worker.ledger import nights, waits
from worker.ledger.nights import PASSED_OVER
from worker.runs import reconcile, start
from worker.runs.request import Request

TONIGHT = datetime(2026, 6, 2, 2, 0, tzinfo=UTC)
DAY = timedelta(days=1)
TOLD = "everything is paused since .* UTC by ops on host: an upgrade: license-expiry resume ends the pause"


def pause(database: Database, by: str = "ops on host") -> Wait:
    return waits.pause(database, by, "an upgrade")


def known(engine: Engine) -> dict[datetime, int]:
    return {row["scheduled_for"]: row["tries"] for row in rows(engine, Night)}


# Setting and ending it


@ON_EACH
def test_a_pause_is_set_once_and_ended_once(database: Database, engine: Engine) -> None:
    assert waits.resume(database) is None
    assert pause(database).set_by == "ops on host"
    assert pause(database, "another").set_by == "ops on host", "who comes second is told who was first"
    assert len(rows(engine, Wait)) == 1
    ended = waits.resume(database)
    assert ended is not None
    assert (ended.set_by, ended.reason) == ("ops on host", "an upgrade")
    assert (waits.resume(database), rows(engine, Wait)) == (None, [])


@ON_EACH
def test_who_ends_the_pause_that_was_seen_ends_no_other(database: Database, engine: Engine) -> None:
    seen = pause(database).since
    waits.resume(database, seen)
    standing = pause(database, "another")
    with pytest.raises(BadArgument, match=r"^nothing was resumed: everything is paused since .* by another"):
        waits.resume(database, seen)
    assert rows(engine, Wait)
    assert waits.resume(database, standing.since) is not None
    assert rows(engine, Wait) == []


@ON_EACH
def test_of_many_that_pause_at_once_all_are_reported_alike(database: Database) -> None:
    told = together(6, lambda number: pause(database, f"ops {number}").set_by)
    standing = database.transact(waits.standing_pause)
    assert standing is not None
    assert told == [standing.set_by] * 6


@ON_SQLITE
def test_a_lost_answer_to_the_commit_of_a_pause_or_its_end_is_harmless(database: Database, engine: Engine) -> None:
    with lost_commit_answer(engine) as lost:
        assert pause(database).set_by == "ops on host"
    assert lost
    with lost_commit_answer(engine) as lost:
        waits.resume(database)
    assert (bool(lost), rows(engine, Wait)) == (True, [])


# Runs


@ON_EACH
def test_a_step_at_work_stops_before_its_next_call_and_goes_on_after_it(database: Database) -> None:
    run = open_run(database)
    held = claim(database, run)
    held.guard()
    pause(database)
    with pytest.raises(Postponed, match=TOLD):
        held.guard()
    held.record(licenses_downgraded=1)  # it was in flight
    waits.resume(database)
    held.guard()
    assert run_of(database, run.id).licenses_downgraded == 1


@ON_EACH
def test_a_pause_and_a_claim_at_the_same_moment_agree(database: Database) -> None:
    for _ in range(5):
        run = open_run(database)
        _, claimed = together(2, lambda number, run=run: claim(database, run) if number else pause(database))  # type: ignore[misc]
        with pytest.raises(Postponed):
            claimed.guard()  # type: ignore[union-attr]
        waits.resume(database)


def _start(deps: Deps) -> None:
    start.start_runs(deps, Request(), (), lambda *_: None)


def _rehearse(deps: Deps) -> None:
    start.start_runs(deps, Request(dry_run=True), (), lambda *_: None)


def _start_night(deps: Deps) -> None:
    start.start_scheduled_night(deps, TONIGHT, lambda *_: None, "beat")


@ON_SQLITE
@pytest.mark.parametrize("begin", [_start, _rehearse, _start_night])
@pytest.mark.parametrize("due", [True, False], ids=["work is due", "nothing is due"])
def test_nothing_is_started_while_all_is_paused(
    due: bool, begin: object, engine: Engine, lms: Simulator, make_test_deps: Make
) -> None:
    if due:
        lay(lms)
    deps = make_test_deps()
    pause(deps.database)
    with pytest.raises(Paused, match=TOLD):
        begin(deps)  # type: ignore[operator]
    assert rows(engine, Run) == []
    waits.resume(deps.database)
    begin(deps)  # type: ignore[operator]
    assert len(rows(engine, Run)) == due


@ON_SQLITE
def test_a_night_that_is_paused_while_it_is_opened_is_opened_to_its_end_afterwards(
    engine: Engine, lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    enterprises = [lay(lms, seed=seed).enterprise for seed in (1, 2)]
    deps = make_test_deps(**unlinking(*enterprises))
    monkeypatch.setattr(start, "CHUNK", 1)
    with pytest.raises(Paused):
        start.start_scheduled_night(deps, TONIGHT, lambda *_: (pause(deps.database), None)[1], "beat")
    assert len(rows(engine, Run)) == 1
    waits.resume(deps.database)
    assert reconcile.start_overdue_nights(deps, TONIGHT, lambda *_: None) == 1
    assert {row["enterprise_customer_uuid"] for row in rows(engine, Run)} == set(enterprises)
    assert {row["scheduled_for"] for row in rows(engine, Run)} == {TONIGHT}


# Nights


@ON_EACH
def test_a_night_that_is_held_back_is_begun_once_afterwards(database: Database, engine: Engine) -> None:
    before = nights.note_and_find_overdue(database, TONIGHT - DAY)
    nights.note(database, TONIGHT)
    nights.note(database, TONIGHT)
    assert (before, known(engine)) == ([], {TONIGHT - DAY: 0, TONIGHT: 0})
    [opened_at] = [row["opened_at"] for row in rows(engine, Night) if row["scheduled_for"] == TONIGHT]
    assert nights.note_and_find_overdue(database, TONIGHT) == [TONIGHT]
    begun = together(6, lambda _: nights.begin(database, TONIGHT))
    assert sorted(begun, key=str) == [False] * 5 + [True]
    nights.opened(database, TONIGHT)
    [begun_at] = [row["opened_at"] for row in rows(engine, Night) if row["scheduled_for"] == TONIGHT]
    assert begun_at > opened_at, "when it was begun, not when it was noted"
    assert nights.note_and_find_overdue(database, TONIGHT) == []
    nights.note(database, TONIGHT)  # beat's message came late, into another pause
    assert nights.note_and_find_overdue(database, TONIGHT) == []


LATER = {"it is held back too": True, "beat begins it, or missed it": False}


@ON_EACH
@pytest.mark.parametrize("noted", LATER.values(), ids=LATER)
def test_of_several_nights_only_the_newest_is_begun(noted: bool, database: Database, engine: Engine) -> None:
    nights.note(database, TONIGHT - 2 * DAY)
    nights.note(database, TONIGHT - DAY)
    if noted:
        nights.note(database, TONIGHT)
    assert nights.note_and_find_overdue(database, TONIGHT) == [TONIGHT]
    assert nights.begin(database, TONIGHT)
    assert known(engine) == {TONIGHT - 2 * DAY: PASSED_OVER, TONIGHT - DAY: PASSED_OVER, TONIGHT: 1}
    assert not nights.begin(database, TONIGHT - DAY), "whatever message comes late"


@ON_EACH
@pytest.mark.parametrize(
    ("before", "noted"),
    [
        pytest.param([TONIGHT - DAY], True, id="the night before is known: this one was missed"),
        pytest.param([TONIGHT], False, id="it has begun"),
        pytest.param([], False, id="a new ledger: its baseline is recorded, as without a pause"),
    ],
)
def test_reconcile_notes_the_night_that_nobody_has_begun(
    before: list[datetime], noted: bool, database: Database, engine: Engine
) -> None:
    for night in before:
        nights.begin(database, night)
        nights.opened(database, night)
    for _ in range(2):
        nights.note_missed(database, TONIGHT)
    assert TONIGHT in known(engine)
    assert nights.note_and_find_overdue(database, TONIGHT) == [TONIGHT] * noted


@ON_EACH
def test_a_baseline_that_beats_own_message_meets_in_a_pause_is_a_night(database: Database) -> None:
    nights.note_missed(database, TONIGHT)
    nights.note(database, TONIGHT)
    assert nights.note_and_find_overdue(database, TONIGHT) == [TONIGHT]
