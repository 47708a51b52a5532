"""The judge: every promise of the design, held against the LMS's journal and the database after a night.

A verdict is a list of sentences, one for each broken promise found; they name enterprises, licenses and runs by their
UUIDs and requests by their number in the journal (#12), and hold no e-mail address.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import pairwise
from math import inf
from uuid import UUID

from sqlalchemy import Engine
from support.runs import scan

from chaos.data import PARALLEL, LaidData, due
from chaos.evidence import Evidence, License, Step, confirms, named, numbers
from chaos.moving import judge_moving
from chaos.snapshot import Snapshot, difference, take_snapshot, without
from chaos.strikes import Strike, strikes_on
from chaos.timeline import Timeline
from simulator.lms.journal import Entry
from simulator.lms.server import Simulator
from worker.db.license_manager_tables import DOWNGRADED_EVENT, UNLINKED_EVENT
from worker.ledger.order import ENDED, Phase

__all__ = ["judge", "requests_since", "scan"]

# The moments of the database and of the LMS are one machine's, read by two processes.
TOLERANCE = timedelta(seconds=0.1)
# What takes confirmations from a worker before they are recorded: each at most those that were in flight.
CRASHES = (
    "kill_child",
    "kill_worker",
    "freeze_child",
    "freeze_worker",
    "commit_lost",
    "database_restart",
    "database_reset",
)
Verdict = Iterator[str]


def judge(
    laid_data: LaidData,
    engine: Engine,
    lms: Simulator,
    undisturbed: Snapshot,
    struck: Sequence[Strike],
    timeline: Timeline,
) -> list[str]:
    """Say which promises were broken, one sentence for each time.

    The enterprises to which people did something meanwhile are judged by the promises of `moving`: what would have
    become of them undisturbed nobody knows.
    """
    night = Evidence(laid_data, engine, lms, timeline.touched)
    verdicts = [
        _order(night),
        _learner_by_learner(night),
        _nothing_lost(night, engine, lms, undisturbed, timeline),
        _nothing_invented(night),
        _one_at_a_time(night, struck),
        _isolation(night, struck),
        _repeats(night, struck),
        _counts(night),
        judge_moving(night, timeline, struck),
    ]
    return [sentence for verdict in verdicts for sentence in verdict]


def requests_since(lms: Simulator, number: int) -> list[str]:
    """The requests that began after a number of the journal: there are to be none when nothing is due."""
    return [
        f"Again: {entry.kind} #{entry.start} was sent for {', '.join(entry.enterprises) or 'nobody'}, with nothing due"
        for entry in lms.calls()
        if entry.start > number
    ]


def _order(night: Evidence) -> Verdict:
    """Promise 1. Whichever unlink comes first, all downgrades lie before it, so no other unlink need be looked at.

    No downgrade after it is legal, not even a later run's. That run could have one to send only for a license that
    the first unlink's run had neither confirmed nor set aside: which breaks the promise; or for one that was not due
    then: but all that this laid_data calls due was due before the night, and nobody narrows a run to some of the plans.
    Those held are not due again for twelve hours.
    """
    for enterprise in night.untouched:
        unlinks, downgrades = night.calls(enterprise, "unlink"), night.calls(enterprise, "downgrade")
        if not unlinks:
            continue
        first = unlinks[0].start
        told = f"Order: enterprise {enterprise}"
        for each in downgrades:
            if each.start > first:
                yield f"{told}: downgrade #{each.start} began after unlink #{first}"
            elif each.end is None or each.end > first:
                yield from (f"{told}: {fault}" for fault in _in_flight(night, enterprise, each, first))
        for name in sorted({name for each in downgrades if each.start < first for name in named(each)}):
            if not night.settled(enterprise, name, first):
                yield f"{told}: license {name} was neither confirmed nor held when unlink #{first} began"


def _in_flight(night: Evidence, enterprise: UUID, call: Entry, first: int) -> Verdict:
    """A downgrade that was in flight as an unlink began: its client had to have given it up and made it good."""
    if call.end is not None and (call.gone is None or call.gone > first):
        yield f"downgrade #{call.start} was in flight when unlink #{first} began"
        return
    for name in named(call):
        if not night.settled(enterprise, name, first, since=call.start):
            yield f"downgrade #{call.start} was given up, and license {name} not made good before unlink #{first} began"


def _learner_by_learner(night: Evidence) -> Verdict:
    """Promise 2. All expired licenses of learners here are due ones, or the learner is protected."""
    for enterprise in night.untouched:
        for call in night.calls(enterprise, "unlink"):
            told = f"Learner by learner: enterprise {enterprise}: unlink #{call.start}"
            for email in named(call):
                theirs = [each for each in night.learners_licenses(enterprise, email) if each.learners and each.expired]
                if not theirs:
                    yield f"{told} holds somebody without an expired license"
                for license in theirs:
                    done = license.plan in night.laid_data.processed or any(
                        each.end is not None and each.end < call.start
                        for each in night.confirmations(enterprise, str(license.uuid))
                    )
                    if not done:
                        yield f"{told} holds the learner of license {license.uuid}, not confirmed downgraded by then"


def _nothing_lost(
    night: Evidence, engine: Engine, lms: Simulator, undisturbed: Snapshot, timeline: Timeline
) -> Verdict:
    """Promise 3: in the end all is as after a night that nothing disturbed."""
    ids = timeline.ids()
    for sentence in difference(without(take_snapshot(engine, lms), ids), without(undisturbed, ids)):
        yield f"Nothing lost: {sentence}"
    if left := due(night.laid_data, engine):
        yield f"Nothing lost: {left} enterprises still have something due"
    for run in night.runs:
        if run["live"] is not None or run["phase"] not in ENDED:
            yield f"Nothing lost: run {run['id']} is still live, {run['phase']}"


def _nothing_invented(night: Evidence) -> Verdict:
    """Promise 4: whatever is recorded as done the LMS has done, and has said so before."""
    for license in _recorded_downgrades(night):
        if license.enterprise not in night.untouched:
            continue
        told = f"Nothing invented: license {license.uuid} is recorded as downgraded"
        if any(each.mode != "audit" for each in night.state.enrollments(license.uuid)):
            yield f"{told}, but is not at the LMS"
        if not night.confirmations(license.enterprise, str(license.uuid)):
            yield f"{told}, which no request had confirmed"
    for license, _ in night.of_the_night(UNLINKED_EVENT):
        if (
            license.enterprise in night.untouched
            and (license.email or "").strip() in night.state.linked[license.enterprise]
        ):
            yield f"Nothing invented: license {license.uuid} is recorded as unlinked, but its learner is still linked"
    for event_name in (UNLINKED_EVENT, DOWNGRADED_EVENT):
        told = f"Nothing invented: event {event_name.rpartition('license.')[2]} of license"
        for license, created in night.of_the_night(event_name):
            if license.enterprise not in night.untouched:
                continue
            if event_name == DOWNGRADED_EVENT:
                told_by = night.confirmations(license.enterprise, str(license.uuid))
            else:
                emails = {str(license.email)} | night.addresses(license.lms_user_id)
                told_by = night.unlinked_by(license.enterprise, emails, license.lms_user_id)
            ends = [each.ended_at for each in told_by if each.ended_at]
            if not any(end <= created + TOLERANCE for end in ends):
                yield f"{told} {license.uuid} was not confirmed by any request before {created}"
    for (license_uuid, event_name), times in Counter(
        (row["license_id"], row["event_name"])
        for row in night.events
        if night.licenses[row["license_id"]].enterprise in night.untouched
    ).items():
        if times > 1:
            yield f"Nothing invented: license {license_uuid} has event {event_name} {times} times"


def _recorded_downgrades(night: Evidence) -> Iterator[License]:
    """The licenses that this night's records call downgraded, by their plan or by themselves."""
    for plan in night.processed():
        yield from night.of_plan(plan)
    by_plan = {license.uuid for plan in night.processed() for license in night.of_plan(plan)}
    alone = {row["license_uuid"] for row in night.downgrades if row["license_uuid"] in night.licenses}
    alone |= {license.uuid for license, _ in night.of_the_night(DOWNGRADED_EVENT)}
    yield from (night.licenses[uuid] for uuid in sorted(alone - by_plan))


def _one_at_a_time(night: Evidence, struck: Sequence[Strike]) -> Verdict:
    """Promise 6. What a worker had in flight when it was killed or frozen the LMS has answered long before its lease
    ends, so that nobody who took the run over is excused by it.
    """
    for enterprise in night.laid_data.enterprises:
        runs = night.runs_of(enterprise)
        for earlier, later in pairwise(runs):
            if earlier["ended_at"] is None or earlier["ended_at"] > later["opened_at"] + TOLERANCE:
                yield f"One at a time: enterprise {enterprise}: runs {earlier['id']} and {later['id']} overlap"
        worst = max((_together(night.calls(enterprise), each) for each in night.calls(enterprise)), key=len, default=[])
        if len(worst) > PARALLEL:
            yield f"One at a time: enterprise {enterprise}: {numbers(worst)} in flight at once, {PARALLEL} are allowed"


def _together(calls: list[Entry], call: Entry) -> list[Entry]:
    """The requests that were in flight, and waited for, at the moment when one began."""
    return [each for each in calls if each.start <= call.start < min(each.end or inf, each.gone or inf)]


def _isolation(night: Evidence, struck: Sequence[Strike]) -> Verdict:
    """Promise 7: whom nothing struck has had a night like any other."""
    for enterprise in night.untouched:
        if strikes_on(struck, enterprise):
            continue
        told = f"Isolation: enterprise {enterprise}, which nothing struck,"
        phases = [str(run["phase"]) for run in night.runs_of(enterprise)]
        if phases != ([str(Phase.FINISHED)] if enterprise in night.laid_data.due else []):
            yield f"{told} had these runs: {', '.join(phases) or 'none'}"
        if again := _sent_again(night, enterprise):
            yield f"{told} was sent again what was confirmed: {numbers(again)}"


def _repeats(night: Evidence, struck: Sequence[Strike]) -> Verdict:
    """Promise 8. What a worker had in flight when it crashed, and no more, may have to be sent again.

    Counted are the confirmed requests of which anything was sent again, and not those that it was sent in: licenses
    left over from two batches can come to lie in three.
    """
    for enterprise in night.untouched:
        crashes = len(strikes_on(struck, enterprise, CRASHES))
        again = _sent_again(night, enterprise)
        if len(again) > PARALLEL * crashes:
            bound = f"{PARALLEL} for each of {crashes} crashes, {PARALLEL * crashes}, are allowed"
            yield f"Repeats: enterprise {enterprise}: {len(again)} confirmed requests ({numbers(again)}) again; {bound}"


def _sent_again(night: Evidence, enterprise: UUID) -> list[Entry]:
    """The confirmed requests of an enterprise of which anything was sent again after their answer.

    The learners of two licenses are left out: each of the two may be sent in a batch of its own.
    """
    emails = Counter(each.email for each in night.licenses.values() if each.enterprise == enterprise and each.learners)
    steps: tuple[Step, ...] = ("downgrade", "unlink")
    found = []
    for calls in (night.calls(enterprise, step) for step in steps):
        last = {name: each.start for each in calls for name in named(each) if emails[name] < 2}
        found += [each for each in calls if confirms(each) and _any_after(each, last)]
    return found


def _any_after(call: Entry, last: dict[str, int]) -> bool:
    return call.end is not None and any(last.get(name, 0) > call.end for name in named(call))


def _counts(night: Evidence) -> Verdict:
    """What the runs have counted is what the night has left, no more and no less."""
    for enterprise in night.untouched:
        downgraded = {license.uuid for license in _recorded_downgrades(night) if license.enterprise == enterprise}
        unlinked = [each for each, _ in night.of_the_night(UNLINKED_EVENT) if each.enterprise == enterprise]
        held = [row for row in night.held if row["enterprise_customer_uuid"] == enterprise]
        left = {
            "licenses_downgraded": len(downgraded),
            "learners_unlinked": len(unlinked),
            "licenses_held": len(held),
        }
        for name, wanted in left.items():
            counted = sum(run[name] for run in night.runs_of(enterprise))
            if counted != wanted:
                yield f"Counts: enterprise {enterprise}: its runs have {name} {counted}, its records {wanted}"
