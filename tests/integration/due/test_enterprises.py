"""Enterprises with work due, and looking enterprises and plans up by id."""

from dataclasses import replace
from datetime import timedelta
from functools import partial
from uuid import UUID

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from support.due_cases import (
    EXPIRED,
    FORCED,
    HELD,
    STRANGER,
    WAITING,
    WHOLE_SECOND,
    lay_down_cases,
    scope_of,
)
from support.oracle import World, lay_down, rows
from support.runs import ON_EACH

from simulator.data.rows import DAY, Data
from worker.db.license_manager_tables import SubscriptionPlan
from worker.due import downgrades, enterprises as customers, plans as conditions_plans, unlinks as conditions_unlinks
from worker.ledger.runs import runs_by_id

# Enterprises


def test_due_enterprises_are_those_with_anything_due(engine: Engine) -> None:
    """An enterprise with nothing due gets no run and no message; any other gets one, once."""
    situations = lay_down_cases(engine, [case for case in EXPIRED + WAITING + HELD if not case.asked], WHOLE_SECOND)
    everybody = frozenset(customer for situation in situations for customer in situation.world.agreements)
    night = scope_of(situations[0].world, unlink_enabled=everybody)
    # Also who is kept linked by a license that is not due any more: a full run drops that from the list.
    unlinks = partial(conditions_unlinks.due_unlinks, downgraded=False)
    questions = (conditions_plans.due_plans, downgrades.due_downgrades, downgrades.waiting_downgrades, unlinks)

    with engine.connect() as connection:
        due = customers.find_due_enterprises(Session(connection), night)
        runs = {customer: replace(night, enterprise=customer) for customer in everybody}
        with_work = {customer for customer, run in runs.items() if any(rows(connection, ask(run)) for ask in questions)}

    assert sorted(due) == sorted(with_work)
    assert set() < with_work < everybody


# By id


def test_licenses_are_named_by_uuid_unless_asked_for_more(engine: Engine) -> None:
    situation, waits = lay_down_cases(engine, [FORCED[0], WAITING[0]], WHOLE_SECOND)
    forced_scope = scope_of(situation.world, force=True)

    with engine.connect() as connection:
        assert rows(connection, downgrades.due_downgrades(forced_scope)) == [(situation.license.uuid,)]
        assert rows(connection, conditions_unlinks.due_unlinks(forced_scope)) == [(situation.license.uuid,)]
        assert rows(connection, downgrades.waiting_downgrades(scope_of(waits.world))) == [(waits.license.uuid,)]
        assert rows(connection, conditions_unlinks.protected(forced_scope)) == []


def test_which_of_these_enterprises_have_an_agreement(engine: Engine) -> None:
    world = World(Data(engine, now=WHOLE_SECOND), WHOLE_SECOND)
    asked = frozenset(world.customer() for _ in range(2))
    world.customer()
    lay_down(engine, world)

    with engine.connect() as connection:
        assert sorted(rows(connection, customers.known_enterprises(asked | {STRANGER}))) == sorted((e,) for e in asked)
        assert rows(connection, customers.known_enterprises(frozenset())) == []


OWNERS = [
    ("no enterprise named: anybody's", "", "ABC", "ABC"),
    ("a plan of another customer was named by mistake", "1", "ABC", "A"),
    ("both customers", "12", "ABC", "ABC"),
    ("a plan that there is not", "1", "A?", "A"),
    ("an enterprise that there is not", "?", "A", ""),
    ("no plan", "1", "", ""),
]


def test_which_of_these_plans_belong_to_these_enterprises(engine: Engine, subtests: pytest.Subtests) -> None:
    world = World(Data(engine, now=WHOLE_SECOND), WHOLE_SECOND)
    customer = {"1": world.customer(), "2": world.customer(), "?": STRANGER}
    plan = {"A": world.plan(customer["1"]), "B": world.plan(customer["2"]), "C": world.plan(customer["2"], -DAY)}
    plan_uuid = {letter: each.uuid for letter, each in plan.items()} | {"?": STRANGER}
    lay_down(engine, world)
    for why, enterprises, plans, expected in OWNERS:
        asked = frozenset(customer[each] for each in enterprises), tuple(plan_uuid[each] for each in plans)
        with subtests.test(why), engine.connect() as connection:
            found = sorted(rows(connection, customers.plans_of(*asked)))
            assert found == sorted((plan_uuid[letter],) for letter in expected)


# More than a database takes as parameters one by one

MANY = 70_000


@pytest.mark.long
@ON_EACH
def test_a_list_of_seventy_thousand_is_taken(engine: Engine) -> None:
    [situation] = lay_down_cases(engine, EXPIRED[:1], WHOLE_SECOND)
    others = [UUID(int=number) for number in range(1, MANY)]
    theirs = next(iter(situation.world.agreements))
    with engine.connect() as connection:
        session = Session(connection)
        [plan] = session.scalars(select(SubscriptionPlan.uuid)).all()
        scope = scope_of(situation.world, unlink_enabled=frozenset([theirs, *others]), plan_uuids=(*others, plan))
        assert customers.find_due_enterprises(session, scope) == [theirs]
        assert session.scalars(customers.known_enterprises(scope.unlink_enabled)).all() == [theirs]
        assert session.scalars(customers.plans_of(scope.unlink_enabled, scope.plan_uuids or ())).all() == [plan]
        purged = customers.purged_too_early(scope.unlink_enabled, timedelta(days=100_000))
        assert [customer for customer, _ in session.execute(purged)] == [theirs]
        assert runs_by_id(session, others) == []
