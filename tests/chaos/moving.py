"""The promises that hold while license-manager's jobs and people are at work: each by the rows as they were just then.

A request is judged by the moment at which it came in at the LMS, and by any rows that were there at most two seconds
before: or at most two before a freeze, for what is frozen between its look and its request cannot look again.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from support.oracle import License, Reading

from chaos.evidence import Evidence, named
from chaos.strikes import Strike, strikes_on
from chaos.timeline import Timeline, Version
from chaos.worlds import FRESH, SLACK, Worlds, mailbox
from simulator.lms.journal import Entry
from worker.db.license_manager_tables import DOWNGRADED_EVENT, UNLINKED_EVENT

Verdict = Iterator[str]
FREEZES = ("freeze_child", "freeze_worker")
# The longest freeze, and what a machine that wakes with it takes to go on.
LONGEST_FREEZE = timedelta(seconds=20)


def judge_moving(night: Evidence, timeline: Timeline, struck: Sequence[Strike]) -> Verdict:
    """Say which promises were broken, one sentence for each time."""
    worlds = Worlds(night, timeline)
    for enterprise in night.laid_data.enterprises:
        yield from _unlinks(worlds, enterprise, struck)
        yield from _downgrades(worlds, enterprise, struck)
        yield from _marks(worlds, enterprise)
        yield from _unlinked(worlds, enterprise)
        yield from _downgraded(worlds, enterprise)
        yield from _in_the_end(worlds, enterprise)


def _based_on(worlds: Worlds, enterprise: UUID, call: Entry, struck: Sequence[Strike]) -> list[Version]:
    """The rows that a call may have been based on."""
    since = call.started_at - FRESH - SLACK
    for strike in strikes_on(struck, enterprise, FREEZES):
        if strike.point == "starved":
            since = min(since, call.started_at - LONGEST_FREEZE)
        elif strike.at <= call.started_at <= strike.at + LONGEST_FREEZE:
            since = min(since, strike.at - FRESH - SLACK)
    return worlds.timeline.between(enterprise, since, call.started_at + SLACK)


def _unlinks(worlds: Worlds, enterprise: UUID, struck: Sequence[Strike]) -> Verdict:
    """Nobody is unlinked whose license was not due, protected, held or not downgraded as the request was sent."""
    for call in worlds.night.calls(enterprise, "unlink"):
        names = {mailbox(email) for email in named(call)}
        due, wanting, of = set[str](), dict[str, UUID](), dict[str, UUID]()
        for version in _based_on(worlds, enterprise, call, struck):
            world = worlds.narrow(worlds.before(enterprise, version.rows, call), names)
            reading = worlds.reading(world)
            of |= {each.mailbox: each.uuid for each in world.licenses.values()}
            for license in reading.rehearsed_unlinks():
                wanting |= dict.fromkeys(_addresses(worlds, reading, license), license.uuid)
            for license in reading.due_unlinks():
                due |= _addresses(worlds, reading, license)
        told = f"At work: enterprise {enterprise}: unlink #{call.start} holds the learner of license"
        for email in sorted(names - due):
            if email in wanting:
                yield f"{told} {wanting[email]}, not confirmed downgraded by then"
            else:
                yield f"{told} {of.get(email, '(nobody had it)')}, not due, protected or held at that moment"


def _addresses(worlds: Worlds, reading: Reading, license: License) -> set[str]:
    """Under which a learner may be unlinked: the license's, and those of the account that nobody protected has."""
    kept = {each.mailbox for each in reading.world.licenses.values() if reading.is_protected(each)}
    return {license.mailbox} | (worlds.addresses(license) - kept)


def _downgrades(worlds: Worlds, enterprise: UUID, struck: Sequence[Strike]) -> Verdict:
    """Nobody is downgraded whose plan had not expired, or was renewed, as the request was sent."""
    for call in worlds.night.calls(enterprise, "downgrade"):
        left = set(named(call))
        for version in _based_on(worlds, enterprise, call, struck):
            world = worlds.narrow(worlds.untold(enterprise, version.rows, call.started_at), left)
            reading = worlds.reading(world)
            left -= {str(each.uuid) for each in reading.due_downgrades() | reading.waiting_downgrades()}
        told = f"At work: enterprise {enterprise}: downgrade #{call.start} holds license"
        yield from (f"{told} {name}, not due at that moment" for name in sorted(left))


def _marks(worlds: Worlds, enterprise: UUID) -> Verdict:
    """A plan is marked as processed when the LMS has confirmed all of its learners' licenses, for its present date."""
    for row in worlds.night.plan_history:
        marked, moment = row["uuid"], row["history_date"]
        ours = bool(row["expiration_processed"]) and (marked, moment) not in worlds.timeline.history
        if not ours or worlds.night.enterprise_with(marked) != enterprise:
            continue
        versions = worlds.timeline.between(enterprise, moment - FRESH - SLACK, moment + SLACK)
        lacking = [_lacking(worlds, enterprise, version, marked, moment) for version in versions]
        if all(lacking):
            yield (
                f"At work: plan {marked} was marked as processed at {moment}, with license "
                f"{min(lacking[0])} not confirmed or the plan not due"
            )


def _lacking(worlds: Worlds, enterprise: UUID, version: Version, plan: UUID, moment: datetime) -> set[str]:
    """What stood against a mark, by the rows of one version: licenses, or the plan itself."""
    world = worlds.untold(enterprise, version.rows, moment + SLACK)
    reading = worlds.reading(world)
    if plan not in world.plans or not reading.is_ripe(world.plans[plan]):
        return {f"(none: plan {plan})"}
    licenses = {each for each in reading.due_downgrades() if each.plan.uuid == plan}
    return {
        str(license.uuid)
        for license in licenses
        if not any(
            each.ended_at is not None and license.plan.expires - SLACK <= each.ended_at <= moment + SLACK
            for each in worlds.night.confirmations(enterprise, str(license.uuid))
        )
    }


def _unlinked(worlds: Worlds, enterprise: UUID) -> Verdict:
    """A learner is recorded as unlinked when the LMS has said so before, and then is not linked any more."""
    night = worlds.night
    for license, created in night.of_the_night(UNLINKED_EVENT):
        if license.enterprise != enterprise:
            continue
        told = f"At work: license {license.uuid} is recorded as unlinked"
        before = [emails for at, emails in worlds.unlinked(enterprise, license.uuid) if at <= created + 2 * SLACK]
        again = {email for customer, email in worlds.timeline.linked if customer == enterprise}
        if not before:
            yield f"{told}, which the LMS had not told by {created}"
        elif all(emails & night.state.linked[enterprise] - again for emails in before):
            yield f"{told}, but its learner is still linked"


def _downgraded(worlds: Worlds, enterprise: UUID) -> Verdict:
    """A license is recorded as downgraded, by itself, when the LMS has said so before."""
    night = worlds.night
    alone = [(license.uuid, at) for license, at in night.of_the_night(DOWNGRADED_EVENT)]
    # The ledger dates it by its run's beginning, so that it cannot stand for a later expiration.
    alone += [(row["license_uuid"], datetime.max.replace(tzinfo=UTC)) for row in night.downgrades]
    for uuid, at in alone:
        if uuid not in night.licenses or night.licenses[uuid].enterprise != enterprise:
            continue
        ends = [each.ended_at for each in night.confirmations(enterprise, str(uuid)) if each.ended_at]
        if not any(end - SLACK <= at for end in ends):
            yield f"At work: license {uuid} is recorded as downgraded, which no request had confirmed by then"


def _in_the_end(worlds: Worlds, enterprise: UUID) -> Verdict:
    """Nothing is lost and nothing is stuck: whatever is due by the last rows was confirmed, recorded, or is held."""
    now = datetime.now(UTC)
    rows = worlds.night.rows_of(enterprise)
    for how, world in (
        ("recorded", worlds.recorded(enterprise, rows, now)),
        ("confirmed", worlds.confirmed(enterprise, rows, now)),
    ):
        reading = worlds.reading(world)
        for license in sorted(reading.due_downgrades() | reading.waiting_downgrades(), key=lambda each: each.uuid):
            yield f"At work: license {license.uuid} is due, and its downgrade is not {how}"
        for license in sorted(reading.rehearsed_unlinks(), key=lambda each: each.uuid):
            yield f"At work: license {license.uuid} is due, and its unlink is not {how}"
        if how == "recorded":
            for plan in sorted(reading.due_plans(), key=lambda each: each.uuid):
                yield f"At work: plan {plan.uuid} is due and not marked as processed"
