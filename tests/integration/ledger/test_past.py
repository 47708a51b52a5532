"""Pruning: what goes, what stays, and that no sum changes by it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from sqlalchemy import Engine, delete, event, insert
from support.database_account import Account
from support.past_nights import Past, explained, lay_past
from support.runs import ON_EACH, ON_SERVERS, ON_SQLITE, Make, rows, together

from simulator.data.rows import DAY
from worker.db.engine import make_engine
from worker.db.ledger_tables import Downgrade, HeldLicense, LmsCall, Night, Pruned, Retry, Run
from worker.db.transactions import Database
from worker.ledger import nights, past
from worker.ledger.order import Phase
from worker.ledger.runs import newest_runs
from worker.runs.reconcile import prune_ledger
from worker.web.metrics import Metrics

pytestmark = pytest.mark.usefixtures("all_counted")

KEEP = 32 * DAY
ONE, OTHER = UUID(int=1), UUID(int=2)


@pytest.fixture
def database(engine: Engine) -> Database:
    return Database(engine)


def a_run(number: int, enterprise: UUID, opened_at: datetime, **more: Any) -> dict[str, Any]:
    row = {"id": UUID(int=number), "enterprise_customer_uuid": enterprise, "phase": Phase.FINISHED, "dry_run": False}
    moments = dict.fromkeys(("opened_at", "as_of", "triggered_at", "ended_at"), opened_at)
    return {**row, "force": False, "live": None, "night_after": None, **moments, **more}


def insert_rows(engine: Engine, model: type[Any], *made: dict[str, Any]) -> None:
    with engine.begin() as connection:
        connection.execute(insert(model), list(made))


def left(engine: Engine) -> set[int]:
    return {row["id"].int for row in rows(engine, Run)}


@pytest.fixture
def old_ledger(engine: Engine) -> Past:
    """60 nights of 10 enterprises, with retries, and with LMS calls of the oldest runs too."""
    laid = lay_past(engine, enterprises=10, nights=60, trouble=0.2)
    call = {"fence": 1, "step": "learners", "outcome": "http_403", "le": "+Inf", "calls": 2, "seconds": 0.5}
    known = {row["run_id"] for row in rows(engine, LmsCall)}
    of = [{"run_id": row["id"], **call} for row in rows(engine, Run) if row["id"] not in known]
    insert_rows(engine, LmsCall, *of)
    return laid


def counters(database: Database, deps: Any) -> list[str]:
    """All counters, as a serve that has just been started tells them."""
    told = Metrics(database, deps.settings).exposition().decode().splitlines()
    names = ("_total", "_count", "_sum", "_bucket")
    return [line for line in told if line[0] != "#" and line.partition("{")[0].partition(" ")[0].endswith(names)]


@ON_EACH
def test_old_runs_go_with_their_retries_and_calls_and_no_counter_changes(
    engine: Engine, old_ledger: Past, make_test_deps: Make
) -> None:
    deps = make_test_deps(LEDGER_KEEP_DAYS=32)
    before = counters(deps.database, deps)
    assert prune_ledger(deps, old_ledger.last) == 10 * 28, "the last 32 nights stay"
    oldest = old_ledger.now - KEEP
    assert len(rows(engine, Run)) == 10 * 32
    assert all(row["ended_at"] >= oldest for row in rows(engine, Run))
    ids = {row["id"] for row in rows(engine, Run)}
    assert {row["run_id"] for row in rows(engine, LmsCall)} == ids
    assert {row["run_id"] for row in rows(engine, Retry)} < ids
    # The newest of the old ones stays too: should no night have begun since, it is the last that has finished.
    assert len(rows(engine, Night)) == 33
    assert counters(deps.database, deps) == before
    assert any(line.startswith("license_expiry_retries_total") for line in before)
    assert prune_ledger(deps, old_ledger.last) == 0
    assert counters(deps.database, deps) == before


@ON_EACH
def test_what_is_still_needed_stays(engine: Engine, database: Database) -> None:
    now = database.now()
    old = now - 50 * DAY
    insert_rows(
        engine,
        Run,
        a_run(1, ONE, old),
        a_run(2, ONE, old + DAY, ended_at=now - 31 * DAY),  # it ended later
        a_run(3, ONE, old + 2 * DAY, night_after=now),  # its enterprise is still to get the run of a night
        a_run(4, ONE, old + 3 * DAY, live=ONE, ended_at=None, phase=Phase.UNLINKING),
        a_run(5, ONE, old + 4 * DAY),  # the newest but for a dry one
        a_run(6, ONE, old + 5 * DAY, dry_run=True),
        a_run(7, OTHER, old, dry_run=True),
        a_run(8, OTHER, old + DAY, dry_run=True),  # the newest: there are no others
    )
    of = {"license_uuid": UUID(int=9), "enterprise_customer_uuid": ONE, "run_id": UUID(int=1)}
    insert_rows(engine, Downgrade, of | {"confirmed_at": old})
    held = of | {"step": "unlink", "reason": "http_400", "tries": 1, "first_held_at": old, "as_of": old}
    insert_rows(engine, HeldLicense, held)
    shown = [run.id for run in database.transact(lambda session: newest_runs(session, None))]
    assert past.prune(database, KEEP, now) == 2
    assert left(engine) == {2, 3, 4, 5, 6, 8}
    assert [run.id for run in database.transact(lambda session: newest_runs(session, None))] == shown
    assert (len(rows(engine, Downgrade)), len(rows(engine, HeldLicense))) == (1, 1)


@given(
    drawn=st.lists(
        st.tuples(st.sampled_from([ONE, OTHER]), st.integers(0, 70), st.integers(0, 2), st.booleans(), st.booleans()),
        max_size=12,
        unique_by=lambda run: run[:2],
    )
)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@ON_SQLITE
def test_what_is_kept_is_what_anybody_asks_for(engine: Engine, database: Database, drawn: list[Any]) -> None:
    with engine.begin() as connection:
        connection.execute(delete(Run))
    now = database.now()
    made = [
        a_run(n, enterprise, now - (days + 0.5) * DAY, dry_run=dry, ended_at=now - (days + 0.5 - more) * DAY)
        | ({"night_after": now} if awaited else {})
        for n, (enterprise, days, more, dry, awaited) in enumerate(drawn, 1)
    ]
    if made:
        insert_rows(engine, Run, *made)
    shown = {run.id.int for run in database.transact(lambda session: newest_runs(session, None))}
    past.prune(database, KEEP, None)
    recent = {run["id"].int for run in made if run["ended_at"] >= now - KEEP}
    awaited = {run["id"].int for run in made if run["night_after"]}
    assert left(engine) >= recent | awaited | shown
    for enterprise in (ONE, OTHER):  # and of each enterprise two more at most: its newest, and its newest dry one
        beyond = left(engine) - recent - awaited
        assert sum(run["id"].int in beyond for run in made if run["enterprise_customer_uuid"] == enterprise) <= 2


@ON_EACH
def test_no_night_begins_again_because_its_row_is_gone(engine: Engine, database: Database) -> None:
    now = database.now()

    def a_night(days: int, **more: Any) -> dict[str, Any]:
        moment = now - days * DAY
        return {"scheduled_for": moment, "opened_at": moment, "lease_until": None, "tries": 1, **more}

    abandoned = a_night(90, lease_until=now - 80 * DAY)
    given_up = a_night(91, lease_until=now - 80 * DAY, tries=nights.MAX_TRIES)
    made = [given_up, abandoned, *(a_night(days) for days in (80, 70, 60)), a_night(20, tries=nights.PASSED_OVER)]
    insert_rows(engine, Night, *made)
    latest = made[3]["scheduled_for"]  # by a schedule that was changed
    past.prune(database, KEEP, None)
    assert len(rows(engine, Night)) == 6, "which night is the last is not known"
    past.prune(database, KEEP, latest)
    kept = [row["scheduled_for"] for row in rows(engine, Night)]
    assert sorted(kept) == [abandoned["scheduled_for"], *(night["scheduled_for"] for night in made[3:])]
    assert not nights.begin(database, latest)
    assert nights.note_and_find_overdue(database, latest) == [abandoned["scheduled_for"]]


@ON_SQLITE
def test_each_time_a_bounded_number_goes(
    engine: Engine, database: Database, old_ledger: Past, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "AT_ONCE", 30)
    pruned: list[int] = []
    while not pruned or pruned[-1]:
        pruned.append(past.prune(database, KEEP, old_ledger.last))
    assert pruned == [120, 120, 40, 0]


@ON_SERVERS
def test_of_two_that_prune_at_once_each_run_is_added_up_once(
    engine: Engine, old_ledger: Past, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(past, "AT_ONCE", 20)
    deps = make_test_deps()
    before = counters(deps.database, deps)
    while len(rows(engine, Run)) > 10 * 32:
        together(2, lambda _: past.prune(deps.database, KEEP, old_ledger.last))
    assert counters(deps.database, deps) == before


@ON_EACH
def test_a_scrape_during_which_runs_are_pruned_counts_each_once(
    engine: Engine, old_ledger: Past, make_test_deps: Make
) -> None:
    """Two queries of a transaction see different moments; but SQLite lets none be pruned meanwhile."""
    deps = make_test_deps()
    before = counters(deps.database, deps)
    other, asked = Database(make_engine(engine.url.render_as_string(hide_password=False))), 0

    def prune_once() -> None:
        nonlocal asked
        asked += 1
        if asked == 1 and engine.dialect.name != "sqlite":
            past.prune(other, KEEP, old_ledger.last)

    with hear(deps.database.engine, "license_expiry_retry", prune_once):
        assert counters(deps.database, deps) == before
    assert asked == (1 if engine.dialect.name == "sqlite" else 2)
    other.engine.dispose()


@contextmanager
def hear(engine: Engine, words: str, call: Callable[[], None]) -> Iterator[None]:
    """Call this before each statement of an engine that has these words."""

    def before(_: Any, __: Any, statement: str, *___: Any) -> None:
        if words in statement:
            call()

    event.listen(engine, "before_cursor_execute", before)
    yield
    event.remove(engine, "before_cursor_execute", before)


@ON_SERVERS
def test_the_documented_rights_are_enough(engine: Engine, account: Account, old_ledger: Past) -> None:
    own = make_engine(account.url)
    assert past.prune(Database(own), KEEP, old_ledger.last) == 10 * 28
    assert rows(engine, Pruned)
    own.dispose()


@ON_SERVERS
def test_old_runs_are_found_by_an_index(engine: Engine, database: Database) -> None:
    laid = lay_past(engine, enterprises=20, nights=300)
    plan = explained(engine, past.old_runs(laid.now - 295 * DAY))
    assert "license_expiry_run_opened" in plan, plan
    assert "license_expiry_run_enterprise" in plan, plan
    assert "Seq Scan" not in plan, plan


def test_the_least_that_can_be_kept_is_more_than_a_month() -> None:
    from worker.settings import Settings
    from worker.web.history import MONTH

    [bound] = [each.ge for each in Settings.model_fields["LEDGER_KEEP_DAYS"].metadata if hasattr(each, "ge")]
    assert timedelta(days=bound) > MONTH
