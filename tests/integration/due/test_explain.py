"""Which night does what about a license, or why none does: one row per case, and why it matters, on every engine.

Each moment may be a night here, so that the moment foretold is the very first.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from support.command_line import HOLDS_ONE, LARGE, lay_demo
from support.due_cases import (
    HOUR,
    NOTHING,
    US,
    WHOLE_SECOND,
    Case,
    More,
    confirm,
    event,
    hold,
    hold_other,
    lay_down_cases,
    other,
    renew,
    scope_of,
)
from support.oracle import World, lay_down
from support.runs import Make, events, night, rows, times_sent
from support.stale_cases import mark, seen

from simulator.data.rows import DAY, DOWNGRADED_EVENT, UNLINKED_EVENT, Data
from simulator.data.showcase import CASES
from simulator.lms.server import Simulator
from worker.db.schema_check import PLAN_TABLE
from worker.due import downgrades, outlook, unlinks
from worker.due.explain import Explained, Outcome, explain
from worker.due.scope import Scope, scope_of as scope_from_settings
from worker.ledger.order import DOWNGRADE, UNLINK, Step

Fate = tuple[str, timedelta | None]
NEXT: Fate = ("next", None)
DONE: Fate = ("done", None)
NOBODY: Mapping[str, Any] = {"unlink_enabled": frozenset()}
NEVER_LISTED: Fate = ("never: list", None)


def later(why: str, after: timedelta) -> Fate:
    return f"later: {why}", after


def never(why: str) -> Fate:
    return f"never: {why}", None


class Told:
    """A case of `Case`, and what becomes of its license: of its downgrade and of its unlink."""

    def __init__(self, why: str, downgrade: Fate, unlink: Fate, *more: More, **given: Any) -> None:
        self.case = Case(why, NOTHING, *more, **given)
        self.expected = [downgrade, unlink]


def processed(why: str, downgrade: Fate, unlink: Fate, *more: More, **given: Any) -> Told:
    return Told(why, downgrade, unlink, *more, processed=True, **given)


def of_age(ago: timedelta) -> Fate:
    """Unlinked once a plan that expired `ago` has been expired for more than 90 days."""
    return later("age", 90 * DAY + US - ago)


MOVED_IN = seen((-300 * DAY, "elsewhere"), (2 * DAY, "here"))
TOLD = [
    Told("missed for long: both in the first night", NEXT, NEXT),
    Told("expired 27 days ago: the unlink has time", NEXT, of_age(27 * DAY), ago=27 * DAY),
    Told("exactly 90 days ago: a microsecond to go", NEXT, of_age(90 * DAY), ago=90 * DAY),
    Told(
        "current: at its expiration date it has expired", later("expired", 30 * DAY), of_age(-30 * DAY), ago=-30 * DAY
    ),
    Told("current for longer than anybody lives", never("expired"), never("age"), ago=-50_000 * DAY),
    processed("processed", DONE, NEXT),
    Told("confirmed by the ledger", DONE, NEXT, confirm()),
    Told("confirmed by an event", DONE, NEXT, event(DOWNGRADED_EVENT)),
    processed("marked for an earlier date", NEXT, of_age(10 * DAY), mark(-US), ago=10 * DAY),
    processed("marked, and current since: its history is gone", never("mark"), of_age(-DAY), ago=-DAY),
    processed("moved in after the mark: alone, with the unlink", NEXT, NEXT, mark(DAY), MOVED_IN),
    processed("moved in after the mark, never unlinked", never("mark"), NEVER_LISTED, mark(DAY), MOVED_IN, **NOBODY),
    processed("not on the list", DONE, NEVER_LISTED, **NOBODY),
    processed("without an e-mail", DONE, never("email"), email=None, lms_user_id=7),
    processed("carried on", DONE, never("renewed"), renewed=True),
    processed("unlinked", DONE, DONE, event(UNLINKED_EVENT)),
    processed(
        "given to somebody else since it was unlinked", DONE, NEXT, event(UNLINKED_EVENT), assigned_after=2 * DAY
    ),
    Told("nobody's", never("status"), never("status"), status="unassigned", email=None),
    processed("nobody's, of a processed plan", never("status"), never("status"), status="unassigned", email=None),
    Told("revoked before", never("status"), never("status"), status="revoked", revoked_after=-DAY),
    Told("purged since", NEXT, never("status"), status="revoked", revoked_after=50 * DAY, email=None),
    processed("protected for ten days", DONE, later("protected", 10 * DAY + US), other()),
    processed("protected for ever", DONE, never("protected"), other(-50_000 * DAY)),
    processed(
        "protected by a plan of tomorrow",
        DONE,
        later("protected", 400 * DAY + US),
        other(-400 * DAY, since=-DAY),
    ),
    Told(
        "protected just before its time comes",
        NEXT,
        later("age", 400 * DAY + US),
        other(-400 * DAY, since=-30 * DAY),
        ago=27 * DAY,
    ),
    processed("another protects another customer", DONE, NEXT, other(elsewhere=True)),
    Told("held since now", later("held", 12 * HOUR), later("held", 12 * HOUR), hold(step="downgrade")),
    Told("held since last night: tried again", NEXT, NEXT, hold(13 * HOUR, step="downgrade")),
    processed("held by the unlink", DONE, later("held", 11 * HOUR), hold(HOUR)),
    processed("another is held", DONE, later("held", 12 * HOUR), hold_other()),
    processed(
        "another was never downgraded, and never will be",
        DONE,
        never("held"),
        hold_other(7 * DAY, "downgrade", processed=True),
    ),
    Told("waits for a renewal", later("renewals", 60 * DAY + US), of_age(30 * DAY), renew(), ago=30 * DAY),
    Told("waits for a renewal, never unlinked", never("renewals"), NEVER_LISTED, renew(), **NOBODY),
    Told("renewed by a current plan", later("renewals", 5 * DAY), of_age(30 * DAY), renew(-5 * DAY), ago=30 * DAY),
    Told("renewed by one that has expired", NEXT, of_age(30 * DAY), renew(DAY), ago=30 * DAY),
    Told("renewed by itself", never("renewals"), NEVER_LISTED, lambda s: s.world.renew(s.plan, s.plan), **NOBODY),
]


def any_moment(moment: datetime) -> datetime:
    return moment


def fate(outcome: Outcome, as_of: datetime) -> Fate:
    why = f": {outcome.why}" if outcome.state in ("later", "never") else ""
    return outcome.state + why, outcome.at - as_of if outcome.at and outcome.state == "later" else None


def explained(engine: Engine, scope: Scope, *named: UUID) -> list[Explained]:
    with Session(engine) as session:
        found, left_out = explain(session, scope, named, any_moment)
    assert left_out == 0
    return found


def test_what_becomes_of_a_license(engine: Engine, subtests: pytest.Subtests) -> None:
    situations = lay_down_cases(engine, [told.case for told in TOLD], WHOLE_SECOND)
    named = [situation.license.uuid for situation in situations]
    everybody = frozenset(customer for each in situations for customer in each.world.agreements)
    found: dict[bool, dict[UUID, Explained]] = {}  # all of one list at once: every case is of Ann
    for told, situation in zip(TOLD, situations, strict=True):
        listed = not told.case.asked
        if listed not in found:
            asked = {"unlink_enabled": everybody, "run_id": None} | told.case.asked
            explaining = explained(engine, scope_of(situation.world, **asked), *named)
            found[listed] = {one.facts.uuid: one for one in explaining}
        one = found[listed][situation.license.uuid]
        with subtests.test(told.case.why):
            assert [fate(outcome, WHOLE_SECOND) for outcome in (one.downgrade, one.unlink)] == told.expected
            for outcome in (one.downgrade, one.unlink):
                assert outcome.state != "next" or outcome.at == WHOLE_SECOND


def test_each_rule_of_a_night_can_be_reported() -> None:
    """One that is not among RULES would keep a license from being done, and nobody would be told why."""
    scope = Scope(WHOLE_SECOND, 90 * DAY, frozenset())
    assert set(outlook.RULES[DOWNGRADE.name]) == downgrades.downgrade_rules(scope).keys()
    assert set(outlook.RULES[UNLINK.name]) == unlinks.not_unlinked(scope).keys() | {"list"}


def test_all_licenses_of_the_person_are_explained_and_nobody_elses(engine: Engine) -> None:
    world = World(Data(engine, now=WHOLE_SECOND), WHOLE_SECOND)
    here, there = world.customer(), world.customer()
    plan, elsewhere = world.plan(here), world.plan(there)
    named = world.license(plan, "ann@example.org", 7)
    theirs = [
        world.license(plan, " ANN@example.org", 8),  # who else has the address
        world.license(plan, "ann@new.example", 8),  # and what that one has besides
        world.license(plan, None, 7),
        world.license(elsewhere, "Ann@Example.org"),
        world.license(elsewhere, "ann@other.example", 7),
    ]
    for email, user in (("bob@example.org", 9), (None, None), ("", None), ("ann@example.org.uk", None)):
        world.license(plan, email, user)
        world.license(elsewhere, email, user)
    lay_down(engine, world)
    found = [one.facts.uuid for one in explained(engine, scope_of(world), named.uuid)]
    assert found[0] == named.uuid
    assert sorted(found[1:]) == sorted(license.uuid for license in theirs)
    [nobodys] = [license.uuid for license in world.licenses.values() if license.email == "" and license.plan == plan]
    assert [one.facts.uuid for one in explained(engine, scope_of(world), nobodys)] == [nobodys]


@pytest.mark.long
def test_a_night_does_what_was_foretold_for_it(engine: Engine, lms: Simulator, make_test_deps: Make) -> None:
    """With the real steps and a simulated LMS; and afterwards it is told when it was done, and by which run."""
    _, listed = lay_demo(engine, lms, *(case.name for case in CASES if case.name not in (*LARGE, HOLDS_ONE)))
    deps = make_test_deps(CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED=listed)
    everybody = [row["uuid"] for row in rows(engine, "license")]

    def look() -> dict[UUID, Explained]:
        scope = scope_from_settings(deps.database, deps.settings, deps.database.now())
        return {one.facts.uuid: one for one in explained(engine, scope, *everybody)}

    def due(found: dict[UUID, Explained], step: Step) -> set[UUID]:
        return {uuid for uuid, one in found.items() if getattr(one, step.name).state == "next"}

    before = look()
    runs = night(deps)
    assert due(before, DOWNGRADE) == set(map(UUID, times_sent(lms, "downgrade")))
    assert due(before, UNLINK) == set(events(engine, UNLINKED_EVENT))
    assert due(before, UNLINK)
    after = look()
    assert not due(after, DOWNGRADE) | due(after, UNLINK)
    for step in (DOWNGRADE, UNLINK):
        for uuid in due(before, step):
            outcome, run = getattr(after[uuid], step.name), runs[after[uuid].facts.enterprise]
            assert (outcome.state, outcome.run) == ("done", run.id)
            assert outcome.at is not None
            assert run.as_of <= outcome.at <= (run.ended_at or outcome.at)


UNREADABLE = [
    pytest.param("postgresql", "'0044-03-15 12:00 BC'", ("done", "never: date"), id="before the year 1"),
    pytest.param("postgresql", "'infinity'", ("never: expired", "never: age"), id="never ends"),
    pytest.param("mariadb", "'0000-00-00 00:00:00'", ("done", "never: date"), id="no date"),
]


@pytest.mark.parametrize(("engine_kind", "moment", "expected"), UNREADABLE, indirect=["engine_kind"])
def test_a_date_that_cannot_be_read_is_reported(engine: Engine, moment: str, expected: tuple[str, str]) -> None:
    [situation] = lay_down_cases(engine, [Case("", NOTHING, other(), confirm())], WHOLE_SECOND)
    uuid = situation.plan.uuid if engine.dialect.name == "postgresql" else situation.plan.uuid.hex
    set_dates = f"UPDATE {PLAN_TABLE} SET expiration_date = {moment}, start_date = {moment} WHERE uuid = :uuid"
    with engine.begin() as connection:
        if engine.dialect.name == "mysql":
            connection.execute(text("SET SESSION sql_mode = ''"))
        connection.execute(text(set_dates), {"uuid": uuid})
    engine.dispose()
    first, *_ = explained(engine, scope_of(situation.world), situation.license.uuid)
    assert (first.facts.expires, first.facts.starts) == (None, None)
    assert tuple(fate(outcome, WHOLE_SECOND)[0] for outcome in (first.downgrade, first.unlink)) == expected
