"""Scheduled nights: begun once, found when missed, gone on with when let down."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, delete, update
from support.claims import end_well
from support.runs import (
    ON_EACH,
    ON_SQLITE,
    Make,
    finish,
    lapse as lapse_run,
    lay,
    lost_commit_answer,
    open_one,
    opened_run,
    ready,
    rows,
    run_of,
    together,
    unlinking,
)
from support.steps import add_plan

from simulator.data.rows import DAY, Data
from simulator.lms.server import Simulator
from worker.db.ledger_tables import Heartbeat, Night, Run
from worker.db.sql import DatabaseNow
from worker.db.transactions import Database
from worker.errors import Unavailable
from worker.ledger import nights
from worker.ledger.nights import MAX_TRIES
from worker.ledger.order import Phase
from worker.runs import reconcile, start

TONIGHT = datetime(2026, 6, 2, 2, 0, tzinfo=UTC)
LAST_NIGHT = TONIGHT - timedelta(days=1)


@pytest.fixture
def database(engine: Engine) -> Database:
    return Database(engine)


def lapse(engine: Engine, scheduled_for: datetime) -> None:
    """Let whoever has this night have been silent for too long."""
    with engine.begin() as connection:
        night = update(Night).where(Night.scheduled_for == scheduled_for, Night.lease_until.is_not(None))
        connection.execute(night.values(lease_until=DatabaseNow(-1)))


@ON_EACH
def test_of_many_that_begin_a_night_one_does(database: Database, engine: Engine) -> None:
    assert sorted(together(12, lambda _: nights.begin(database, TONIGHT)), key=str) == [False] * 11 + [True]
    [night] = rows(engine, Night)
    assert (night["scheduled_for"], night["tries"]) == (TONIGHT, 1)
    assert nights.begin(database, LAST_NIGHT), "each night is one of its own"


@ON_EACH
def test_a_night_that_was_let_down_is_taken_up_by_one_and_one_whose_runs_are_open_by_none(
    database: Database, engine: Engine
) -> None:
    assert nights.begin(database, TONIGHT)
    assert not nights.begin(database, TONIGHT), "somebody is at it"
    lapse(engine, TONIGHT)
    assert sorted(together(6, lambda _: nights.begin(database, TONIGHT)), key=str) == [False] * 5 + [True]
    nights.give_back(database, TONIGHT)
    assert nights.begin(database, TONIGHT), "whoever knows that it failed need not wait"
    nights.opened(database, TONIGHT)
    lapse(engine, TONIGHT)
    assert not nights.begin(database, TONIGHT)
    assert nights.note_and_find_overdue(database, TONIGHT) == []


@ON_SQLITE
def test_a_night_that_is_let_down_again_and_again_is_given_up(database: Database, engine: Engine) -> None:
    for _ in range(MAX_TRIES):
        assert nights.begin(database, TONIGHT)
        lapse(engine, TONIGHT)
    assert not nights.begin(database, TONIGHT)
    assert nights.note_and_find_overdue(database, TONIGHT) == []
    assert nights.note_and_find_overdue(database, TONIGHT + timedelta(days=1)) == [TONIGHT + timedelta(days=1)]


@ON_SQLITE
def test_what_is_lost_with_the_answer_to_a_commit_costs_one_lease(database: Database, engine: Engine) -> None:
    with lost_commit_answer(engine):
        assert not nights.begin(database, TONIGHT), "it cannot know that the row is its own"
    lapse(engine, TONIGHT)
    assert nights.note_and_find_overdue(database, TONIGHT) == [TONIGHT]
    assert nights.begin(database, TONIGHT)


@ON_EACH
def test_a_new_ledger_makes_no_night_good_and_a_later_missed_one_is(database: Database, engine: Engine) -> None:
    assert nights.note_and_find_overdue(database, LAST_NIGHT) == []
    assert nights.note_and_find_overdue(database, LAST_NIGHT) == []
    assert nights.note_and_find_overdue(database, TONIGHT) == [TONIGHT]
    assert nights.note_and_find_overdue(database, TONIGHT) == [TONIGHT], "until somebody begins it"
    assert nights.begin(database, TONIGHT)
    assert nights.note_and_find_overdue(database, TONIGHT) == []


@ON_EACH
def test_the_first_night_is_beat_s_although_reconcile_noted_its_moment_first(
    database: Database, engine: Engine
) -> None:
    assert [each for each in together(4, lambda _: nights.note_and_find_overdue(database, TONIGHT)) if each] == []
    assert nights.begin(database, TONIGHT), "beat's own message comes after a reconcile of the same minute"
    nights.opened(database, TONIGHT)
    assert not nights.begin(database, TONIGHT), "and once"
    [night] = rows(engine, Night)
    assert night["tries"] == 1


@ON_SQLITE
def test_a_schedule_that_is_changed_does_not_look_back(database: Database) -> None:
    assert nights.begin(database, TONIGHT)
    nights.opened(database, TONIGHT)
    assert nights.note_and_find_overdue(database, TONIGHT - timedelta(hours=3)) == [], (
        "an earlier hour: today's night has been"
    )


@ON_SQLITE
def test_one_that_cannot_be_published_keeps_no_other_from_it(lms: Simulator, make_test_deps: Make) -> None:
    deps = make_test_deps()
    runs = [open_one(deps, lay(lms, seed=seed).enterprise) for seed in (1, 2, 3)]
    for run_id in runs:
        lapse_run(deps.database.engine, run_id)
    tried: list[UUID] = []

    def publish(_: UUID, run_id: UUID, number: int) -> None:
        tried.append(run_id)
        if len(tried) == 1:
            raise ConnectionError("the broker is away")

    with pytest.raises(ConnectionError):
        reconcile.republish_stalled_runs(deps, publish, lambda: 0)
    assert sorted(tried) == sorted(runs)


@ON_SQLITE
def test_a_missed_night_is_made_good_once_however_many_were_missed(
    engine: Engine, lms: Simulator, make_test_deps: Make
) -> None:
    first, second = lay(lms, seed=1), lay(lms, seed=2)
    deps = make_test_deps(**unlinking(first.enterprise, second.enterprise))
    published: list[UUID] = []

    def publish(enterprise: UUID, *_: Any) -> None:
        published.append(enterprise)

    assert reconcile.start_overdue_nights(deps, LAST_NIGHT - timedelta(days=30), publish) == 0
    assert sorted(together(4, lambda _: reconcile.start_overdue_nights(deps, TONIGHT, publish)), key=str) == [
        0,
        0,
        0,
        1,
    ]
    assert start.start_scheduled_night(deps, TONIGHT, publish, "beat") is None, "beat's own message comes at last"
    assert sorted(published) == sorted([first.enterprise, second.enterprise])
    assert [run["triggered_by"] for run in rows(engine, Run)] == ["reconcile"] * 2


@ON_SQLITE
@pytest.mark.parametrize("error", [Unavailable("database", "away"), ConnectionError("the broker is away")])
def test_a_night_that_could_not_be_opened_whole_is_gone_on_with(
    engine: Engine, lms: Simulator, make_test_deps: Make, error: Exception
) -> None:
    enterprises = {lay(lms, seed=seed).enterprise for seed in (1, 2, 3)}
    deps = make_test_deps()
    published: list[UUID] = []

    def publish(enterprise: UUID, *_: Any) -> None:
        if len(published) == 1:
            raise error
        published.append(enterprise)

    def publish_all(enterprise: UUID, *_: Any) -> None:
        published.append(enterprise)

    with pytest.raises(type(error)):
        start.start_scheduled_night(deps, TONIGHT, publish, "beat")
    started = start.start_scheduled_night(deps, TONIGHT, publish_all, "beat")
    assert started is not None, "the next one to come may go on at once"
    assert {each.enterprise for each in started} == enterprises
    assert len(rows(engine, Run)) == 3, "and opens no second run of anybody"
    assert {row["scheduled_for"] for row in rows(engine, Run)} == {TONIGHT}, "they are of one night"
    reconcile.republish_stalled_runs(deps, publish_all, lambda: 7)
    assert sorted(published) == sorted(enterprises), "those whose messages were not sent are published by reconcile"
    assert start.start_scheduled_night(deps, TONIGHT, publish_all, "beat") is None


@ON_SQLITE
def test_a_night_of_an_empty_database_is_one_all_the_same(engine: Engine, make_test_deps: Make) -> None:
    deps: Any = make_test_deps()
    assert start.start_scheduled_night(deps, TONIGHT, lambda *_: None, "beat") == []
    [night] = rows(engine, Night)
    assert night["lease_until"] is None


@ON_EACH
def test_when_reconcile_last_ended_well_is_known(database: Database, engine: Engine) -> None:
    [made] = rows(engine, Heartbeat)
    before = database.now()
    assert before - timedelta(minutes=1) <= made["reconciled_at"] <= before, "a new ledger has heard of beat"
    nights.record_heartbeat(database)
    [row] = rows(engine, Heartbeat)
    assert before <= row["reconciled_at"] <= database.now()
    with engine.begin() as connection:
        connection.execute(delete(Heartbeat))
    nights.record_heartbeat(database)
    assert len(rows(engine, Heartbeat)) == 1, "a table that was emptied is mended"


# Nights that found another run live


@ON_EACH
@pytest.mark.parametrize(
    "asked",
    [
        pytest.param({"dry_run": True}, id="a rehearsal"),
        pytest.param({"expired_before": "2020-01-01"}, id="a narrowed run"),
    ],
)
def test_a_run_that_is_less_than_a_night_does_not_cost_its_enterprise_the_night(
    asked: dict[str, Any], lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=2, days=3000)
    deps = make_test_deps(**unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise, **asked)
    sent: list[UUID] = []
    night = deps.database.now().replace(microsecond=0)
    started = start.start_scheduled_night(deps, night, lambda _, run_id, number: sent.append(run_id), "beat")
    assert ([each.new for each in started or ()], sent) == ([False], [])
    if "expired_before" in asked:  # what it leaves
        data = Data(deps.database.engine, seed=2)
        data.license(add_plan(data, laid, expires=data.now - 100 * DAY, title="Later"))
        ready(data, lms)
    assert reconcile.start_postponed_runs(deps, lambda *_: None) == 0, "it is still live"
    finish(deps, laid.enterprise, run_id)
    assert reconcile.start_postponed_runs(deps, lambda _, run_id, number: sent.append(run_id)) == 1
    assert reconcile.start_postponed_runs(deps, lambda *_: None) == 0
    [own] = [run_of(deps.database, each) for each in sent]
    assert (own.scheduled_for, own.dry_run, own.expired_before) == (night, False, None)
    assert finish(deps, laid.enterprise, own.id).phase == Phase.FINISHED


@ON_SQLITE
def test_a_night_has_nothing_to_do_after_a_run_that_did_it_all(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(**unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    start.start_scheduled_night(deps, deps.database.now(), lambda *_: None, "beat")
    finish(deps, laid.enterprise, run_id)
    assert reconcile.start_postponed_runs(deps, lambda *_: None) == 0
    assert run_of(deps.database, run_id).night_after is None


@ON_SQLITE
def test_an_enterprise_that_is_gone_by_then_needs_no_night(lms: Simulator, make_test_deps: Make) -> None:
    deps = make_test_deps()
    run = opened_run(deps.database, UUID(int=9), deps.database.now())
    start.start_scheduled_night(deps, deps.database.now(), lambda *_: None, "beat")
    end_well(deps.database, run_of(deps.database, run.run_id))
    with deps.database.engine.begin() as connection:
        connection.execute(update(Run).values(night_after=DatabaseNow()))
    assert reconcile.start_postponed_runs(deps, lambda *_: None) == 0
    assert run_of(deps.database, run.run_id).night_after is None


@ON_EACH
def test_a_night_that_a_wrong_clock_has_begun_is_still_to_come(database: Database, engine: Engine) -> None:
    now = database.now()
    ahead, latest = now + timedelta(days=1), now - timedelta(hours=1)
    assert nights.begin(database, latest)
    nights.opened(database, latest)
    assert nights.begin(database, ahead)
    nights.opened(database, ahead)
    assert nights.note_and_find_overdue(database, latest) == []
    assert nights.begin(database, ahead), "when its moment comes"
