"""Calls are booked in the ledger, and those in flight counted, over all workers."""

import random
import threading
from collections import Counter
from contextlib import nullcontext
from datetime import timedelta
from math import inf

import pytest
from hypothesis import given, strategies as st
from sqlalchemy import Engine, delete, text, update
from support.claims import AS_OF, claim, open_run
from support.past_nights import explained, lay_past
from support.runs import ON_EACH, ON_SERVERS, ON_SQLITE, lapse, rows, together

from worker.db.ledger_tables import Run, Throttle
from worker.db.transactions import Database
from worker.errors import Postponed, Unusable
from worker.ledger import limits
from worker.ledger.limits import Slots

ROW_OF = {"downgrade": 1, "unlink": 2}


def book(database: Database, per_minute: float | None, within: float, kind: str = "downgrade") -> float:
    return limits.book_next_call(database, {kind: per_minute}, kind, within)


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
def test_a_slot_beyond_the_time_is_reported_and_not_booked(
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
    waits = [limits.book_next_call(database, rates, kind, inf) for kind in kinds]
    assert [round(wait / 100) for wait in waits] == [0, 0, 6, 3, 0]


@ON_SQLITE
@pytest.mark.parametrize("kind", ["downgrade", "unlink"])
def test_a_row_that_is_gone_is_reported_with_the_statement_that_brings_it_back(
    database: Database, engine: Engine, kind: str
) -> None:
    with engine.begin() as connection:
        connection.execute(delete(Throttle).where(Throttle.id == ROW_OF[kind]))
    with pytest.raises(Unusable, match="license_expiry_throttle has lost its row") as caught:
        book(database, 60, 0.0, kind)
    with engine.begin() as connection:
        connection.execute(text(caught.value.remedy))
    assert book(database, 60, 0.0, kind) == 0


# Calls in flight, over all workers


def test_slots_are_shared_in_equal_parts_in_the_order_of_the_queue() -> None:
    assert [limits.entitled(place, 3, 8) for place in range(3)] == [3, 3, 2]
    assert [limits.entitled(place, 5, 3) for place in range(5)] == [1, 1, 1, 0, 0]


@given(runs=st.integers(1, 40), limit=st.integers(1, 64))
def test_equal_parts_add_up_to_the_limit(runs: int, limit: int) -> None:
    parts = [limits.entitled(place, runs, limit) for place in range(runs)]
    assert sum(parts) == limit
    assert max(parts) - min(parts) <= 1
    assert parts == sorted(parts, reverse=True)


def sharing(database: Database, limit: int) -> Slots:
    """The slots of a new claim, as a step has them."""
    claimed = claim(database, open_run(database))
    return Slots(database, limit, claimed.run.id, claimed.hold_slots)


@ON_EACH
def test_a_run_takes_what_others_leave_and_gives_it_back_when_they_come(database: Database) -> None:
    first = sharing(database, 4)
    first.look(9, 0)
    assert first.usable == 4
    second = sharing(database, 4)
    second.look(9, 0)
    assert second.usable == 0  # until the first has given back
    first.look(9, 3)
    assert first.usable == 3  # three calls are on their way
    first.look(9, 0)
    second.look(9, 0)
    assert (first.usable, second.usable) == (2, 2)
    second.look(1, 1)
    first.look(9, 2)
    assert (first.usable, second.usable) == (3, 1)


@ON_EACH
def test_runs_beyond_the_limit_wait_in_the_order_of_the_queue(database: Database, engine: Engine) -> None:
    runs = [open_run(database) for _ in range(3)]
    for place, run in enumerate(runs):
        with engine.begin() as connection:
            connection.execute(update(Run).where(Run.id == run.id).values(queued_at=AS_OF + place * timedelta(hours=1)))
    claims = [claim(database, run) for run in runs]
    first, second, third = (Slots(database, 1, each.run.id, each.hold_slots) for each in claims)
    for each in (third, second, first, third, second):
        each.look(1, 0)
    first.look(1, 0)
    assert (first.usable, second.usable, third.usable) == (1, 0, 0)
    claims[0].release()
    third.look(1, 0)
    second.look(1, 0)
    assert (second.usable, third.usable) == (1, 0)


@ON_SQLITE
def test_a_lease_that_has_lapsed_gives_up_no_slot_of_a_call_in_flight(database: Database, engine: Engine) -> None:
    """Nobody has the run yet, so its renewal revives the lease, and the call counts again."""
    claimed = claim(database, open_run(database))
    late = Slots(database, 2, claimed.run.id, claimed.hold_slots)
    late.look(2, 0)
    lapse(engine, claimed.run.id)
    late.look(2, 2)
    claimed.renew()
    other = sharing(database, 2)
    other.look(2, 0)
    assert other.usable == 0


@ON_EACH
def test_a_worker_that_died_gives_its_slots_back_with_its_lease(database: Database, engine: Engine) -> None:
    dead = sharing(database, 2)
    dead.look(2, 0)
    other = sharing(database, 2)
    other.look(2, 0)
    assert other.usable == 0
    lapse(engine, dead._run_id)
    other.look(2, 0)
    assert other.usable == 2
    dead.look(2, 0)
    assert dead.usable == 0


def test_a_dry_run_takes_no_slot(database: Database) -> None:
    claim(database, open_run(database, dry_run=True))
    alone = sharing(database, 2)
    alone.look(2, 0)
    assert alone.usable == 2


@ON_EACH
def test_however_many_look_at_once_together_they_never_have_more_than_the_limit(database: Database) -> None:
    """Eight threads look as they like; whatever is usable at one moment is within the limit."""
    limit, shares = 3, [sharing(database, 3) for _ in range(8)]
    using, most, lock = Counter[int](), [0], threading.Lock()

    def work(number: int) -> None:
        dice, share = random.Random(number), shares[number]
        for turn in range(500):
            if turn >= 15 and most[0]:  # until then the others may still hold the slots that they began with
                return
            share.look(dice.randint(1, 4), 0)
            with lock:
                using[number] = share.usable or 0
                most[0] = max(most[0], using.total())
            with lock:
                using[number] = 0  # its calls have ended; the next look may lower its part

    together(8, work)
    assert 0 < most[0] <= limit


@ON_SERVERS
def test_the_runs_that_hold_slots_are_found_by_an_index(database: Database, engine: Engine) -> None:
    """Among all runs of a year, few have a worker."""
    lay_past(engine, enterprises=20, nights=300)
    claim(database, open_run(database))
    plan = explained(engine, limits._HELD)
    assert "license_expiry_run_slots" in plan, plan
