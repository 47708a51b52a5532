"""Small databases drawn at random: every query of what is due answers, row by row, as the plain-Python reading does.

The dates are drawn on and around the boundaries, the learners from a handful, so that rules meet each other as they do
not in a table of cases. A failure prints the smallest `Drawn` database and the scope that show it.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from sqlalchemy import Connection, Engine, delete, insert, update
from sqlalchemy.orm import Session
from support.oracle import (
    OTHER_RUN,
    RUN,
    Answers,
    Plan,
    Reading,
    Row,
    World,
    answers_of,
    lay_down,
    pages_of,
    rows,
    uuids,
)
from support.runs import ON_ALL

from simulator.data.rows import DAY, DOWNGRADED_EVENT, UNLINKED_EVENT, Data, Status
from simulator.data.schema import table
from worker.db import ledger_tables, license_manager_tables
from worker.due import downgrades, unlinks as conditions_unlinks
from worker.due.enterprises import known_enterprises, plans_of
from worker.due.scope import Scope
from worker.license_manager import plan_history

MOMENTS = [datetime(2026, 6, 1, 2, 0, tzinfo=UTC), datetime(2026, 6, 1, 2, 0, 0, 500_000, tzinfo=UTC)]
US = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
NOW = timedelta()
CUSTOMERS = 5
STRANGER = UUID("0000cccc-0000-4000-8000-00000000cccc")
REQUESTS = ("due_downgrades", "waiting_downgrades", "due_unlinks")
TABLES = (
    "historicallicense",
    "historicalsubscriptionplan",
    "licenseevent",
    "license",
    "subscriptionplanrenewal",
    "subscriptionplan",
    "customeragreement",
)
Shown = tuple[tuple[timedelta, bool], ...]
Marks = tuple[tuple[timedelta, bool, bool], ...]

# Databases for each engine, in CI too. EXAMPLES=10000 takes 15 to 60 minutes for each engine.
EXAMPLES = int(os.environ.get("EXAMPLES", "75"))
pytestmark = pytest.mark.timeout(180 + 3 * EXAMPLES)

drawn = partial(
    settings,
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],  # the tables are emptied
)


class Terse:
    """Shows itself by what it has of its own, so that a failure can be read."""

    def __repr__(self) -> str:
        own = ((each.name, getattr(self, each.name), each.default) for each in fields(cast(Any, self)))
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value, usual in own if value != usual)})"
        )


@dataclass(frozen=True, repr=False)
class DrawnLicense(Terse):
    plan: int
    email: str | None = "ann@x.org"
    lms_user_id: int | None = None
    status: Status = "activated"
    renewed: bool = False
    assigned_after: timedelta | None = -300 * DAY
    revoked_after: timedelta | None = None
    shown: Shown = ()  # when its history shows it, and whether in its plan or in another one
    unlinked_after: timedelta | None = None
    event_after: timedelta | None = None
    confirmed_after: timedelta | None = None
    sent_by_run: bool = False
    held: tuple[timedelta, UUID, str] | None = None


@dataclass(frozen=True, repr=False)
class DrawnPlan(Terse):
    ago: timedelta
    since: timedelta = 900 * DAY
    is_active: bool = True
    processed: bool = False
    marks: Marks = ()  # when its history shows it, whether marked, and whether by us
    renewal: int | str | None = None  # the number of a plan, "open", or no renewal
    overdue: timedelta | None = None  # since when that should have been processed, and was not


@dataclass(frozen=True, repr=False)
class DrawnCustomer(Terse):
    """Licenses and renewals name their plans by number."""

    plans: list[DrawnPlan]
    licenses: list[DrawnLicense]


@dataclass(frozen=True, repr=False)
class Drawn(Terse):
    as_of: datetime
    customers: list[DrawnCustomer]


@dataclass(frozen=True, repr=False)
class DrawnScope(Terse):
    unlink_after: timedelta = 90 * DAY
    enabled: tuple[int, ...] = tuple(range(CUSTOMERS))
    enterprise: int | None = None
    plans: tuple[int, ...] | None = None
    expired_after: timedelta | None = None
    expired_before: timedelta | None = None
    force: bool = False
    run_id: UUID | None = RUN
    license_history: bool = True
    later: timedelta = NOW  # how long after `as_of` the question is put


def with_oddities(
    of: Callable[..., Any], most: int, usual: dict[str, Sequence[Any]], **odd: Sequence[Any]
) -> st.SearchStrategy[Any]:
    """Draw the usual and at most so many oddities: with more of them together hardly anything would ever be due.

    An oddity is drawn half of the time, and each kind of it as often as any other.
    """
    kinds = [{name: values[number % len(values)]} for name, values in odd.items() for number in range(16)]
    oddity: st.SearchStrategy[dict[str, Any]] = st.sampled_from([{}] * len(kinds) + kinds)
    usually = {name: st.sampled_from(values) for name, values in usual.items()}

    @st.composite
    def one(draw: st.DrawFn) -> Any:
        given = {name: draw(values) for name, values in usually.items()}
        for _ in range(most):
            given |= draw(oddity)
        return of(**given)

    return one()


# What the LMS strips from an address, as Python does.
SPACES = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
LEARNERS = ["ann@x.org", "Ann@X.org", " ann@x.org ", "ann@x.org\n", "bob@x.org", "BOB@x.org", "cyd@x.org", "dan@x.org"]
ODD_LEARNERS = [f"{space}ann@x.org{space}" for space in SPACES] + [f"Bob@x.org {space}" for space in SPACES]
NOBODY = ["", "  ", "\t", None, "\xa0", "\u3000 \x0b"]
AGO = [100 * DAY, 90 * DAY + US, 90 * DAY, 30 * DAY, US, NOW, -US, -30 * DAY]
CURRENT = [NOW, -US, -30 * DAY, -30 * DAY]
OLD = [200 * DAY, 100 * DAY, 90 * DAY + US]
AFTER = [DAY, NOW, -US, -30 * DAY]
HELD_AGO = [NOW, 12 * HOUR - US, 12 * HOUR, 7 * DAY, timedelta(minutes=-10), timedelta(minutes=-10) - US, -300 * DAY]
MARKS: list[Marks] = [
    ((DAY, True, False),),
    ((NOW, True, True), (DAY, True, False)),
    ((-US, True, True),),  # extended since
    ((-400 * DAY, True, False), (-30 * DAY, True, False)),
    ((-30 * DAY, True, False), (NOW, True, True)),
    ((-30 * DAY, True, True), (NOW, True, False)),  # extended, and saved by somebody since it expired again
    ((-30 * DAY, True, False), (DAY, False, False), (2 * DAY, True, True)),
    ((DAY, True, False), (3 * DAY, True, False)),  # saved again after the mark
    ((-30 * DAY, False, False),),  # the row with the mark was pruned
]
SEEN: list[Shown] = [
    ((-300 * DAY, True),),
    ((-300 * DAY, False), (-30 * DAY, True)),
    ((-300 * DAY, False), (NOW, True)),
    ((-300 * DAY, False), (DAY, True)),
    ((-300 * DAY, False), (DAY + US, True)),
    ((-300 * DAY, True), (-DAY, False), (2 * DAY, True)),  # out, and in again
    ((-300 * DAY, False), (2 * DAY, True)),
    ((NOW, False), (NOW, True)),  # the later row counts
    ((NOW, True), (NOW, False)),
    ((2 * DAY, True),),  # the rows before were pruned, or it was made in the plan after the mark
]


def plans(*ago: timedelta) -> st.SearchStrategy[DrawnPlan]:
    usual = {
        "ago": ago,
        "processed": [False, True],
        "renewal": [None, None, None, "open", *range(4)],
        "marks": [(), (), ((DAY, True, False),)],
    }
    odd: dict[str, Any] = {"marks": MARKS, "overdue": [NOW, -US, US, 300 * DAY]}
    return with_oddities(DrawnPlan, 2, usual, since=[NOW, -US, -DAY, -DAY - US], is_active=[False], **odd)


licenses = with_oddities(
    DrawnLicense,
    3,
    {
        "plan": [0, 0, 1, 2, 3],
        "email": [*LEARNERS, *LEARNERS, *NOBODY],
        "lms_user_id": [None, None, 1, 2, 3],
        "confirmed_after": [None, None, None, *AFTER],
    },
    email=ODD_LEARNERS,
    status=["assigned", "unassigned", "revoked"],
    renewed=[True],
    assigned_after=[None, DAY, 2 * DAY, NOW],
    revoked_after=[NOW, -US, 90 * DAY, DAY],
    shown=SEEN,
    unlinked_after=AFTER,
    event_after=AFTER,
    sent_by_run=[True],
    held=[(ago, run, step) for ago in HELD_AGO for run in (OTHER_RUN, RUN) for step in ("unlink", "downgrade")],
)


@st.composite
def databases(draw: st.DrawFn) -> Drawn:
    """Of each customer an old plan and a current one at least, and learners who may hold licenses of both."""
    customers = []
    for _ in range(draw(st.integers(2, CUSTOMERS))):
        drawn_plans = [draw(old_plans), draw(current_plans), *draw(more_plans)]
        customers.append(DrawnCustomer(drawn_plans, draw(several_licenses)))
    return Drawn(draw(st.sampled_from(MOMENTS)), customers)


old_plans, current_plans = plans(*OLD), plans(*CURRENT)
more_plans = st.lists(plans(*AGO, *OLD), max_size=3)
several_licenses = st.lists(licenses, min_size=2, max_size=12)
scopes = with_oddities(
    DrawnScope,
    2,
    {},
    unlink_after=[30 * DAY, NOW],
    enabled=[(0,), (1, 2, 6), ()],
    enterprise=[0, 1, 6],
    plans=[(0,), (0, 2, 5, 99), ()],
    expired_after=AGO,
    expired_before=AGO,
    force=[True],
    run_id=[None],
    license_history=[False],
    later=[HOUR, DAY, 30 * DAY],
)


@dataclass(frozen=True)
class Laid:
    """A drawn database, written to a real one."""

    world: World
    connection: Connection

    def scope(self, drawn: DrawnScope) -> Scope:
        as_of = self.world.as_of
        return Scope(
            as_of=as_of,
            unlink_after=drawn.unlink_after,
            unlink_enabled=frozenset(numbered(self.world.agreements, number) for number in drawn.enabled),
            enterprise=None if drawn.enterprise is None else numbered(self.world.agreements, drawn.enterprise),
            plan_uuids=None if drawn.plans is None else tuple(numbered(self.world.plans, each) for each in drawn.plans),
            expired_after=None if drawn.expired_after is None else as_of - drawn.expired_after,
            expired_before=None if drawn.expired_before is None else as_of - drawn.expired_before,
            force=drawn.force,
            run_id=drawn.run_id,
            license_history=drawn.license_history,
            now=as_of + drawn.later,
        )


def numbered(known: Iterable[UUID], number: int) -> UUID:
    """The known one by that number, or one that nobody knows."""
    return dict(enumerate(known)).get(number, STRANGER)


@contextmanager
def laid_down(engine: Engine, drawn: Drawn) -> Iterator[Laid]:
    """Empty the database and fill it again; nothing that the example writes itself is kept."""
    with engine.begin() as connection:
        connection.execute(delete(ledger_tables.HeldLicense))
        connection.execute(delete(ledger_tables.Downgrade))
        connection.execute(update(license_manager_tables.License).values(renewed_to_id=None))
        for name in TABLES:
            connection.execute(table(engine, name).delete())
    world = World(Data(engine, now=MOMENTS[0]), drawn.as_of)
    customers = [world.customer() for _ in range(CUSTOMERS)]  # first of all, so that they are the same in each example
    for customer, each in zip(customers, drawn.customers, strict=False):
        plans = add_plans(world, customer, each.plans)
        for license in each.licenses:
            add_license(world, plans, license)
    lay_down(engine, world)
    with engine.connect() as connection:
        yield Laid(world, connection)


def add_plans(world: World, customer: UUID, drawn: list[DrawnPlan]) -> list[Plan]:
    """Each plan is the prior of at most one renewal, and the result of at most one."""
    renewed: set[int] = set()
    plans = [world.plan(customer, each.ago, each.since, each.is_active, each.processed) for each in drawn]
    for plan, each in zip(plans, drawn, strict=True):
        dates: dict[str, Any] = {} if each.overdue is None else {"effective_ago": each.overdue, "processed": False}
        if each.renewal == "open":
            world.renew(plan, **dates)
        elif isinstance(each.renewal, int) and (following := each.renewal % len(plans)) not in renewed:
            renewed.add(following)
            world.renew(plan, plans[following], **dates)
        for mark in each.marks:
            world.show_mark(plan, *mark)
    return plans


def add_license(world: World, plans: list[Plan], drawn: DrawnLicense) -> None:
    here = drawn.plan % len(plans)
    plan, elsewhere = plans[here], plans[here - 1]
    dates = {"assigned_after": drawn.assigned_after, "revoked_after": drawn.revoked_after}
    status = drawn.status if drawn.revoked_after is None else "revoked"
    license = world.license(plan, drawn.email, drawn.lms_user_id, status, drawn.renewed, **dates)
    for after, in_plan in drawn.shown:
        world.show_plan(license, after, plan if in_plan else elsewhere)
    if drawn.unlinked_after is not None:
        world.event(license, UNLINKED_EVENT, drawn.unlinked_after)
    if drawn.event_after is not None:
        world.event(license, DOWNGRADED_EVENT, drawn.event_after)
    if drawn.confirmed_after is not None:
        world.confirm(license, drawn.confirmed_after)
    if drawn.sent_by_run:
        world.confirm(license, world.as_of - plan.expires, RUN)
    if drawn.held:
        world.hold(license, *drawn.held)


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


def kept_linked(reading: Reading, undowngraded: set[UUID]) -> set[UUID]:
    """The licenses of all learners of whom one is on the list as not downgraded."""
    world = reading.world
    held = [world.licenses[uuid] for uuid in undowngraded]
    return {each.uuid for each in world.licenses.values() if reading.is_of_one_who_has(each, held)}


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


def downgrade(laid: Laid, due: Answers) -> None:
    """As the step records it: in the ledger, and as events where a plan waits; what was held is so no more."""
    sent = uuids(due["due_downgrades"]) | uuids(due["waiting_downgrades"])
    laid.connection.execute(delete(ledger_tables.HeldLicense).where(ledger_tables.HeldLicense.license_uuid.in_(sent)))
    confirmed = [
        {"license_uuid": license, "run_id": RUN, "enterprise_customer_uuid": customer, "confirmed_at": laid.world.as_of}
        for license, _, customer in due["due_downgrades"]
    ]
    if confirmed:
        laid.connection.execute(insert(ledger_tables.Downgrade), confirmed)
    add_events(laid, uuids(due["waiting_downgrades"]), DOWNGRADED_EVENT)


def mark_processed(laid: Laid, due: Answers) -> None:
    found, done = plan_history._reflect(laid.connection), list(uuids(due["done_plans"]))
    assert set(plan_history.mark_processed(Session(laid.connection), found, done, laid.world.as_of, RUN)) == set(done)


def add_events(laid: Laid, licenses: set[UUID], name: str) -> None:
    times = {"created": laid.world.as_of, "modified": laid.world.as_of}
    for license in licenses:
        row = {"license_id": license, "event_name": name, **times}
        laid.connection.execute(insert(license_manager_tables.LicenseEvent).values(row))


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
