"""On databases drawn at random: `explain` agrees with what nights then do, as the plain-Python reading has it."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given, strategies as st
from sqlalchemy import Engine
from sqlalchemy.orm import Session
from support.drawn import (
    EXAMPLES,
    NOW,
    US,
    Drawn,
    DrawnScope,
    Laid,
    add_events,
    databases,
    downgrade,
    drawn,
    kept_linked,
    laid_down,
    mark_processed,
    scopes,
)
from support.oracle import HELD_FOR, Reading, answers_of, uuids

from simulator.data.rows import DAY, UNLINKED_EVENT
from worker.due.explain import Explained, explain
from worker.due.outlook import HORIZON, Night
from worker.due.scope import Scope
from worker.ledger.order import DOWNGRADE, UNLINK, Step

pytestmark = pytest.mark.timeout(180 + 6 * EXAMPLES)

Done = set[tuple[Step, UUID]]


def any_moment(moment: datetime) -> datetime:
    """A night at each moment: so the first night that does something begins just when it can."""
    return moment


def at_two(moment: datetime) -> datetime:
    night = moment.replace(hour=2, minute=0, second=0, microsecond=0)
    return night if night >= moment else night + DAY


def everything(laid: Laid, asked: DrawnScope) -> Scope:
    """The scope of a night over everything, with the drawn settings."""
    plain = DrawnScope(asked.unlink_after, asked.enabled, license_history=asked.license_history, run_id=None)
    return laid.scope(plain)


def explained(laid: Laid, scope: Scope, named: Iterable[UUID], night: Night) -> dict[UUID, Explained]:
    found, left_out = explain(Session(laid.connection), scope, list(named), night)
    assert left_out == 0
    assert len({one.facts.uuid for one in found}) == len(found)
    return {one.facts.uuid: one for one in found}


def done_by_night(laid: Laid, scope: Scope, moment: datetime) -> Done:
    """What a night at this moment would do, by the reading."""
    reading = Reading(laid.world, replace(scope, as_of=moment, now=moment))
    sent = {each.uuid for each in reading.due_downgrades() | reading.waiting_downgrades()}
    kept = kept_linked(reading, laid.world.undowngraded - sent)
    unlinked = {each.uuid for each in reading.rehearsed_unlinks()} - kept
    return {(DOWNGRADE, uuid) for uuid in sent} | {(UNLINK, uuid) for uuid in unlinked}


def foretold(found: dict[UUID, Explained]) -> dict[tuple[Step, UUID], datetime]:
    steps = {(step, uuid): getattr(one, step.name) for uuid, one in found.items() for step in (DOWNGRADE, UNLINK)}
    told = {key: outcome.at for key, outcome in steps.items() if outcome.state in ("next", "later")}
    assert all(steps[key].why for key in steps if steps[key].state in ("later", "never"))
    return {key: at for key, at in told.items() if at is not None}


def turns(laid: Laid, scope: Scope) -> list[datetime]:
    """Moments, from now on, at which the reading may change."""
    plans, holds = laid.world.plans.values(), laid.world.holds.values()
    of_plans = (
        moment for plan in plans for moment in (plan.expires, plan.expires + scope.unlink_after, plan.starts - DAY)
    )
    of_holds = (moment for _, at in holds for moment in (at + HELD_FOR, at - timedelta(minutes=10)))
    around = {moment + tick for moment in (*of_plans, *of_holds) for tick in (-US, NOW, US)}
    return [scope.as_of, *sorted(moment for moment in around if scope.as_of < moment < scope.as_of + HORIZON)]


@pytest.mark.long
@drawn(max_examples=max(1, EXAMPLES // 3))  # each asks for a dozen nights
@given(database=databases(), asked=scopes, data=st.data())
def test_the_moment_foretold_is_the_first_at_which_it_is_due(
    engine: Engine, database: Drawn, asked: DrawnScope, data: st.DataObject
) -> None:
    with laid_down(engine, database) as laid:
        scope = everything(laid, asked)
        found = explained(laid, scope, laid.world.licenses, any_moment)
        assert found.keys() == laid.world.licenses.keys()
        told = foretold(found)
        for moment in set(told.values()):
            due = done_by_night(laid, scope, moment)
            assert {key for key, at in told.items() if at == moment} <= due
            if moment > scope.as_of:
                assert not {key for key, at in told.items() if at == moment} & done_by_night(laid, scope, moment - US)
        for moment in data.draw(st.lists(st.sampled_from(turns(laid, scope)), max_size=4, unique=True)):
            assert all(key in told and told[key] <= moment for key in done_by_night(laid, scope, moment))


@pytest.mark.long
@drawn(max_examples=8)
@given(database=databases(), asked=scopes)
def test_the_night_foretold_is_the_first_that_does_it(engine: Engine, database: Drawn, asked: DrawnScope) -> None:
    with laid_down(engine, database) as laid:
        scope = everything(laid, asked)
        told = foretold(explained(laid, scope, laid.world.licenses, at_two))
        nights = {at_two(moment) for moment in turns(laid, scope)} | {at - DAY for at in told.values()}
        for night in sorted(night for night in nights if night >= scope.as_of):
            due = done_by_night(laid, scope, night)
            assert {key for key, at in told.items() if at == night} <= due
            assert all(key in told and told[key] <= night for key in due)


@pytest.mark.long
@drawn(max_examples=8)
@given(database=databases(), asked=scopes)
def test_a_night_does_what_was_foretold_and_it_is_reported_as_done(
    engine: Engine, database: Drawn, asked: DrawnScope
) -> None:
    with laid_down(engine, database) as laid:
        scope = everything(laid, asked)
        told = foretold(explained(laid, scope, laid.world.licenses, any_moment))
        tonight = {key for key, at in told.items() if at == scope.as_of}
        night = replace(scope, now=scope.as_of)
        due = answers_of(laid.connection, night, "due_plans", "due_downgrades", "waiting_downgrades")
        downgrade(laid, due)
        mark_processed(laid, answers_of(laid.connection, night, "done_plans"))
        unlinked = uuids(answers_of(laid.connection, night, "due_unlinks")["due_unlinks"])
        add_events(laid, unlinked, UNLINKED_EVENT)
        sent = uuids(due["due_downgrades"]) | uuids(due["waiting_downgrades"])
        assert {(DOWNGRADE, uuid) for uuid in sent} | {(UNLINK, uuid) for uuid in unlinked} == tonight

        after = explained(laid, scope, laid.world.licenses, any_moment)
        for step, uuid in tonight:
            outcome = getattr(after[uuid], step.name)
            assert (outcome.state, outcome.at) == ("done", scope.as_of)


@pytest.mark.long
@drawn(max_examples=8)
@given(database=databases(), asked=scopes, data=st.data())
def test_who_is_named_as_keeping_a_learner_linked_does(
    engine: Engine, database: Drawn, asked: DrawnScope, data: st.DataObject
) -> None:
    """And each license is explained with all those that have a say in it, whichever of them is named."""
    with laid_down(engine, database) as laid:
        scope, licenses = everything(laid, asked), laid.world.licenses
        if not licenses:
            return
        named = data.draw(st.sampled_from(sorted(licenses)))
        found = explained(laid, scope, [named], any_moment)
        assert next(iter(found)) == named
        reading = Reading(laid.world, replace(scope, now=scope.as_of))
        alike = {each.uuid for each in licenses.values() if reading.is_of_one_who_has(licenses[named], [each])}
        assert alike | {named} <= found.keys()
        for uuid, one in found.items():
            if one.unlink.state != "later" or one.unlink.why not in ("held", "protected"):
                continue
            mine = licenses[uuid]
            current = [
                each
                for each in licenses.values()
                if each.plan.is_active and each.plan.starts - DAY <= scope.as_of <= each.plan.expires
            ]
            held = [each for each in licenses.values() if reading.is_held(each) or each.uuid in laid.world.undowngraded]
            for kept, which in ((one.protected_by, current), (one.held_by, held)):
                by = {each.uuid for each in which if reading.is_of_one_who_has(mine, [each])}
                assert kept is not None
                assert {row.uuid for row in kept} == by
