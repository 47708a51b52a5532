"""Small databases drawn at random: every query of what is due answers, row by row, as the plain-Python reading does."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from uuid import UUID

import pytest
from hypothesis import given, strategies as st
from sqlalchemy import Engine
from support.drawn import (
    EXAMPLES,
    STRANGER,
    Drawn,
    DrawnScope,
    add_events,
    databases,
    downgrade,
    drawn,
    kept_linked,
    laid_down,
    mark_processed,
    numbered,
    scopes,
)
from support.oracle import (
    RUN,
    Answers,
    Reading,
    Row,
    World,
    answers_of,
    pages_of,
    rows,
    uuids,
)
from support.runs import ON_ALL

from simulator.data.rows import UNLINKED_EVENT
from worker.due import downgrades, unlinks as conditions_unlinks
from worker.due.enterprises import known_enterprises, plans_of
from worker.due.scope import Scope

pytestmark = pytest.mark.timeout(180 + 3 * EXAMPLES)

REQUESTS = ("due_downgrades", "waiting_downgrades", "due_unlinks")


@drawn(max_examples=EXAMPLES)
@given(database=databases(), asked=scopes)
def test_every_answer_is_the_readings(engine: Engine, database: Drawn, asked: DrawnScope) -> None:
    with laid_down(engine, database) as laid:
        for each in (DrawnScope(), asked, replace(asked, force=not asked.force)):  # a night over everything, and others
            scope = laid.scope(each)
            found = answers_of(laid.connection, scope)
            assert found == Reading(laid.world, scope).answers()
            check_relations(found, laid.world, scope)


def check_relations(found: Answers, world: World, scope: Scope) -> None:
    """What must hold whatever the reading says."""
    of = {name: uuids(answer) for name, answer in found.items()}
    reading = Reading(world, scope)
    assert all(len(answer) == len(set(answer)) for answer in found.values())
    assert all(reading.is_confirmed(world.licenses[uuid]) for uuid in of["due_unlinks"])  # promise 2
    assert not of["protected"] & of["rehearsed_unlinks"]
    assert of["due_unlinks"] <= of["rehearsed_unlinks"]
    assert of["done_plans"] <= of["due_plans"]
    assert not of["waiting_plans"] & of["due_plans"]
    assert not of["waiting_downgrades"] & of["due_downgrades"]
    assert {row[1] for row in found["due_downgrades"]} <= of["due_plans"] - of["done_plans"]
    # Who is to be unlinked in this run was downgraded before, or is by this very run; or else is kept.
    to_come = of["rehearsed_unlinks"] - of["due_unlinks"]
    assert to_come - kept_linked(reading, world.undowngraded) <= of["due_downgrades"] | of["waiting_downgrades"]
    assert not of["due_unlinks"] & kept_linked(reading, world.undowngraded)


@ON_ALL
@drawn(max_examples=20)
@given(database=databases(), asked=scopes, limit=st.integers(1, 4))
def test_pages_hold_what_is_due(engine: Engine, database: Drawn, asked: DrawnScope, limit: int) -> None:
    with laid_down(engine, database) as laid:
        scope, world = laid.scope(asked), laid.world
        reading = Reading(world, scope)
        unlinks = pages_of(laid.connection, partial(conditions_unlinks.unlink_page, scope, limit), limit)
        due = reading.due_unlinks()
        expected = sorted((each.uuid, each.uuid in world.holds, each.email, each.lms_user_id) for each in due)
        assert sorted(joined(unlinks)) == expected
        everybody = [*world.licenses, STRANGER]
        again = rows(laid.connection, conditions_unlinks.still_to_unlink(scope, everybody))
        assert sorted(again) == expected, "of all licenses the same are still due"
        half = everybody[::2]
        of_half = rows(laid.connection, conditions_unlinks.still_to_unlink(scope, half))
        assert sorted(of_half) == [row for row in expected if row[0] in half]
        kinds = (
            (False, reading.due_plans(), reading.due_downgrades()),
            (True, reading.waiting_plans(), reading.waiting_downgrades()),
        )
        for waiting, plans, due in kinds:
            for plan in plans:
                page = partial(downgrades.downgrade_page, scope, plan.uuid, waiting, limit)
                mine = [each for each in due if each.plan == plan]
                of_plan = sorted((each.uuid, each.uuid in world.holds, plan.expires) for each in mine)
                assert sorted(joined(pages_of(laid.connection, page, limit))) == of_plan
                again = rows(laid.connection, downgrades.still_to_downgrade(scope, plan.uuid, waiting, everybody))
                assert sorted(again) == of_plan


def joined(pages: Iterator[list[Row]]) -> list[Row]:
    return [row for page in pages for row in page]


@pytest.mark.long
@drawn(max_examples=20)
@given(database=databases(), asked=scopes)
def test_a_night_that_is_done_leaves_nothing_to_do(engine: Engine, database: Drawn, asked: DrawnScope) -> None:
    """Promise 5, and what a rehearsal says is what a night does."""
    with laid_down(engine, database) as laid:
        scope = laid.scope(replace(asked, run_id=RUN))
        ask = partial(answers_of, laid.connection, scope)
        before = ask("due_plans", "due_downgrades", "waiting_downgrades", "rehearsed_unlinks")
        downgrade(laid, before)
        after = ask("due_plans", "done_plans", "due_downgrades", "waiting_plans")
        assert after["due_downgrades"] == after["waiting_plans"] == []
        assert after["due_plans"] == after["done_plans"]
        assert uuids(before["due_plans"]) <= uuids(after["done_plans"]) | plans_with_held(laid.world, scope)

        mark_processed(laid, after)
        sent = uuids(before["due_downgrades"]) | uuids(before["waiting_downgrades"])
        kept = kept_linked(Reading(laid.world, scope), laid.world.undowngraded - sent)
        unlinks = ask("due_unlinks")["due_unlinks"]
        assert unlinks == [row for row in before["rehearsed_unlinks"] if row[0] not in kept]

        add_events(laid, uuids(unlinks), UNLINKED_EVENT)
        again = answers_of(laid.connection, replace(scope, force=False), *REQUESTS, "due_enterprises")
        assert [again[name] for name in REQUESTS] == [[], [], []]
        # A forced run may hold what an earlier one confirmed, whose plan is then still to be marked; and who is kept
        # linked by a held license that is not due any more is due for as long as that stays on the list.
        assert again["due_enterprises"] == [] or scope.force or kept


def plans_with_held(world: World, scope: Scope) -> set[UUID]:
    reading = Reading(world, scope)
    return {license.plan.uuid for license in world.licenses.values() if reading.is_held(license)}


@drawn(max_examples=10)
@given(database=databases(), enterprises=st.frozensets(st.integers(0, 6)), named=st.frozensets(st.integers(0, 20)))
def test_names_are_found(engine: Engine, database: Drawn, enterprises: frozenset[int], named: frozenset[int]) -> None:
    with laid_down(engine, database) as laid:
        agreements, plans = laid.world.agreements, laid.world.plans
        asked = frozenset(numbered(agreements, number) for number in enterprises)
        asked_plans = tuple(numbered(plans, number) for number in named)
        known = rows(laid.connection, known_enterprises(asked))
        found = rows(laid.connection, plans_of(asked, asked_plans))

    assert sorted(known) == sorted((customer,) for customer in agreements if customer in asked)
    of_them = {uuid for uuid in plans if uuid in asked_plans and (not asked or plans[uuid].customer in asked)}
    assert sorted(found) == sorted((uuid,) for uuid in of_them)
