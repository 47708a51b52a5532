"""LMS_REQUESTS_PER_MINUTE is booked in the ledger, over all workers."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine, delete, text, update
from support.runs import ON_EACH, ON_SQLITE, rows, together

from worker.db.ledger_tables import Throttle
from worker.db.transactions import Database
from worker.errors import Unusable
from worker.ledger import rate_limit

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


@ON_EACH
def test_what_a_wrong_clock_has_booked_for_later_holds_nobody_up(database: Database) -> None:
    far = database.now() + timedelta(days=1)
    database.transact(lambda session: session.execute(update(Throttle).values(next_call_at=far)))
    first, second = (rate_limit.book_next_call(database, 60) for _ in range(2))
    assert first == 0
    assert second == pytest.approx(1, abs=1)


@ON_SQLITE
def test_without_a_rate_nothing_is_booked(database: Database, engine: Engine) -> None:
    before = rows(engine, Throttle)
    assert rate_limit.book_next_call(database, None) == 0
    assert rows(engine, Throttle) == before


@ON_EACH
def test_a_row_that_is_gone_is_told_with_the_statement_that_brings_it_back(database: Database, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(delete(Throttle))
    with pytest.raises(Unusable, match="license_expiry_throttle has lost its row") as caught:
        rate_limit.book_next_call(database, 60)
    with engine.begin() as connection:
        connection.execute(text(caught.value.remedy))
    assert rate_limit.book_next_call(database, 60) == 0
