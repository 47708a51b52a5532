"""What is due, at its boundaries: one row per case, and why it matters, on every engine.

All cases stand in one database, each with a customer of its own, so that each also shows that the others' rows do not
matter to it. They are judged once at a whole second and once at a fraction of one, which SQLite stores as texts of
different length. The plain-Python reading must agree with every row, or it is no measure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session
from support.due_cases import (
    ALONE,
    DONE,
    DOWNGRADE,
    DOWNGRADE_FIRST,
    EXPIRED,
    FORCED,
    HELD,
    KEPT,
    NAMELESS,
    NOTHING,
    NOW,
    PLAN_ONLY,
    PROTECTED,
    STRANGER,
    UNLINK,
    US,
    WAITING,
    WAITS,
    WHOLE_SECOND,
    Case,
    Fate,
    Situation,
    colleague,
    confirm,
    confirm_colleague,
    event,
    hold,
    hold_other,
    lay_down_cases,
    other,
    processed,
    renew,
    scope_of,
    this_plan,
    waiting,
)
from support.oracle import (
    QUESTIONS,
    RUN,
    Answers,
    Reading,
    World,
    answers_of,
    lay_down,
    uuids,
)
from support.runs import ON_ALL
from support.services import KINDS
from support.stale_cases import TABLES as STALE

from simulator.data.rows import DAY, DOWNGRADED_EVENT, UNLINKED_EVENT, Data
from worker.due import downgrades, unlinks
from worker.due.scope import Scope
from worker.due.statements import fetch, fetch_count

FRACTION = datetime(2026, 6, 1, 2, 0, 0, 1, tzinfo=UTC)


def expires(later: timedelta = NOW) -> Callable[[Situation], datetime]:
    return lambda s: s.plan.expires + later


def narrowed(why: str, kept: bool, **asked: Any) -> list[Case]:
    """Narrowing means the same to the downgrade, the unlink, and the downgrade one by one."""
    return [
        Case(f"{why} (downgrade)", DOWNGRADE_FIRST if kept else NOTHING, **asked),
        processed(f"{why} (unlink)", UNLINK if kept else NOTHING, **asked),
        waiting(f"{why} (downgrade one by one)", ALONE | WAITS if kept else NOTHING, **asked),
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
    processed("a null e-mail would have the whole batch refused", NAMELESS, email=None, lms_user_id=7),
    processed("so would an empty one", NAMELESS, email=""),
    processed("and one of spaces, which the LMS trims", NAMELESS, email="   "),
    processed("and one of other white space, which the LMS trims too", NAMELESS, email="\t\r\n"),
    processed("unlinked before", NOTHING, event(UNLINKED_EVENT)),
    processed("only the event of that very name counts", UNLINK, event(f"{UNLINKED_EVENT}.not")),
    processed(
        "another license's event is not this one's", UNLINK, lambda s: s.world.event(colleague(s), UNLINKED_EVENT)
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
    Case("license by license: the plan is not done, this learner is", PLAN_ONLY | UNLINK, confirm(), colleague),
    Case("all of the plan's licenses: it is done", DONE | UNLINK, confirm(), confirm_colleague()),
    Case("a revoked license needs none", DONE, confirm_colleague(), status="revoked"),
    Case("nor does one without an e-mail escape it", DOWNGRADE | NAMELESS, confirm_colleague(), email=None),
    processed("by the plan's being processed, whatever older confirmation there is", UNLINK, confirm(-DAY)),
]


PROTECTION = [
    processed("by the same e-mail", PROTECTED, other()),
    processed("by the same e-mail in another case", PROTECTED, other(email="Ann@Example.ORG")),
    processed("case on the side of the expired license", PROTECTED, other(), email="ANN@example.org"),
    processed("spaces around the current license's e-mail", PROTECTED, other(email="  ann@example.org ")),
    processed("spaces around the expired license's", PROTECTED, other(), email=" ann@example.org  "),
    processed(
        "a tab and a line end: the LMS trims them, and finds Ann", PROTECTED, other(), email="\tann@example.org\n"
    ),
    processed("a line end after the current license's", PROTECTED, other(email="ann@example.org\r\n")),
    processed("by the same user", PROTECTED, other(email="ann@new.example", lms_user_id=7), lms_user_id=7),
    processed("by the same user without an e-mail", PROTECTED, other(email=None, lms_user_id=7), lms_user_id=7),
    processed("by the e-mail alone, where the users differ", PROTECTED, other(lms_user_id=8), lms_user_id=7),
    processed("by the e-mail alone, where one user is not known", PROTECTED, other(lms_user_id=8)),
    processed("by a revoked license: kept wide on purpose", PROTECTED, other(status="revoked")),
    processed("by an invited learner's", PROTECTED, other(status="assigned")),
    processed("by an unassigned one that still names the learner", PROTECTED, other(status="unassigned")),
    processed("by a renewed one", PROTECTED, other(renewed=True)),
    processed("by one whose plan was marked processed", PROTECTED, other(processed=True)),
    processed("by a plan at its very expiration date: inclusive here", PROTECTED, other(NOW)),
    processed("not by one that expired a microsecond ago", UNLINK, other(US)),
    processed("by a plan from its very start", PROTECTED, other(since=NOW)),
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
    processed("not by a current plan's unassigned licenses", UNLINK, other(email=None, status="unassigned")),
    processed("two null e-mails: no learner, so nothing to unlink or protect", NAMELESS, other(email=None), email=None),
    processed("two blank e-mails: likewise", NAMELESS, other(email=""), email=""),
    processed("a blank e-mail of a protected user: likewise", NAMELESS, other(lms_user_id=7), email="", lms_user_id=7),
    Case("from the unlink only: the downgrade is due as ever", DOWNGRADE | PROTECTED, other()),
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
    Case(
        "its chain goes on outside the narrowing, to a current plan", ALONE | WAITS, renew(-DAY), plan_uuids=this_plan
    ),
    processed("protection comes from any plan", PROTECTED, other(), plan_uuids=this_plan),
    processed("a held license of any plan keeps its learner", NOTHING, hold_other(), plan_uuids=this_plan),
    processed(
        "one never downgraded, of any plan, keeps its learner",
        KEPT,
        hold_other(7 * DAY, "downgrade"),
        plan_uuids=this_plan,
    ),
    Case("no run yet: what would be due", DOWNGRADE_FIRST, run_id=None),
    Case("no run yet: held is held", NOTHING, hold(), run_id=None),
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
    **STALE,
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


class Asker:
    """Puts our questions for one case after another; the same question only once."""

    def __init__(self, connection: Connection, situations: Sequence[Situation]) -> None:
        self.connection = connection
        self.everybody = frozenset(customer for each in situations for customer in each.world.agreements)
        self.known: dict[str, Answers] = {}

    def ask(self, scope: Scope) -> Answers:
        if repr(scope) not in self.known:
            self.known[repr(scope)] = answers_of(self.connection, scope)
        return self.known[repr(scope)]

    def answers(self, case: Case, situation: Situation) -> tuple[Answers, Answers]:
        """The queries' answers and the reading's, as far as they concern the case's customers."""
        asked = {name: part(situation) if callable(part) else part for name, part in case.asked.items()}
        scope = scope_of(situation.world, **({"unlink_enabled": self.everybody} | asked))
        found = {
            name: [row for row in answer if not situation.world.agreements.keys().isdisjoint(row)]
            for name, answer in self.ask(scope).items()
        }
        return found, Reading(situation.world, scope).answers()


def fate_of(situation: Situation, answers: Answers) -> Fate:
    own = {situation.plan.uuid, situation.license.uuid}
    return frozenset(name for name, answer in answers.items() if own & uuids(answer))


# Only SQLite has texts that differ in length.
@pytest.mark.parametrize(
    ("engine_kind", "as_of"),
    [("sqlite", WHOLE_SECOND), *((kind, FRACTION) for kind in KINDS)],
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


@ON_ALL
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


@pytest.mark.parametrize("known", [True, False], ids=["may read", "may not read histories"])
def test_each_question_can_be_counted_by_the_databases_own_clock(engine: Engine, known: bool) -> None:
    """SQLite understands a query only up to some depth; the other tests say what time it is, which is less deep."""
    world = World(Data(engine), WHOLE_SECOND)
    plan = world.plan(world.customer(), processed=True)
    world.license(plan)
    lay_down(engine, world)
    with Session(engine) as session:
        for name, question in QUESTIONS.items():
            scope = scope_of(world, now=None, license_history=known)
            for each in (scope, replace(scope, force=True, plan_uuids=(plan.uuid,))):
                assert fetch_count(session, question, each) == len(fetch(session, question, each)), name
        due = fetch_count(session, unlinks.due_unlinks, scope, downgraded=False)
        assert due == fetch_count(session, unlinks.due_unlinks, scope) == 1


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
