"""What is due, at its boundaries: one row per case, and why it matters, on every engine.

All cases stand in one database, each with a customer of its own, so that each also shows that the others' rows do not
matter to it. They are judged once at a whole second and once at a fraction of one, which SQLite stores as texts of
different length. The plain-Python reading must agree with every row, or it is no measure.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, update
from sqlalchemy.orm import Session
from support.oracle import (
    OTHER_RUN,
    RUN,
    Answers,
    License,
    Page,
    Plan,
    Reading,
    World,
    answers_of,
    lay_down,
    pages_of,
    rows,
    uuids,
)
from support.services import ENGINES

from simulator.data.rows import DAY, DOWNGRADED_EVENT, UNLINKED_EVENT, Data
from worker.db import license_manager_tables
from worker.due import downgrades, enterprises as customers, plans as conditions_plans, unlinks as conditions_unlinks
from worker.due.scope import Scope

WHOLE_SECOND = datetime(2026, 6, 1, 2, 0, tzinfo=UTC)
FRACTION = datetime(2026, 6, 1, 2, 0, 0, 1, tzinfo=UTC)
US = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
NOW = timedelta()
STRANGER = UUID("0000cccc-0000-4000-8000-00000000cccc")

# What can become of the licence that a case is about, and of its plan: the queries that name them.
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

OF_PLAN = ("ago", "since", "is_active", "processed")
OF_LICENSE = ("email", "lms_user_id", "status", "renewed")


@dataclass(frozen=True)
class Situation:
    """A customer, a plan, a learner's licence of it; a case adds the rest."""

    world: World
    customer: UUID
    plan: Plan
    license: License


More = Callable[[Situation], object]


class Case:
    """Why it matters, what is to become of the licence, what to add, and columns or scope that are not the usual.

    The licence is ann@example.org's, in a plan that expired 100 days ago; its customer is on the unlink list. A part
    of the scope may be a function of the situation.
    """

    def __init__(self, why: str, fate: Fate, *more: More, **given: Any) -> None:
        self.why, self.fate, self.more = why, fate, more
        self.plan = {name: given.pop(name) for name in OF_PLAN if name in given}
        self.license = {name: given.pop(name) for name in OF_LICENSE if name in given}
        self.asked = given


def renew(ago: timedelta | None = None) -> More:
    """Renew the plan, by one that expired `ago`; by none yet unless given."""
    return lambda s: s.world.renew(s.plan, None if ago is None else s.world.plan(s.customer, ago))


def event(name: str, after: timedelta = DAY) -> More:
    return lambda s: s.world.event(s.license, name, after)


def confirm(after: timedelta = DAY, run: UUID = OTHER_RUN) -> More:
    return lambda s: s.world.confirm(s.license, after, run)


def hold(ago: timedelta = NOW, run: UUID = OTHER_RUN, step: str = "unlink") -> More:
    return lambda s: s.world.hold(s.license, ago, run, step)


def other(ago: timedelta = -10 * DAY, elsewhere: bool = False, **given: Any) -> Callable[[Situation], License]:
    """Another licence of the same e-mail, unless given, in another plan, current unless given."""
    of_plan = {name: given.pop(name) for name in OF_PLAN if name in given}

    def add(s: Situation) -> License:
        customer = s.world.customer() if elsewhere else s.customer
        return s.world.license(s.world.plan(customer, ago, **of_plan), **given)

    return add


def hold_other(held_ago: timedelta = NOW, step: str = "unlink", **given: Any) -> More:
    """Another licence, in another expired plan, that is held."""
    return lambda s: s.world.hold(other(50 * DAY, **given)(s), held_ago, step=step)


def colleague(s: Situation) -> License:
    """Another learner's licence of the same plan."""
    return s.world.license(s.plan, "colleague@example.org")


def confirm_colleague(run: UUID = OTHER_RUN) -> More:
    return lambda s: s.world.confirm(colleague(s), run=run)


def this_plan(s: Situation) -> tuple[UUID, ...]:
    return (STRANGER, s.plan.uuid)


def expires(later: timedelta = NOW) -> Callable[[Situation], datetime]:
    return lambda s: s.plan.expires + later


def processed(why: str, fate: Fate, *more: More, **given: Any) -> Case:
    """A case whose plan is processed: all that is left is to unlink."""
    return Case(why, fate, *more, processed=True, **given)


def waiting(why: str, fate: Fate, *more: More, **given: Any) -> Case:
    """A case whose plan has a renewal row that names no plan yet."""
    return Case(why, fate, renew(), *more, **given)


def forced(why: str, fate: Fate, *more: More, **given: Any) -> Case:
    return Case(why, fate, *more, force=True, **({"processed": True} | given))


def narrowed(why: str, kept: bool, **asked: Any) -> list[Case]:
    """Narrowing means the same to the downgrade, the unlink, and the downgrade one by one."""
    return [
        Case(f"{why} (downgrade)", DOWNGRADE_FIRST if kept else NOTHING, **asked),
        processed(f"{why} (unlink)", UNLINK if kept else NOTHING, **asked),
        waiting(f"{why} (downgrade one by one)", ALONE if kept else NOTHING, **asked),
    ]


EXPIRED = [
    Case("missed for a hundred nights it is found all the same, and downgraded before it is unlinked", DOWNGRADE_FIRST),
    Case("at its expiration date a plan has expired: the date is exclusive", DOWNGRADE, ago=NOW),
    Case("a microsecond before its expiration date a plan is valid", NOTHING, ago=-US),
    Case("a microsecond after it, it is not", DOWNGRADE, ago=US),
    Case("is_active plays no part in the downgrade", DOWNGRADE, ago=DAY, is_active=False),
    processed("processed, and too young to unlink: nothing is sent again", NOTHING, ago=DAY),
    Case("an invited learner may be enrolled too", DOWNGRADE_FIRST, status="assigned"),
    Case("revoked: dealt with then; the plan is marked without a call", DONE, status="revoked"),
    Case("nobody's licence: the plan is marked without a call", DONE, status="unassigned", email=None),
    Case("an unassigned licence with leftovers of a learner", DONE, status="unassigned", lms_user_id=7),
    Case("carried on by the next plan: downgraded under this one, and stays linked", DOWNGRADE, renewed=True),
    Case("no e-mail: it cannot be unlinked, and is downgraded all the same", DOWNGRADE, email=None),
    Case("a blank e-mail: likewise", DOWNGRADE, email=""),
]

AGED = [
    processed("expired exactly 90 days ago: not more than that yet", NOTHING, ago=90 * DAY),
    processed("expired 90 days and a microsecond ago", UNLINK, ago=90 * DAY + US),
    Case("exactly 90 days, not processed: the downgrade only", DOWNGRADE, ago=90 * DAY),
    Case("90 days and a microsecond, not processed: both", DOWNGRADE_FIRST, ago=90 * DAY + US),
    processed("the operator's own number of days, exactly", NOTHING, ago=30 * DAY, unlink_after=30 * DAY),
    processed("the operator's own number of days, passed", UNLINK, ago=30 * DAY + US, unlink_after=30 * DAY),
    processed("an inactive plan's learners are unlinked too", UNLINK, is_active=False),
    processed("an invited learner is linked too", UNLINK, status="assigned"),
    processed("revoked: that is not our business", NOTHING, status="revoked"),
    processed("unassigned, with leftovers of a learner", NOTHING, status="unassigned", lms_user_id=7),
    processed("carried on by the next plan", NOTHING, renewed=True),
    processed("a null e-mail would have the whole batch refused", NOTHING, email=None, lms_user_id=7),
    processed("so would an empty one", NOTHING, email=""),
    processed("and one of spaces, which the LMS trims", NOTHING, email="   "),
    processed("and one of other white space, which the LMS trims too", NOTHING, email="\t\r\n"),
    processed("unlinked before", NOTHING, event(UNLINKED_EVENT)),
    processed("unlinked before, under an earlier expiration date", NOTHING, event(UNLINKED_EVENT, -DAY)),
    processed("only the event of that very name counts", UNLINK, event(f"{UNLINKED_EVENT}.not")),
    processed(
        "another licence's event is not this one's", UNLINK, lambda s: s.world.event(colleague(s), UNLINKED_EVENT)
    ),
    processed("no customer is on the list, which is the default", NOTHING, unlink_enabled=frozenset()),
    processed("another customer is on the list", NOTHING, unlink_enabled=frozenset({STRANGER})),
    processed("it and another are on the list", UNLINK, unlink_enabled=lambda s: frozenset({STRANGER, s.customer})),
    Case("the list has no say in the downgrade", DOWNGRADE, unlink_enabled=frozenset()),
]

CONFIRMED = [
    Case("by an event after the expiration date", DONE | UNLINK, event(DOWNGRADED_EVENT)),
    Case("by an event at it", DONE | UNLINK, event(DOWNGRADED_EVENT, NOW)),
    Case("an event before it: the plan was extended since", DOWNGRADE_FIRST, event(DOWNGRADED_EVENT, -US)),
    Case("by the ledger after the expiration date", DONE | UNLINK, confirm()),
    Case("by the ledger at it", DONE | UNLINK, confirm(NOW)),
    Case("by the ledger before it: the plan was extended since", DOWNGRADE_FIRST, confirm(-US)),
    Case("by this very run", DONE | UNLINK, confirm(run=RUN)),
    Case(
        "by the ledger before it, though after some other plan's",
        DOWNGRADE_FIRST,
        confirm(-US),
        other(200 * DAY, email="bob@example.org", processed=True),
    ),
    Case("once before the plan was extended and once after", DONE | UNLINK, confirm(-DAY), confirm(DAY, RUN)),
    Case("the unlinked event does not say downgraded", DOWNGRADE, event(UNLINKED_EVENT)),
    Case("a colleague's is not this learner's", DOWNGRADE_FIRST, confirm_colleague()),
    Case("licence by licence: the plan is not done, this learner is", PLAN_ONLY | UNLINK, confirm(), colleague),
    Case("all of the plan's licences: it is done", DONE | UNLINK, confirm(), confirm_colleague()),
    Case("a revoked licence needs none", DONE, confirm_colleague(), status="revoked"),
    Case("nor does one without an e-mail escape it", DOWNGRADE, confirm_colleague(), email=None),
    processed("by the plan's being processed, whatever older confirmation there is", UNLINK, confirm(-DAY)),
]

WAITING = [
    waiting("the plan waits for its renewal; the learner's 90 days do not", ALONE),
    waiting("exactly 90 days: too young to unlink, so it waits with its plan", NOTHING, ago=90 * DAY),
    waiting("90 days and a microsecond", ALONE, ago=90 * DAY + US),
    waiting("processed before the renewal was made", UNLINK, processed=True),
    waiting("carried on by the next plan", NOTHING, renewed=True),
    waiting("revoked", NOTHING, status="revoked"),
    waiting("no e-mail: not unlinked, so not downgraded before its plan is", NOTHING, email=None),
    waiting("not on the list: likewise", NOTHING, unlink_enabled=frozenset()),
    waiting("unlinked already", NOTHING, event(UNLINKED_EVENT)),
    waiting("protected: stays linked, so stays enrolled", PROTECTED, other()),
    waiting("downgraded one by one already", UNLINK, event(DOWNGRADED_EVENT)),
    waiting("downgraded with its plan, which was then given a renewal", UNLINK, confirm()),
    waiting("downgraded for an earlier expiration date", ALONE, event(DOWNGRADED_EVENT, -US)),
    waiting("held", NOTHING, hold()),
    waiting("held last night", ALONE, hold(13 * HOUR)),
    waiting("a colleague's too: their plan is named once", ALONE, colleague),
    waiting("a colleague who is held does not matter", ALONE, lambda s: s.world.hold(colleague(s))),
    waiting("force is for processed plans and makes no difference", ALONE, force=True),
    Case("renewed by a current plan, but not carried on into it", ALONE, renew(-100 * DAY)),
    Case("renewed by a plan that has expired: nothing to wait for", DOWNGRADE_FIRST, renew(NOW)),
]

PROTECTION = [
    processed("by the same e-mail", PROTECTED, other()),
    processed("by the same e-mail in another case", PROTECTED, other(email="Ann@Example.ORG")),
    processed("case on the side of the expired licence", PROTECTED, other(), email="ANN@example.org"),
    processed("spaces around the current licence's e-mail", PROTECTED, other(email="  ann@example.org ")),
    processed("spaces around the expired licence's", PROTECTED, other(), email=" ann@example.org  "),
    processed(
        "a tab and a line end: the LMS trims them, and finds Ann", PROTECTED, other(), email="\tann@example.org\n"
    ),
    processed("a line end after the current licence's", PROTECTED, other(email="ann@example.org\r\n")),
    processed("by the same user", PROTECTED, other(email="ann@new.example", lms_user_id=7), lms_user_id=7),
    processed("by the same user without an e-mail", PROTECTED, other(email=None, lms_user_id=7), lms_user_id=7),
    processed("by the e-mail alone, where the users differ", PROTECTED, other(lms_user_id=8), lms_user_id=7),
    processed("by the e-mail alone, where one user is not known", PROTECTED, other(lms_user_id=8)),
    processed("by a revoked licence: kept wide on purpose", PROTECTED, other(status="revoked")),
    processed("by an invited learner's", PROTECTED, other(status="assigned")),
    processed("by an unassigned one that still names the learner", PROTECTED, other(status="unassigned")),
    processed("by a renewed one", PROTECTED, other(renewed=True)),
    processed("by one whose plan was marked processed", PROTECTED, other(processed=True)),
    processed("by a plan at its very expiration date: inclusive here", PROTECTED, other(NOW)),
    processed("not by one that expired a microsecond ago", UNLINK, other(US)),
    processed("by a plan from its very start", PROTECTED, other(since=NOW)),
    processed("not by a plan that starts in a microsecond", UNLINK, other(since=-US)),
    processed("not by an inactive plan", UNLINK, other(is_active=False)),
    processed("not by another customer's plan", UNLINK, other(elsewhere=True, lms_user_id=7), lms_user_id=7),
    processed("not by another learner", UNLINK, other(email="bob@example.org", lms_user_id=8), lms_user_id=7),
    processed("not by an e-mail that only contains it", UNLINK, other(email="joann@example.org")),
    processed(
        "not by an e-mail that it matches as a pattern",
        UNLINK,
        other(email="annx@example.org"),
        email="ann_@example.org",
    ),
    processed("two unknown users are not the same", UNLINK, other(email="bob@example.org")),
    processed("a known and an unknown user are not", UNLINK, other(email="bob@example.org"), lms_user_id=7),
    processed("not by a current plan's unassigned licences", UNLINK, other(email=None, status="unassigned")),
    processed("two null e-mails: no learner, so nothing to unlink or protect", NOTHING, other(email=None), email=None),
    processed("two blank e-mails: likewise", NOTHING, other(email=""), email=""),
    processed("a blank e-mail of a protected user: likewise", NOTHING, other(lms_user_id=7), email="", lms_user_id=7),
    Case("from the unlink only: the downgrade is due as ever", DOWNGRADE | PROTECTED, other()),
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
    Case("it does not keep its plan's other licences waiting", PLAN_ONLY, hold(), colleague),
    Case("a held colleague does not keep it waiting", DOWNGRADE_FIRST, lambda s: s.world.hold(colleague(s))),
    Case("nothing but held licences is left: the plan waits for them", NOTHING, hold(), confirm_colleague()),
    Case("until they may be tried again", DOWNGRADE_FIRST, hold(12 * HOUR), confirm_colleague()),
    Case("by the unlink, before the plan was marked: it is done, the learner stays", DONE, hold(), confirm()),
    Case("downgraded before the plan was extended, and refused now: the plan waits", NOTHING, hold(), confirm(-DAY)),
    Case("and revoked since: the plan is done", DONE, hold(), status="revoked"),
    processed("the learner's other licence", NOTHING, hold_other()),
    processed("the learner's other licence, last night", UNLINK, hold_other(13 * HOUR)),
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
    processed("a licence of nobody known", UNLINK, hold_other(email=None)),
    Case("kept linked by it, not kept enrolled: this downgrade is due", DOWNGRADE, hold_other()),
    waiting("kept linked by it, so nothing to downgrade one by one", NOTHING, hold_other()),
    processed("and protected: counted as neither", NOTHING, hold(), other()),
]

SCOPED = [
    *narrowed("no enterprise named: all of them", True, enterprise=None),
    *narrowed("another enterprise", False, enterprise=STRANGER),
    *narrowed("this plan among others", True, plan_uuids=this_plan),
    *narrowed("another plan", False, plan_uuids=(STRANGER,)),
    *narrowed("no plan at all, which is not the same as any", False, plan_uuids=()),
    *narrowed("from its expiration date on", True, expired_after=expires()),
    *narrowed("from a microsecond later on", False, expired_after=expires(US)),
    *narrowed("up to its expiration date", True, expired_before=expires()),
    *narrowed("up to a microsecond before", False, expired_before=expires(-US)),
    *narrowed("from and to the same moment", True, expired_after=expires(), expired_before=expires()),
    *narrowed("this plan, in a window without it", False, plan_uuids=this_plan, expired_before=expires(-US)),
    Case("a window lets no plan expire early", NOTHING, ago=-US, expired_before=expires()),
    Case("its chain goes on outside the narrowing, and has ended", DOWNGRADE_FIRST, renew(DAY), plan_uuids=this_plan),
    Case("its chain goes on outside the narrowing, to a current plan", ALONE, renew(-DAY), plan_uuids=this_plan),
    processed("protection comes from any plan", PROTECTED, other(), plan_uuids=this_plan),
    processed("a held licence of any plan keeps its learner", NOTHING, hold_other(), plan_uuids=this_plan),
    processed(
        "one never downgraded, of any plan, keeps its learner",
        KEPT,
        hold_other(7 * DAY, "downgrade"),
        plan_uuids=this_plan,
    ),
    Case("no run yet: what would be due", DOWNGRADE_FIRST, run_id=None),
    Case("no run yet: held is held", NOTHING, hold(), run_id=None),
]

FORCED = [
    forced("a processed plan's licences again", DOWNGRADE | UNLINK),
    forced("a processed plan's that has just expired", DOWNGRADE, ago=NOW),
    forced("but not those of a plan that has not", NOTHING, ago=-US),
    forced("but not what this run has sent", DONE | UNLINK, confirm(run=RUN)),
    forced("what another run has sent", DOWNGRADE | UNLINK, confirm()),
    forced("what was downgraded one by one", DOWNGRADE | UNLINK, event(DOWNGRADED_EVENT)),
    forced("what another run holds", DOWNGRADE | UNLINK, hold()),
    forced("but not what this run holds", NOTHING, hold(run=RUN)),
    forced("a learner's whose other licence another run holds", DOWNGRADE | UNLINK, hold_other()),
    forced("a learner's whose other licence was never downgraded", DOWNGRADE | KEPT, hold_other(HOUR, "downgrade")),
    forced(
        "sent or held by this run, to the last: nothing left to do now", NOTHING, hold(run=RUN), confirm_colleague(RUN)
    ),
    forced("unlinked already: downgraded again, not unlinked again", DOWNGRADE, event(UNLINKED_EVENT)),
    forced("protected as ever", DOWNGRADE | PROTECTED, other()),
    forced("the chain must have ended all the same", UNLINK, renew(-DAY)),
    forced("nor may it have an open renewal", UNLINK, renew()),
    forced("a plan with no learner's licence", DONE, status="revoked"),
    forced("a plan not processed", DOWNGRADE_FIRST, processed=False),
    forced("a plan not processed, sent by another run", DOWNGRADE | UNLINK, confirm(), processed=False),
    forced("a plan not processed, sent by this run", DONE | UNLINK, confirm(run=RUN), processed=False),
    forced("no run yet: it has sent nothing and holds nothing", DOWNGRADE | UNLINK, confirm(), hold(), run_id=None),
    forced("this plan", DOWNGRADE | UNLINK, plan_uuids=this_plan),
    forced("another plan", NOTHING, plan_uuids=(STRANGER,)),
    forced("another enterprise", NOTHING, enterprise=STRANGER),
]

TABLES = {
    "expired": EXPIRED,
    "aged": AGED,
    "confirmed": CONFIRMED,
    "waiting": WAITING,
    "protection": PROTECTION,
    "held": HELD,
    "scoped": SCOPED,
    "forced": FORCED,
}


@dataclass(frozen=True)
class Chain:
    """Plans by letter, how many days ago each expired, and which letters follow each other ("A?": none yet)."""

    why: str
    days_ago: dict[str, int]
    renewals: str
    due: str
    alone: str = ""
    processed: str = ""


CHAINS = [
    Chain("A, B and C have expired: each is due, prior ones too", {"A": 99, "B": 50, "C": 0}, "AB BC", due="ABC"),
    Chain(
        "A failed and its successors did not: it is found again", {"A": 9, "B": 8, "C": 1}, "AB BC", "A", processed="BC"
    ),
    Chain("the middle plan is processed already", {"A": 9, "B": 8, "C": 1}, "AB BC", due="AC", processed="B"),
    Chain("B is current: A's learners go on in it", {"A": 50, "B": -1}, "AB", due=""),
    Chain("C is current: A and B wait for it", {"A": 50, "B": 40, "C": -1}, "AB BC", due=""),
    Chain("C is current, and A old enough to be unlinked", {"A": 91, "B": 40, "C": -1}, "AB BC", due="", alone="A"),
    Chain("only the last plan counts, though B is current", {"A": 50, "B": -1, "C": 2}, "AB BC", due="AC"),
    Chain("a renewal without a plan", {"A": 50}, "A?", due=""),
    Chain("the last plan has one: all wait", {"A": 60, "B": 50, "C": 40}, "AB BC C?", due=""),
    Chain("the last plan has one, and all are old", {"A": 99, "B": 98, "C": 97}, "AB BC C?", due="", alone="ABC"),
    Chain("a ring has no last plan; nothing is sure, and the query ends", {"A": 3, "B": 2, "C": 1}, "AB BC CA", due=""),
    Chain("a ring of old plans: the 90 days run all the same", {"A": 99, "B": 98}, "AB BA", due="", alone="AB"),
    Chain("a plan that renews itself", {"A": 50}, "AA", due=""),
    Chain("two chains side by side", {"A": 50, "B": 40, "C": 50, "D": -1}, "AB CD", due="AB"),
    Chain(
        "a long chain", dict(zip("ABCDEFGH", range(60, 0, -5), strict=False)), "AB BC CD DE EF FG GH", due="ABCDEFGH"
    ),
]


def scope_of(world: World, **asked: Any) -> Scope:
    """What a night over the world's customers judges by."""
    usual: dict[str, Any] = {
        "as_of": world.as_of,
        "unlink_after": 90 * DAY,
        "unlink_enabled": frozenset(world.agreements),
        "run_id": RUN,
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
    return situations


class Asker:
    """Puts the policy's questions for one case after another; the same question only once."""

    def __init__(self, connection: Connection, situations: Sequence[Situation]) -> None:
        self.connection = connection
        self.everybody = frozenset(customer for each in situations for customer in each.world.agreements)
        self.known: dict[str, Answers] = {}

    def ask(self, scope: Scope) -> Answers:
        if repr(scope) not in self.known:
            self.known[repr(scope)] = answers_of(self.connection, scope)
        return self.known[repr(scope)]

    def answers(self, case: Case, situation: Situation) -> tuple[Answers, Answers]:
        """The policy's and the reading's, as far as they concern the case's customers."""
        asked = {name: part(situation) if callable(part) else part for name, part in case.asked.items()}
        scope = scope_of(situation.world, **({"unlink_enabled": self.everybody} | asked))
        found = {
            name: [row for row in answer if row[-1] in situation.world.agreements]
            for name, answer in self.ask(scope).items()
        }
        return found, Reading(situation.world, scope).answers()


def fate_of(situation: Situation, answers: Answers) -> Fate:
    own = {situation.plan.uuid, situation.license.uuid}
    return frozenset(name for name, answer in answers.items() if own & uuids(answer))


# Only SQLite has texts that differ in length.
@pytest.mark.parametrize(
    ("engine_kind", "as_of"),
    [("sqlite", WHOLE_SECOND), *((kind, FRACTION) for kind in ENGINES)],
    indirect=["engine_kind"],
)
def test_boundaries(engine: Engine, as_of: datetime, subtests: pytest.Subtests) -> None:
    named = [(f"{table}: {case.why}", case) for table, cases in TABLES.items() for case in cases]
    situations = lay_down_cases(engine, [case for _, case in named], as_of)
    with engine.connect() as connection:
        asker = Asker(connection, situations)
        for (why, case), situation in zip(named, situations, strict=True):
            found, read = asker.answers(case, situation)
            with subtests.test(why):
                assert fate_of(situation, found) == case.fate
                assert fate_of(situation, read) == case.fate, "the plain-Python reading is wrong"
                assert found == read


def lay_down_chain(data: Data, chain: Chain) -> tuple[World, dict[UUID, str]]:
    world = World(data, WHOLE_SECOND)
    customer = world.customer()
    plans = {
        letter: world.plan(customer, days * DAY, processed=letter in chain.processed)
        for letter, days in chain.days_ago.items()
    }
    for pair in chain.renewals.split():
        world.renew(plans[pair[0]], plans.get(pair[1]))
    for letter, plan in plans.items():
        world.license(plan, f"{letter}@example.org")
    return world, {plan.uuid: letter for letter, plan in plans.items()}


def test_chains(engine: Engine, subtests: pytest.Subtests) -> None:
    data = Data(engine, now=WHOLE_SECOND)
    laid = [(chain, *lay_down_chain(data, chain)) for chain in CHAINS]
    lay_down(engine, *(world for _, world, _ in laid))
    for chain, world, letters in laid:
        with subtests.test(chain.why), engine.connect() as connection:
            scope = scope_of(world, enterprise=next(iter(world.agreements)))
            found = answers_of(connection, scope)
            assert "".join(sorted(letters[uuid] for uuid, *_ in found["due_plans"])) == chain.due
            assert "".join(sorted(letters[uuid] for _, uuid, _ in found["due_downgrades"])) == chain.due
            assert "".join(sorted(letters[uuid] for uuid, *_ in found["waiting_plans"])) == chain.alone
            assert found == Reading(world, scope).answers()


@pytest.mark.parametrize(
    ("ago", "dated"),
    [
        (NOW, False),
        (DAY - US, False),
        (DAY, False),  # a day exactly is not more than a day
        (DAY + US, True),  # what a learner has upgraded since is left alone
        (100 * DAY, True),
    ],
)
def test_later_upgrades_are_spared_from_a_day_after_the_expiration_date(ago: timedelta, dated: bool) -> None:
    date = downgrades.ignore_enrollments_modified_after(WHOLE_SECOND - ago, WHOLE_SECOND)

    assert date == (WHOLE_SECOND - ago if dated else None)


def test_due_enterprises_are_those_with_anything_due(engine: Engine) -> None:
    """An enterprise with nothing due gets no run and no message; any other gets one, once."""
    situations = lay_down_cases(engine, [case for case in EXPIRED + WAITING + HELD if not case.asked], WHOLE_SECOND)
    everybody = frozenset(customer for situation in situations for customer in situation.world.agreements)
    night = scope_of(situations[0].world, unlink_enabled=everybody)
    # Also who is kept linked by a licence that is not due any more: a full run drops that from the list.
    unlinks = partial(conditions_unlinks.due_unlinks, downgraded=False)
    questions = (conditions_plans.due_plans, downgrades.due_downgrades, downgrades.waiting_downgrades, unlinks)

    with engine.connect() as connection:
        due = customers.find_due_enterprises(Session(connection), night)
        runs = {customer: replace(night, enterprise=customer) for customer in everybody}
        with_work = {customer for customer, run in runs.items() if any(rows(connection, ask(run)) for ask in questions)}

    assert sorted(due) == sorted(with_work)
    assert set() < with_work < everybody


@dataclass(frozen=True)
class Paged:
    """A customer with two plans of many licences, and how their pages are asked for."""

    world: World
    plan: Plan
    kind: str

    def page(self, limit: int) -> Page:
        scope = scope_of(self.world)
        if self.kind == "unlink":
            return partial(conditions_unlinks.unlink_page, scope, limit)
        return partial(downgrades.downgrade_page, scope, self.plan.uuid, self.kind == "one by one", limit)

    def due(self) -> list[tuple[Any, ...]]:
        """All that is due, as rows of a page, in no order."""
        reading, held = Reading(self.world, scope_of(self.world)), self.world.holds
        if self.kind == "unlink":
            return [(each.uuid, each.uuid in held, each.email) for each in reading.due_unlinks()]
        due = reading.waiting_downgrades() if self.kind == "one by one" else reading.due_downgrades()
        return [(each.uuid, each.uuid in held) for each in due if each.plan == self.plan]


@pytest.fixture(params=["downgrade", "one by one", "unlink"])
def paged(engine: Engine, request: pytest.FixtureRequest) -> Paged:
    world = World(Data(engine, now=WHOLE_SECOND), WHOLE_SECOND)
    customer = world.customer()
    plans = [world.plan(customer, processed=request.param == "unlink") for _ in range(2)]
    for plan in plans:
        if request.param == "one by one":
            world.renew(plan)
        learners = [world.license(plan, f"Learner-{number}@{plan.uuid.hex}.example") for number in range(8)]
        world.license(plan, "revoked@example.org", status="revoked")
        world.hold(learners[0], 13 * HOUR)  # may be tried again, and is still on the list
        world.hold(learners[1])
    lay_down(engine, world)
    return Paged(world, plans[0], request.param)


def test_pages_hold_all_that_is_due_once(engine: Engine, paged: Paged, subtests: pytest.Subtests) -> None:
    due = sorted(paged.due())
    assert len(due) == (14 if paged.kind == "unlink" else 7)
    assert {row[1] for row in due} == {True, False}  # some are on the held list, and come off it when done
    for limit in (1, 2, 5, 6, 7, 8, 14, 100):  # some divide the whole, so that the last page is empty
        with subtests.test(limit=limit), engine.connect() as connection:
            pages = list(pages_of(connection, paged.page(limit), limit))
            assert sorted(row for page in pages for row in page) == due
            assert {len(page) for page in pages[:-1]} <= {limit}
            assert len(pages[-1]) < limit


def test_a_page_begins_where_the_one_before_ended_though_that_is_done(engine: Engine, paged: Paged) -> None:
    """By key, not by offset: what has been done is due no longer, and must not shift what follows."""
    read: list[UUID] = []
    with engine.begin() as connection:
        while page := rows(connection, paged.page(2)(read[-1] if read else None)):
            read += [row[0] for row in page]
            connection.execute(
                update(license_manager_tables.License)
                .where(license_manager_tables.License.uuid.in_(read))
                .values(status="revoked")
            )

    assert sorted(read) == sorted(uuids(paged.due()))


def test_protection_is_asked_again_for_each_page(engine: Engine, paged: Paged) -> None:
    """A learner who is given a licence while a step goes on is neither unlinked nor downgraded for it."""
    with engine.connect() as connection:
        first, second, *_ = pages_of(connection, paged.page(2), 2)
    lucky = paged.world.licenses[second[0][0]]
    world = World(paged.world.data, WHOLE_SECOND, paged.world.agreements)
    world.license(world.plan(lucky.plan.customer, -DAY), lucky.email and lucky.email.upper())
    lay_down(engine, world)

    with engine.connect() as connection:
        again = uuids(rows(connection, paged.page(2)(first[-1][0])))

    assert (lucky.uuid in again) == (paged.kind == "downgrade")  # a plan that has ended is downgraded all the same
    assert second[1][0] in again


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
