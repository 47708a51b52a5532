"""The calls of each kind are booked in the ledger, over all workers."""

from contextlib import nullcontext
from datetime import timedelta
from math import inf

import pytest
from sqlalchemy import Engine, delete, text, update
from support.runs import ON_EACH, ON_SQLITE, rows, together

from worker.db.ledger_tables import Throttle
from worker.db.transactions import Database
from worker.errors import Postponed, Unusable
from worker.ledger import rate_limit

ROW_OF = {"downgrade": 1, "unlink": 2}


def book(database: Database, per_minute: float | None, within: float, kind: str = "downgrade") -> float:
    return rate_limit.book_next_call(database, {kind: per_minute}, kind, within)


@ON_EACH
def test_calls_of_many_threads_are_booked_one_after_the_other(database: Database, engine: Engine) -> None:
    calls, apart = 16, 1000.0
    waits = together(calls, lambda _: book(database, 60 / apart, inf))
    slots = [round(wait / apart) for wait in waits if isinstance(wait, float)]
    assert sorted(slots) == list(range(calls))
    row = rows(engine, Throttle)[0]
    ahead = (row["next_call_at"] - database.now()).total_seconds()
    assert ahead == pytest.approx(calls * apart, abs=60)


@ON_EACH
def test_of_many_threads_those_whose_slot_is_too_far_off_book_none(database: Database, engine: Engine) -> None:
    """No slot is lost, and the next one is still there for who comes in time for it."""
    calls, apart, fit = 16, 1000.0, 6
    within = (fit - 0.5) * apart
    told = together(calls, lambda _: book(database, 60 / apart, within))
    waits = [wait for wait in told if isinstance(wait, float)]
    later = [error for error in told if isinstance(error, Postponed)]
    assert sorted(round(wait / apart) for wait in waits) == list(range(fit))
    assert [(error.reason, round((error.retry_after or 0) / apart)) for error in later] == [("booked", fit)] * (
        calls - fit
    )
    assert book(database, 60 / apart, inf) == pytest.approx(fit * apart, abs=60)


@ON_EACH
@pytest.mark.parametrize(
    ("ahead", "within", "booked"),
    [
        pytest.param(-60, 0.0, True, id="at once, and no wait is allowed"),
        pytest.param(60, 120.0, True, id="within the time"),
        pytest.param(60, 5.0, False, id="beyond it"),
        pytest.param(60, 0.0, False, id="any wait is, where none is allowed"),
    ],
)
def test_a_slot_beyond_the_time_is_told_and_not_booked(
    database: Database, engine: Engine, ahead: float, within: float, booked: bool
) -> None:
    next_at = database.now() + timedelta(seconds=ahead)
    database.transact(lambda session: session.execute(update(Throttle).values(next_call_at=next_at)))
    before = rows(engine, Throttle)
    with nullcontext() if booked else pytest.raises(Postponed, match="LMS_DOWNGRADES_PER_MINUTE is 60") as caught:
        assert 0 <= book(database, 60, within) <= within
    assert (rows(engine, Throttle) != before) is booked
    assert caught is None or caught.value.retry_after == pytest.approx(ahead, abs=30)


@ON_SQLITE
def test_a_quiet_hour_is_not_made_up_for(database: Database) -> None:
    late = database.now() - timedelta(hours=1)
    database.transact(lambda session: session.execute(update(Throttle).values(next_call_at=late)))
    first, second = (book(database, 0.1, inf) for _ in range(2))
    assert first == 0
    assert second == pytest.approx(600, abs=30)


@ON_EACH
def test_what_a_wrong_clock_has_booked_for_later_holds_nobody_up(database: Database) -> None:
    far = database.now() + timedelta(days=1)
    database.transact(lambda session: session.execute(update(Throttle).values(next_call_at=far)))
    first, second = (book(database, 60, inf) for _ in range(2))
    assert first == 0
    assert second == pytest.approx(1, abs=1)


@ON_SQLITE
def test_without_a_rate_nothing_is_booked(database: Database, engine: Engine) -> None:
    before = rows(engine, Throttle)
    assert book(database, None, 0.0) == 0
    assert rows(engine, Throttle) == before


@ON_EACH
def test_each_kind_of_call_has_a_rate_of_its_own_and_an_unlinks_questions_share_its(database: Database) -> None:
    rates = {"downgrade": 0.1, "unlink": 0.2, "learners": 0.2}
    kinds = ("downgrade", "unlink", "downgrade", "learners", "token")
    waits = [rate_limit.book_next_call(database, rates, kind, inf) for kind in kinds]
    assert [round(wait / 100) for wait in waits] == [0, 0, 6, 3, 0]


@ON_SQLITE
@pytest.mark.parametrize("kind", ["downgrade", "unlink"])
def test_a_row_that_is_gone_is_told_with_the_statement_that_brings_it_back(
    database: Database, engine: Engine, kind: str
) -> None:
    with engine.begin() as connection:
        connection.execute(delete(Throttle).where(Throttle.id == ROW_OF[kind]))
    with pytest.raises(Unusable, match="license_expiry_throttle has lost its row") as caught:
        book(database, 60, 0.0, kind)
    with engine.begin() as connection:
        connection.execute(text(caught.value.remedy))
    assert book(database, 60, 0.0, kind) == 0
