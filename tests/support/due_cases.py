"""Cases of what is due: a license, its plan, what happened to them, and what must become of them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from simulator.data.rows import DAY, DOWNGRADED_EVENT, UNLINKED_EVENT, Data
from support.million_licenses import analyze
from support.oracle import (
    OTHER_RUN,
    RUN,
    License,
    Plan,
    World,
    lay_down,
)
from worker.due.scope import Scope

WHOLE_SECOND = datetime(2026, 6, 1, 2, 0, tzinfo=UTC)
US = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
NOW = timedelta()
STRANGER = UUID("0000cccc-0000-4000-8000-00000000cccc")

# What can become of the license that a case is about, and of its plan: the queries that name them.
Fate = frozenset[str]
NOTHING: Fate = frozenset()
DOWNGRADE: Fate = frozenset({"due_plans", "due_downgrades"})
PLAN_ONLY: Fate = frozenset({"due_plans"})
DONE: Fate = frozenset({"due_plans", "done_plans"})
ALONE: Fate = frozenset({"waiting_plans", "waiting_downgrades", "rehearsed_unlinks"})
DOWNGRADE_FIRST: Fate = DOWNGRADE | {"rehearsed_unlinks"}
UNLINK: Fate = frozenset({"due_unlinks", "rehearsed_unlinks"})
KEPT: Fate = frozenset({"rehearsed_unlinks"})  # unless this very run downgrades what keeps the learner linked
PROTECTED: Fate = frozenset({"protected"})
WAITS: Fate = frozenset({"plans_waiting"})
NAMELESS: Fate = NOTHING  # nothing is due; test_fates.py compares how many of them are counted

OF_PLAN = ("ago", "since", "is_active", "processed")
OF_LICENSE = ("email", "lms_user_id", "status", "renewed", "assigned_after", "revoked_after")


@dataclass(frozen=True)
class Situation:
    """A customer, a plan, a learner's license of it; a case adds the rest."""

    world: World
    customer: UUID
    plan: Plan
    license: License


More = Callable[[Situation], object]


class Case:
    """Why it matters, what is to become of the license, what to add, and columns or scope that are not the usual.

    The license is ann@example.org's, in a plan that expired 100 days ago; its customer is on the unlink list. A part
    of the scope may be a function of the situation.
    """

    def __init__(self, why: str, fate: Fate, *more: More, **given: Any) -> None:
        self.why, self.fate, self.more = why, fate, more
        self.plan = {name: given.pop(name) for name in OF_PLAN if name in given}
        self.license = {name: given.pop(name) for name in OF_LICENSE if name in given}
        self.asked = given


def renew(ago: timedelta | None = None, **given: Any) -> More:
    """Renew the plan, by one that expired `ago`; by none yet unless given."""
    return lambda s: s.world.renew(s.plan, None if ago is None else s.world.plan(s.customer, ago), **given)


def event(name: str, after: timedelta = DAY) -> More:
    return lambda s: s.world.event(s.license, name, after)


def confirm(after: timedelta = DAY, run: UUID = OTHER_RUN) -> More:
    return lambda s: s.world.confirm(s.license, after, run)


def hold(ago: timedelta = NOW, run: UUID = OTHER_RUN, step: str = "unlink", held_at: UUID | None = None) -> More:
    return lambda s: s.world.hold(s.license, ago, run, step, held_at)


def other(ago: timedelta = -10 * DAY, elsewhere: bool = False, **given: Any) -> Callable[[Situation], License]:
    """Another license of the same e-mail, unless given, in another plan, current unless given."""
    of_plan = {name: given.pop(name) for name in OF_PLAN if name in given}

    def add(s: Situation) -> License:
        customer = s.world.customer() if elsewhere else s.customer
        return s.world.license(s.world.plan(customer, ago, **of_plan), **given)

    return add


def hold_other(held_ago: timedelta = NOW, step: str = "unlink", held_at: UUID | None = None, **given: Any) -> More:
    """Another license, in another expired plan, that is held."""
    return lambda s: s.world.hold(other(50 * DAY, **given)(s), held_ago, step=step, held_at=held_at)


def colleague(s: Situation) -> License:
    """Another learner's license of the same plan."""
    return s.world.license(s.plan, "colleague@example.org")


def confirm_colleague(run: UUID = OTHER_RUN) -> More:
    return lambda s: s.world.confirm(colleague(s), run=run)


def this_plan(s: Situation) -> tuple[UUID, ...]:
    return (STRANGER, s.plan.uuid)


def processed(why: str, fate: Fate, *more: More, **given: Any) -> Case:
    """A case whose plan is processed: all that is left is to unlink."""
    return Case(why, fate, *more, processed=True, **given)


def waiting(why: str, fate: Fate, *more: More, **given: Any) -> Case:
    """A case whose plan has a renewal row that names no plan yet."""
    return Case(why, fate, renew(), *more, **given)


def forced(why: str, fate: Fate, *more: More, **given: Any) -> Case:
    return Case(why, fate, *more, force=True, **({"processed": True} | given))


EXPIRED = [
    Case("missed for a hundred nights it is found all the same, and downgraded before it is unlinked", DOWNGRADE_FIRST),
    Case("at its expiration date a plan has expired: the date is exclusive", DOWNGRADE, ago=NOW),
    Case("a microsecond before its expiration date a plan is valid", NOTHING, ago=-US),
    Case("a microsecond after it, it is not", DOWNGRADE, ago=US),
    Case("is_active plays no part in the downgrade", DOWNGRADE, ago=DAY, is_active=False),
    processed("processed, and too young to unlink: nothing is sent again", NOTHING, ago=DAY),
    Case("an invited learner may be enrolled too", DOWNGRADE_FIRST, status="assigned"),
    Case("revoked: dealt with then; the plan is marked without a call", DONE, status="revoked"),
    Case("nobody's license: the plan is marked without a call", DONE, status="unassigned", email=None),
    Case("an unassigned license with leftovers of a learner", DONE, status="unassigned", lms_user_id=7),
    Case("carried on by the next plan: downgraded under this one, and stays linked", DOWNGRADE, renewed=True),
    Case("no e-mail: it cannot be unlinked, and is downgraded all the same", DOWNGRADE | NAMELESS, email=None),
    Case("a blank e-mail: likewise", DOWNGRADE | NAMELESS, email=""),
]
WAITING = [
    waiting("the plan waits for its renewal; the learner's 90 days do not", ALONE | WAITS),
    waiting("exactly 90 days: too young to unlink, so it waits with its plan", WAITS, ago=90 * DAY),
    waiting("90 days and a microsecond", ALONE | WAITS, ago=90 * DAY + US),
    waiting("processed before the renewal was made", UNLINK, processed=True),
    waiting("carried on by the next plan", WAITS, renewed=True),
    waiting("revoked", WAITS, status="revoked"),
    waiting("no e-mail: not unlinked, so not downgraded before its plan is", NAMELESS | WAITS, email=None),
    waiting("not on the list: likewise", WAITS, unlink_enabled=frozenset()),
    waiting("unlinked already", WAITS, event(UNLINKED_EVENT)),
    waiting("protected: stays linked, so stays enrolled", PROTECTED | WAITS, other()),
    waiting("downgraded one by one already", UNLINK | WAITS, event(DOWNGRADED_EVENT)),
    waiting("downgraded with its plan, which was then given a renewal", UNLINK | WAITS, confirm()),
    waiting("downgraded for an earlier expiration date", ALONE | WAITS, event(DOWNGRADED_EVENT, -US)),
    waiting("held", WAITS, hold()),
    waiting("held last night", ALONE | WAITS, hold(13 * HOUR)),
    waiting("a colleague's too: their plan is named once", ALONE | WAITS, colleague),
    waiting("a colleague who is held does not matter", ALONE | WAITS, lambda s: s.world.hold(colleague(s))),
    waiting("force is for processed plans and makes no difference", ALONE | WAITS, force=True),
    Case("renewed by a current plan, but not carried on into it", ALONE | WAITS, renew(-100 * DAY)),
    Case("renewed by a plan that has expired: nothing to wait for", DOWNGRADE_FIRST, renew(NOW)),
]
HELD = [
    Case("just now, and nothing else is left of its plan", NOTHING, hold()),
    Case("eleven hours ago: a second run straight after sends nothing", NOTHING, hold(11 * HOUR)),
    Case("almost twelve hours ago", NOTHING, hold(12 * HOUR - US)),
    Case("twelve hours ago: tried again", DOWNGRADE_FIRST, hold(12 * HOUR)),
    Case("thirteen hours ago: tried again next night", DOWNGRADE_FIRST, hold(13 * HOUR)),
    Case("by this very run, however long it takes", NOTHING, hold(13 * HOUR, RUN)),
    processed("by the unlink", NOTHING, hold()),
    processed("by the unlink of last night", UNLINK, hold(13 * HOUR)),
    processed("by the unlink of this very run", NOTHING, hold(13 * HOUR, RUN)),
    Case("it does not keep its plan's other licenses waiting", PLAN_ONLY, hold(), colleague),
    Case("a held colleague does not keep it waiting", DOWNGRADE_FIRST, lambda s: s.world.hold(colleague(s))),
    Case("nothing but held licenses is left: the plan waits for them", NOTHING, hold(), confirm_colleague()),
    Case("until they may be tried again", DOWNGRADE_FIRST, hold(12 * HOUR), confirm_colleague()),
    Case("by the unlink, before the plan was marked: it is done, the learner stays", DONE, hold(), confirm()),
    Case("downgraded before the plan was extended, and refused now: the plan waits", NOTHING, hold(), confirm(-DAY)),
    Case("and revoked since: the plan is done", DONE, hold(), status="revoked"),
    processed("the learner's other license", NOTHING, hold_other()),
    processed("the learner's other license, last night", UNLINK, hold_other(13 * HOUR)),
    Case("by last night's downgrade: tried again", DOWNGRADE_FIRST, hold(13 * HOUR, step="downgrade")),
    processed("by last week's downgrade, and its plan marked by hand", KEPT, hold(7 * DAY, step="downgrade")),
    processed("the other, by last week's downgrade, never downgraded since", KEPT, hold_other(7 * DAY, "downgrade")),
    processed("the other, by this night's downgrade", NOTHING, hold_other(HOUR, "downgrade")),
    processed(
        "the same user's, by last week's downgrade",
        KEPT,
        hold_other(7 * DAY, "downgrade", email=None, lms_user_id=7),
        lms_user_id=7,
    ),
    processed(
        "at another customer, by last week's downgrade",
        UNLINK,
        hold_other(7 * DAY, "downgrade", elsewhere=True, lms_user_id=7),
        lms_user_id=7,
    ),
    processed(
        "another learner's, by last week's downgrade", UNLINK, hold_other(7 * DAY, "downgrade", email="bob@example.org")
    ),
    processed("under the e-mail in another case", NOTHING, hold_other(email="ANN@example.org")),
    processed("under the e-mail with spaces", NOTHING, hold_other(email=" ann@example.org ")),
    processed("under the same user", NOTHING, hold_other(email="ann@new.example", lms_user_id=7), lms_user_id=7),
    processed("under the same user, no e-mail", NOTHING, hold_other(email=None, lms_user_id=7), lms_user_id=7),
    processed("at another customer", UNLINK, hold_other(elsewhere=True, lms_user_id=7), lms_user_id=7),
    processed("another learner's", UNLINK, hold_other(email="bob@example.org", lms_user_id=8), lms_user_id=7),
    processed("a license of nobody known", UNLINK, hold_other(email=None)),
    Case("kept linked by it, not kept enrolled: this downgrade is due", DOWNGRADE, hold_other()),
    waiting("kept linked by it, so nothing to downgrade one by one", WAITS, hold_other()),
    processed("and protected: counted as neither", NOTHING, hold(), other()),
]
FORCED = [
    forced("a processed plan's licenses again", DOWNGRADE | UNLINK),
    forced("a processed plan's that has just expired", DOWNGRADE, ago=NOW),
    forced("but not those of a plan that has not", NOTHING, ago=-US),
    forced("but not what this run has sent", DONE | UNLINK, confirm(run=RUN)),
    forced("what another run has sent", DOWNGRADE | UNLINK, confirm()),
    forced("what was downgraded one by one", DOWNGRADE | UNLINK, event(DOWNGRADED_EVENT)),
    forced("what another run holds", DOWNGRADE | UNLINK, hold()),
    forced("but not what this run holds", NOTHING, hold(run=RUN)),
    forced("a learner's whose other license another run holds", DOWNGRADE | UNLINK, hold_other()),
    forced("a learner's whose other license was never downgraded", DOWNGRADE | KEPT, hold_other(HOUR, "downgrade")),
    forced(
        "sent or held by this run, to the last: nothing left to do now", NOTHING, hold(run=RUN), confirm_colleague(RUN)
    ),
    forced("unlinked already: downgraded again, not unlinked again", DOWNGRADE, event(UNLINKED_EVENT)),
    forced("protected as ever", DOWNGRADE | PROTECTED, other()),
    forced("the chain must have ended all the same", UNLINK, renew(-DAY)),
    forced("nor may it have an open renewal", UNLINK, renew()),
    forced("a plan with no learner's license", DONE, status="revoked"),
    forced("a plan not processed", DOWNGRADE_FIRST, processed=False),
    forced("a plan not processed, sent by another run", DOWNGRADE | UNLINK, confirm(), processed=False),
    forced("a plan not processed, sent by this run", DONE | UNLINK, confirm(run=RUN), processed=False),
    forced("no run yet: it has sent nothing and holds nothing", DOWNGRADE | UNLINK, confirm(), hold(), run_id=None),
    forced("this plan", DOWNGRADE | UNLINK, plan_uuids=this_plan),
    forced("another plan", NOTHING, plan_uuids=(STRANGER,)),
    forced("another enterprise", NOTHING, enterprise=STRANGER),
]


def scope_of(world: World, **asked: Any) -> Scope:
    """What a night over the world's customers judges by."""
    usual: dict[str, Any] = {
        "as_of": world.as_of,
        "unlink_after": 90 * DAY,
        "unlink_enabled": frozenset(world.agreements),
        "run_id": RUN,
        "now": world.as_of,
    }
    return Scope(**(usual | asked))


def lay_down_case(data: Data, case: Case, as_of: datetime) -> Situation:
    world = World(data, as_of)
    customer = world.customer()
    plan = world.plan(customer, **case.plan)
    situation = Situation(world, customer, plan, world.license(plan, **case.license))
    for more in case.more:
        more(situation)
    return situation


def lay_down_cases(engine: Engine, cases: Iterable[Case], as_of: datetime) -> list[Situation]:
    data = Data(engine, now=WHOLE_SECOND)
    situations = [lay_down_case(data, case, as_of) for case in cases]
    lay_down(engine, *(situation.world for situation in situations))
    if engine.dialect.name == "postgresql":
        # Where autovacuum took the tables for empty, the night's first question nests full scans of three of them and
        # takes seconds instead of milliseconds.
        with engine.begin() as connection:
            analyze(connection)
    return situations
