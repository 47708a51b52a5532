"""Small databases drawn at random, laid down in a real one; and a night's outcome written to it.

The dates are drawn on and around the boundaries, the learners from a handful, so that rules meet each other as they do
not in a table of cases. A failure prints the smallest `Drawn` database and the scope that show it.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast
from uuid import UUID

from hypothesis import HealthCheck, settings, strategies as st
from sqlalchemy import Connection, Engine, delete, insert, update
from sqlalchemy.orm import Session

from simulator.data.rows import DAY, DOWNGRADED_EVENT, UNLINKED_EVENT, Data, Status
from simulator.data.schema import table
from support.oracle import OTHER_RUN, RUN, Answers, Plan, Reading, World, lay_down, uuids
from worker.db import ledger_tables, license_manager_tables
from worker.due.scope import Scope
from worker.license_manager import plan_history

MOMENTS = [datetime(2026, 6, 1, 2, 0, tzinfo=UTC), datetime(2026, 6, 1, 2, 0, 0, 500_000, tzinfo=UTC)]
US = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
NOW = timedelta()
CUSTOMERS = 5
STRANGER = UUID("0000cccc-0000-4000-8000-00000000cccc")
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
EXAMPLES = int(os.environ.get("EXAMPLES", "25"))

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


def kept_linked(reading: Reading, undowngraded: set[UUID]) -> set[UUID]:
    """The licenses of all learners of whom one is on the list as not downgraded."""
    world = reading.world
    held = [world.licenses[uuid] for uuid in undowngraded]
    return {each.uuid for each in world.licenses.values() if reading.is_of_one_who_has(each, held)}


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
