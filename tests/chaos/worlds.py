"""What was due by the plain reading (`support.oracle`) at a moment of a night, from the rows as they were then.

What the LMS has confirmed is told by its journal, and not by what the worker has recorded of it.
"""

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from support import oracle
from support.oracle import Reading, World

from chaos.data import UNLINK_AFTER
from chaos.evidence import REFUSALS, Evidence, named
from chaos.timeline import Row, Rows, Timeline
from simulator.data.rows import DOWNGRADED_EVENT, UNLINKED_EVENT, Data
from simulator.lms.journal import Entry
from worker.due.scope import Scope

# What is sent is what was selected at most two seconds before; and a busy machine gets nothing done for a moment.
FRESH = timedelta(seconds=2)
SLACK = timedelta(seconds=0.5)


def mailbox(email: object) -> str:
    """An address as it is compared: another case is no other learner."""
    return str(email or "").strip().lower()


Mark = tuple[UUID, datetime, bool, bool]
"""A plan, when its history shows it, whether marked, and whether by us."""


class Worlds:
    """Makes the world of an enterprise at a moment, from a night's evidence and its timeline."""

    def __init__(self, night: Evidence, timeline: Timeline) -> None:
        self.night, self.timeline = night, timeline
        assert night.laid_data.laid_at is not None
        self._laid_at: datetime = night.laid_data.laid_at
        self._held = {row["license_uuid"]: (row["step"], self._held_since(row)) for row in night.held}
        self._data: Any = Data.__new__(Data)  # nothing is laid down from these worlds

    def reading(self, world: World) -> Reading:
        """What is due in a world."""
        return Reading(world, Scope(world.as_of, UNLINK_AFTER, self.night.laid_data.listed, now=world.as_of))

    def before(self, enterprise: UUID, rows: Rows, call: Entry) -> World:
        """A world as a call may have found it: with what the LMS had confirmed by then, but for unlinks.

        An unlink may have to be sent again, because its first confirmation was lost.
        """
        world = self._world(enterprise, rows, call.started_at, self._marks(call.started_at))
        for license in world.licenses.values():
            for each in self.night.confirmations(enterprise, str(license.uuid)):
                if each.end is not None and each.end < call.start:
                    world.confirmations.append((license.uuid, oracle.OTHER_RUN, _ended(each)))
        for uuid, (step, since) in self._held.items():
            if since is not None and since + FRESH + SLACK < call.started_at:
                self._hold(world, uuid, step)
        return world

    def untold(self, enterprise: UUID, rows: Rows, moment: datetime) -> World:
        """A world in which nothing was ever done: whatever is due in it may be sent, for the first time or again."""
        world = self._world(enterprise, rows, moment, ())
        _set_processed(world, ())
        return world

    def confirmed(self, enterprise: UUID, rows: Rows, moment: datetime) -> World:
        """A world in which is done what the LMS has confirmed, whatever the worker has recorded."""
        marks = [mark for mark in self._marks(moment) if (mark[0], mark[1]) in self.timeline.history]
        old = self.night.laid_data.processed
        world = self._world(enterprise, rows, moment, [mark for mark in marks if mark[0] in old])
        _set_processed(world, old)
        for uuid, license in world.licenses.items():
            for each in self.night.confirmations(enterprise, str(uuid)):
                world.confirmations.append((uuid, oracle.OTHER_RUN, _ended(each)))
            if self._assigned_since_its_mark(enterprise, license, world):
                world.confirmations.append((uuid, oracle.OTHER_RUN, license.plan.expires))
            world.events += [(uuid, UNLINKED_EVENT, at) for at, _ in self.unlinked(enterprise, uuid)]
        for uuid, (step, _) in self._held.items():
            self._hold(world, uuid, step)
        return world

    def recorded(self, enterprise: UUID, rows: Rows, moment: datetime) -> World:
        """The world as the database tells it."""
        world = self._world(enterprise, rows, moment, self._marks(moment))
        names = (UNLINKED_EVENT, DOWNGRADED_EVENT)
        for row in self.night.events:
            if row["license_id"] in world.licenses and row["event_name"] in names:
                world.events.append((row["license_id"], row["event_name"], row["created"]))
        for row in self.night.downgrades:
            if row["license_uuid"] in world.licenses:
                world.confirmations.append((row["license_uuid"], row["run_id"], row["confirmed_at"]))
        for uuid, (step, _) in self._held.items():
            self._hold(world, uuid, step)
        return world

    def narrow(self, world: World, names: Container[str]) -> World:
        """Keep of a world the licenses with these addresses or UUIDs, and all others of the same people.

        The plain reading compares each license with each.
        """
        known = {each.uuid: {each.mailbox, str(each.uuid), *self.addresses(each)} for each in world.licenses.values()}
        kept = {each for each in world.licenses.values() if any(name in names for name in known[each.uuid])}
        grown = 0
        while len(kept) > grown:
            grown = len(kept)
            mailboxes = {each.mailbox for each in kept} - {""}
            mailboxes |= {address for each in kept for address in self.addresses(each)}
            users = {each.lms_user_id for each in kept} - {None}
            kept |= {each for each in world.licenses.values() if each.mailbox in mailboxes or each.lms_user_id in users}
        world.licenses = {each.uuid: each for each in kept}
        return world

    def addresses(self, license: oracle.License) -> set[str]:
        """The addresses of a license's account, as they are compared."""
        return {mailbox(email) for email in self.night.addresses(license.lms_user_id)}

    def unlinked(self, enterprise: UUID, license: UUID) -> Iterator[tuple[datetime, set[str]]]:
        """When the LMS told that the learner of a license was unlinked, and under which addresses it knew them.

        Meant is whoever had the license as the LMS was called.
        """
        for email, user in self.learners(enterprise, license):
            emails = {email, email.strip()} | self.night.addresses(user)
            for each in self.night.unlinked_by(enterprise, emails, user):
                versions = self.timeline.between(enterprise, each.started_at - FRESH - SLACK, each.started_at)
                had = {_learner(row) for version in versions for row in version.rows.licenses if row["uuid"] == license}
                if (email, user) in had:
                    yield _ended(each), emails

    def learners(self, enterprise: UUID, license: UUID) -> set[tuple[str, int | None]]:
        """Who has had a license: address and number."""
        versions = self.timeline.between(enterprise, self._laid_at, datetime.max.replace(tzinfo=UTC))
        had = (row for version in versions for row in version.rows.licenses if row["uuid"] == license)
        return {_learner(row) for row in had if row["user_email"] is not None}

    def _marks(self, until: datetime) -> list[Mark]:
        return [
            (row["uuid"], at, bool(row["expiration_processed"]), row["modified"] == at)
            for row in self.night.plan_history
            if (at := row["history_date"]) <= until
        ]

    def _world(self, enterprise: UUID, rows: Rows, moment: datetime, marks: Iterable[Mark]) -> World:
        """Plans, renewals and licenses as they were, the histories of before a moment, and what was done before."""
        world = World(self._data, moment)
        world.marks = list(marks)
        shown = {uuid for uuid, _, marked, _ in world.marks if marked}
        for row in rows.plans:
            processed = bool(row["expiration_processed"]) or row["uuid"] in shown
            dates = (row["start_date"], row["expiration_date"])
            world.plans[row["uuid"]] = oracle.Plan(
                row["uuid"], enterprise, *dates, is_active=bool(row["is_active"]), processed=processed
            )
        for row in rows.renewals:
            own = (row["renewed_subscription_plan_id"], row["effective_date"], bool(row["processed"]))
            world.renewals[row["prior_subscription_plan_id"]] = oracle.Renewal(*own)
        world.licenses = {row["uuid"]: _license(row, world) for row in rows.licenses}
        world.moves = [
            (row["uuid"], row["history_date"], row["subscription_plan_id"])
            for row in self.night.license_history
            if row["history_date"] <= moment
        ]
        world.events = [
            (row["license_id"], row["event_name"], row["created"])
            for row in self.night.events
            if row["license_id"] in self.night.laid_data.unlinked and row["created"] < self._laid_at
        ]
        return world

    def _assigned_since_its_mark(self, enterprise: UUID, license: oracle.License, world: World) -> bool:
        """Was the license in its plan, and nobody's, when a worker marked the plan? Then there was nothing to send."""
        plan = license.plan
        for uuid, at, marked, _ in self._marks(world.as_of):
            if uuid != plan.uuid or not marked or at < plan.expires or (uuid, at) in self.timeline.history:
                continue
            for version in self.timeline.between(enterprise, at - SLACK, at):
                then = [row for row in version.rows.licenses if row["uuid"] == license.uuid]
                in_plan = [row for row in then if row["subscription_plan_id"] == plan.uuid]
                if any(not oracle.was_a_learners(_license(row, world)) for row in in_plan):
                    return True
        return False

    def _held_since(self, hold: Row) -> datetime | None:
        """When the LMS refused this license alone, by its journal; None where that cannot be told."""
        enterprise, license = hold["enterprise_customer_uuid"], hold["license_uuid"]
        learners = self.learners(enterprise, license)
        known = {email.strip() for email, _ in learners} | {email for email, _ in learners}
        emails = known.union(*(self.night.addresses(user) for _, user in learners))
        names = {str(license)} if hold["step"] == "downgrade" else emails
        alone = [
            each.ended_at
            for each in self.night.calls(enterprise, hold["step"])
            if each.status in REFUSALS and len(named(each)) == 1 and set(named(each)) <= names and each.ended_at
        ]
        return max(alone, default=None)

    def _hold(self, world: World, license: UUID, step: str) -> None:
        if license in world.licenses:
            world.holds[license] = (oracle.OTHER_RUN, world.as_of)
            if step == "downgrade":
                world.undowngraded.add(license)


def _learner(row: Row) -> tuple[str, int | None]:
    return row["user_email"] or "", row["lms_user_id"]


def _ended(call: Entry) -> datetime:
    """When a call was answered, at the latest when its worker had read the answer."""
    assert call.ended_at is not None
    return call.ended_at + SLACK


def _set_processed(world: World, plans: Container[UUID]) -> None:
    """Let these plans be marked as processed, and no others."""
    world.plans = {uuid: replace(plan, processed=uuid in plans) for uuid, plan in world.plans.items()}
    world.licenses = {
        uuid: replace(license, plan=world.plans[license.plan.uuid]) for uuid, license in world.licenses.items()
    }


def _license(row: Row, world: World) -> oracle.License:
    return oracle.License(
        uuid=row["uuid"],
        plan=world.plans[row["subscription_plan_id"]],
        email=row["user_email"],
        lms_user_id=row["lms_user_id"],
        status=row["status"],
        renewed=row["renewed_to_id"] is not None,
        assigned=row["assigned_date"],
        revoked=row["revoked_date"],
    )
