"""Cases of what is due when something else happened since: extended, moved, revoked, purged, another address."""

import sys
from datetime import timedelta
from typing import Any

from simulator.data.rows import DAY, DOWNGRADED_EVENT, UNLINKED_EVENT
from support.due_cases import (
    ALONE,
    DONE,
    DOWNGRADE,
    DOWNGRADE_FIRST,
    HOUR,
    KEPT,
    NAMELESS,
    NOTHING,
    NOW,
    PROTECTED,
    STRANGER,
    UNLINK,
    US,
    WAITS,
    Case,
    Fate,
    More,
    Situation,
    confirm,
    confirm_colleague,
    event,
    hold,
    hold_other,
    other,
    processed,
    renew,
    this_plan,
    waiting,
)
from support.oracle import RUN

ROOM = timedelta(minutes=10)  # two clocks may be so far apart


def mark(after: timedelta, marked: bool = True, ours: bool = False) -> More:
    """The plan's history shows it as marked, or not, so long after its present expiration date; in a row of `ours`."""
    return lambda s: s.world.show_mark(s.plan, after, marked, ours)


def seen(*where: tuple[timedelta, str]) -> More:
    """The license's history shows it so long after its plan's expiration date: "here" in its plan, or "elsewhere"."""

    def add(s: Situation) -> None:
        elsewhere = s.world.plan(s.customer, 110 * DAY, processed=True)
        for after, place in where:
            s.world.show_plan(s.license, after, s.plan if place == "here" else elsewhere)

    return add


def expired(**given: Any) -> More:
    """Another license in a plan that expired and was processed: it protects nobody, and says who is the same."""
    return other(50 * DAY, processed=True, **given)


def purged(why: str, fate: Fate, *more: More, **given: Any) -> Case:
    """A case of a license that license-manager's retire_old_licenses has revoked; when is given as `revoked_after`."""
    return Case(why, fate, *more, **{"status": "revoked", "email": None, "revoked_after": 90 * DAY} | given)


BEFORE, AT, SINCE = -300 * DAY, NOW, 2 * DAY
OTHERS_MARK: More = lambda s: s.world.show_mark(s.world.plan(s.customer, processed=True), DAY)  # noqa: E731

MARKED = [
    processed("marked a day after it expired", UNLINK, mark(DAY)),
    processed("marked at its very expiration date: expired is expired", UNLINK, mark(AT)),
    processed(
        "marked a microsecond before: that was for an earlier date, and it was extended since",
        DOWNGRADE_FIRST,
        mark(-US),
    ),
    processed("the customer paid late, twice", DOWNGRADE_FIRST, mark(-400 * DAY), mark(-30 * DAY)),
    processed("extended since, and marked again by us", UNLINK, mark(-30 * DAY), mark(DAY, ours=True)),
    processed(
        "extended since, and saved by somebody after it expired again: that marks nothing",
        DOWNGRADE_FIRST,
        mark(-30 * DAY),
        mark(DAY),
    ),
    processed("marked by us, extended since, and saved again", DOWNGRADE_FIRST, mark(-US, ours=True), mark(US)),
    processed("history was pruned: the mark counts", UNLINK),
    processed("what is left of its history is from before the mark", UNLINK, mark(-30 * DAY, False)),
    processed(
        "a row without the mark, of after its expiration, attests nothing", DOWNGRADE_FIRST, mark(-US), mark(DAY, False)
    ),
    Case("the mark was taken back by hand: the history alone does not count", DOWNGRADE_FIRST, mark(DAY)),
    processed("another plan's mark is not this one's", DOWNGRADE_FIRST, mark(-US), OTHERS_MARK),
    processed("extended since, but confirmed license by license since", DONE | UNLINK, mark(-US), confirm()),
    processed("extended since: what was confirmed before does not count", DOWNGRADE_FIRST, mark(-US), confirm(-US)),
    processed("extended since, expired again yesterday: too young to unlink", DOWNGRADE, mark(-US), ago=DAY),
    processed("extended since, and waits for its renewal now", ALONE | WAITS, mark(-US), renew()),
    processed("extended to a date that has not come", NOTHING, mark(-US), ago=-DAY),
]
MOVED = [
    processed(
        "moved in after the mark: nobody has downgraded it",
        ALONE,
        mark(DAY),
        seen((BEFORE, "elsewhere"), (SINCE, "here")),
    ),
    processed("moved in before the mark", UNLINK, mark(DAY), seen((BEFORE, "elsewhere"), (AT, "here"))),
    processed("moved in at the moment of the mark", UNLINK, mark(DAY), seen((BEFORE, "elsewhere"), (DAY, "here"))),
    processed(
        "moved in a microsecond after the mark", ALONE, mark(DAY), seen((BEFORE, "elsewhere"), (DAY + US, "here"))
    ),
    processed(
        "moved in after it, and downgraded alone since",
        UNLINK,
        mark(DAY),
        seen((SINCE, "here")),
        event(DOWNGRADED_EVENT, 3 * DAY),
    ),
    processed(
        "moved in after it, and confirmed before that, for the date of its former plan",
        ALONE,
        mark(DAY),
        seen((SINCE, "here")),
        confirm(-US),
    ),
    processed(
        "moved out before the mark and back after it",
        ALONE,
        mark(DAY),
        seen((BEFORE, "here"), (-DAY, "elsewhere"), (SINCE, "here")),
    ),
    processed(
        "moved out and back before the mark",
        UNLINK,
        mark(DAY),
        seen((BEFORE, "here"), (-DAY, "elsewhere"), (-US, "here")),
    ),
    processed("saved since, and never moved", UNLINK, mark(DAY), seen((BEFORE, "here"), (SINCE, "here"))),
    processed(
        "made in the plan after its mark, or its older history was pruned: once too often does no harm",
        ALONE,
        mark(DAY),
        seen((SINCE, "here")),
    ),
    processed("nothing is known of it: it was there", UNLINK, mark(DAY)),
    processed(
        "two moves of one moment: the later row counts", UNLINK, mark(DAY), seen((AT, "elsewhere"), (AT, "here"))
    ),
    processed(
        "two moves of one moment, the other way round",
        ALONE,
        mark(DAY),
        seen((AT, "here"), (AT, "elsewhere"), (SINCE, "here")),
    ),
    processed(
        "the plan was saved again after the move: its first mark counts",
        ALONE,
        mark(DAY),
        mark(3 * DAY),
        seen((BEFORE, "elsewhere"), (SINCE, "here")),
    ),
    processed(
        "a mark of before an extension is not its first one",
        UNLINK,
        mark(-DAY),
        mark(3 * DAY, ours=True),
        seen((BEFORE, "elsewhere"), (SINCE, "here")),
    ),
    processed(
        "the plan's history was pruned: moved in after its expiration date",
        ALONE,
        seen((BEFORE, "elsewhere"), (US, "here")),
    ),
    processed("the plan's history was pruned: moved in before it", UNLINK, seen((BEFORE, "elsewhere"), (AT, "here"))),
    processed(
        "moved in after the mark, too young to unlink: not before its time",
        NOTHING,
        mark(DAY),
        seen((SINCE, "here")),
        ago=80 * DAY,
    ),
    processed(
        "moved in after the mark, and the account may not read its history",
        UNLINK,
        mark(DAY),
        seen((SINCE, "here")),
        license_history=False,
    ),
    processed("moved in after the mark, and protected", PROTECTED, mark(DAY), seen((SINCE, "here")), other()),
    Case("moved into a plan that is not processed yet: downgraded with it", DOWNGRADE_FIRST, seen((SINCE, "here"))),
]
UNLINKED = [
    processed("under an earlier expiration date: the plan was extended since", UNLINK, event(UNLINKED_EVENT, -US)),
    processed("at its very expiration date", NOTHING, event(UNLINKED_EVENT, AT)),
    processed("and assigned to another learner since", UNLINK, event(UNLINKED_EVENT), assigned_after=SINCE),
    processed(
        "a microsecond before it was assigned to another",
        UNLINK,
        event(UNLINKED_EVENT, SINCE - US),
        assigned_after=SINCE,
    ),
    processed("at the moment of its assignment", NOTHING, event(UNLINKED_EVENT, SINCE), assigned_after=SINCE),
    processed("nobody knows when it was assigned", NOTHING, event(UNLINKED_EVENT), assigned_after=None),
    processed("once before the extension and once after", NOTHING, event(UNLINKED_EVENT, -DAY), event(UNLINKED_EVENT)),
]
REVOKED = [
    purged("by the purge: the LMS was not told, so it is sent", DOWNGRADE),
    purged("at its plan's very expiration date", DOWNGRADE, revoked_after=AT),
    purged("before its plan expired: dealt with then", DONE, revoked_after=-US),
    purged("nobody knows when: dealt with then", DONE, revoked_after=None),
    purged("since, and confirmed: the plan is done", DONE, confirm()),
    purged("since: its plan is not marked for its colleague's sake", DOWNGRADE, confirm_colleague()),
    purged("since, and held: the plan waits for it", NOTHING, hold()),
    purged("since, in a plan that is processed: covered by the mark", NOTHING, mark(DAY), processed=True),
    purged("since, in a plan whose mark is for an earlier date", DOWNGRADE, mark(-US), processed=True),
    purged("since, in a plan that waits for its renewal: with it", WAITS, renew()),
    purged("under A, which B renewed, as soon as B expires", DOWNGRADE, renew(NOW), ago=365 * DAY),
    purged("under A, while B is current", WAITS, renew(-DAY), ago=365 * DAY),
    purged("with its e-mail: nobody whom a revoked license had is unlinked by it", DOWNGRADE, email="ann@example.org"),
]
# 29 characters, as Python has them, which is what the LMS strips by.
SPACES = [chr(code) for code in range(sys.maxunicode + 1) if chr(code).isspace()]
SPACED = [
    case
    for space in SPACES
    for case in (
        processed(
            f"U+{ord(space):04X} around the expired license's",
            PROTECTED,
            other(),
            email=f"{space}ann@example.org{space}",
        ),
        processed(
            f"U+{ord(space):04X} around the current license's",
            PROTECTED,
            other(email=f"{space} Ann@example.org {space}"),
        ),
        processed(f"U+{ord(space):04X} alone: no address", NAMELESS, email=space),
        processed(
            f"U+{ord(space):04X} within it makes another address", UNLINK, other(email=f"ann{space}@example.org")
        ),
    )
]
SAME_LEARNER = [
    *(
        processed(
            f"U+{ord(sign):04X} is no white space, and the LMS strips it not",
            UNLINK,
            other(email=f"ann@example.org{sign}"),
        )
        for sign in "\u200b\ufeff\u2060\u180e"
    ),
    processed(
        "his address has a user id elsewhere, and that has a current license",
        PROTECTED,
        expired(lms_user_id=7),
        other(email="bob@example.org", lms_user_id=7),
    ),
    processed(
        "her user id has another address elsewhere, and that has a current license",
        PROTECTED,
        expired(email="bob@example.org", lms_user_id=7),
        other(email="bob@example.org"),
        lms_user_id=7,
    ),
    processed(
        "both: address, its user id, that one's other address",
        PROTECTED,
        expired(lms_user_id=7),
        expired(email="bob@example.org", lms_user_id=7),
        other(email="bob@example.org"),
    ),
    processed(
        "one step further than that is another learner",
        UNLINK,
        expired(email="bob@example.org", lms_user_id=7),
        expired(email="bob@example.org", lms_user_id=8),
        other(email="cyd@example.org", lms_user_id=8),
        lms_user_id=7,
    ),
    processed(
        "the license in between is at another customer",
        UNLINK,
        expired(lms_user_id=7, elsewhere=True),
        other(email="bob@example.org", lms_user_id=7),
    ),
    processed(
        "the other address is known at another customer alone",
        UNLINK,
        expired(email="bob@example.org", lms_user_id=7, elsewhere=True),
        other(email="bob@example.org"),
        lms_user_id=7,
    ),
    processed(
        "the license in between has no address: it joins nobody by it",
        UNLINK,
        expired(email=" ", lms_user_id=7),
        other(email="", lms_user_id=8),
        lms_user_id=7,
    ),
    processed(
        "the license in between is nobody's any more, and says all the same who it was",
        PROTECTED,
        expired(lms_user_id=7, status="unassigned"),
        other(email="bob@example.org", lms_user_id=7),
    ),
    processed(
        "the license in between is written in other case and with spaces",
        PROTECTED,
        expired(email=" ANN@example.org\u3000", lms_user_id=7),
        other(email="bob@example.org", lms_user_id=7),
    ),
]
SOON = [
    processed("a plan that begins within a day: many nights are before its midnight", PROTECTED, other(since=-US)),
    processed("a plan that begins in a day exactly", PROTECTED, other(since=-DAY)),
    processed("a plan that begins later than in a day", UNLINK, other(since=-DAY - US)),
    processed("an inactive plan that begins tomorrow", UNLINK, other(since=-DAY, is_active=False)),
    processed("a plan that expired while the run waited", UNLINK, other(-HOUR), now=lambda s: s.world.as_of + 2 * HOUR),
    processed(
        "a plan that began while the run waited", PROTECTED, other(since=-2 * DAY), now=lambda s: s.world.as_of + DAY
    ),
]
NO_ADDRESS = [
    processed("its time has come, and nobody can be unlinked by it", NAMELESS, email=None, lms_user_id=7),
    processed("a blank one likewise", NAMELESS, email=" \u00a0"),
    processed("its time has not come", NOTHING, email=None, ago=90 * DAY),
    processed("its customer is not on the list", NOTHING, email=None, unlink_enabled=frozenset()),
    processed("unlinked before its address was cleared", NOTHING, event(UNLINKED_EVENT), email=None),
    processed("carried on by the next plan", NOTHING, email=None, renewed=True),
    processed("revoked: it is no learner's any more", NOTHING, email=None, status="revoked", revoked_after=90 * DAY),
    processed("nobody's", NOTHING, email=None, status="unassigned"),
]
OVERDUE = [
    waiting("the renewal is to be processed tomorrow", ALONE | WAITS),
    Case("it was to be processed at this very moment", ALONE | WAITS, renew(effective_ago=NOW)),
    Case(
        "it was to be processed a year ago: a trial that was cancelled",
        ALONE | WAITS,
        renew(-DAY, effective_ago=365 * DAY, processed=False),
    ),
    Case(
        "named and forced, it ends its chain",
        DOWNGRADE_FIRST,
        renew(-DAY, effective_ago=NOW, processed=False),
        force=True,
        plan_uuids=this_plan,
    ),
    Case("and one without a plan", DOWNGRADE_FIRST, renew(effective_ago=NOW), force=True, plan_uuids=this_plan),
    Case(
        "forced and not named, it waits: nobody has looked at it", ALONE | WAITS, renew(effective_ago=NOW), force=True
    ),
    Case("named and not forced, it waits", ALONE | WAITS, renew(effective_ago=NOW), plan_uuids=this_plan),
    Case(
        "named and forced before its time, it waits",
        ALONE | WAITS,
        renew(effective_ago=-US),
        force=True,
        plan_uuids=this_plan,
    ),
    Case(
        "named and forced, but that renewal was processed",
        ALONE | WAITS,
        renew(-DAY, effective_ago=NOW),
        force=True,
        plan_uuids=this_plan,
    ),
    Case("another plan named and forced", NOTHING, renew(effective_ago=NOW), force=True, plan_uuids=(STRANGER,)),
    processed("a processed plan waits for nothing", UNLINK, renew(effective_ago=NOW)),
]
HELD_SINCE = [
    processed(
        "and purged: its learner stays linked by the user id",
        KEPT,
        hold_other(7 * DAY, "downgrade", email=None, lms_user_id=7, status="revoked"),
        lms_user_id=7,
    ),
    processed(
        "and purged: also under an address that bears the user id elsewhere",
        KEPT,
        expired(lms_user_id=7),
        hold_other(7 * DAY, "downgrade", email=None, lms_user_id=7, status="revoked"),
    ),
    processed(
        "tonight by the unlink, under the same user's other address",
        NOTHING,
        expired(lms_user_id=7),
        hold_other(email="bob@example.org", lms_user_id=7),
    ),
    processed("under an enterprise that its agreement has left: held where it is now", NOTHING, hold(held_at=STRANGER)),
    processed(
        "the other one, under an enterprise that its agreement has left",
        KEPT,
        hold_other(7 * DAY, "downgrade", held_at=STRANGER),
    ),
    Case("in ten minutes: clocks may be so far apart", NOTHING, hold(-ROOM)),
    Case("later than that, by a clock that was wrong: tried again", DOWNGRADE_FIRST, hold(-ROOM - US)),
    processed("next year, by a clock that was wrong", UNLINK, hold(-365 * DAY)),
    processed(
        "next year, by a clock that was wrong: never downgraded all the same", KEPT, hold(-365 * DAY, step="downgrade")
    ),
    Case("by this very run, its clock was wrong: not tried again and again", NOTHING, hold(-365 * DAY, RUN)),
]
TABLES = {
    "marked": MARKED,
    "moved": MOVED,
    "unlinked": UNLINKED,
    "revoked": REVOKED,
    "spaced": SPACED,
    "same learner": SAME_LEARNER,
    "soon": SOON,
    "no address": NO_ADDRESS,
    "overdue": OVERDUE,
    "held since": HELD_SINCE,
}
