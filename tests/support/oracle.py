"""What is due, read a second time: plain Python, to hold worker/due/conditions.py against.

Written from DESIGN ("What is due") and the facts about license-manager, object by object, and not from the
selects. A `World` keeps rows as objects and lays them down in a database; a `Reading` of it answers every question
of what is due; `answers_of` and `pages_of` put the same questions to the queries themselves.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, insert
from sqlalchemy.orm import Session

from simulator.data.rows import DAY, DOWNGRADED_EVENT, UNLINKED_EVENT, Agreement, Data, Status
from worker.db import ledger_tables, license_manager_tables, sql
from worker.db.transactions import Database
from worker.due import downgrades, enterprises, plans, unlinks
from worker.due.forecast import PlanRow, plan_rows
from worker.due.scope import Scope
from worker.due.statements import fetch

Row = tuple[Any, ...]
Answers = dict[str, list[Row]]
Page = Callable[[UUID | None], sql.Rows]

HELD_FOR = timedelta(hours=12)
MS = timedelta(milliseconds=1)
OTHER_RUN = UUID("0000aaaa-0000-4000-8000-00000000aaaa")
RUN = UUID("0000bbbb-0000-4000-8000-00000000bbbb")


@dataclass(frozen=True)
class Plan:
    uuid: UUID
    customer: UUID
    starts: datetime
    expires: datetime
    is_active: bool
    processed: bool


@dataclass(frozen=True)
class Renewal:
    """Of a plan by another, or by none yet; `effective` is when it is to be processed."""

    following: UUID | None
    effective: datetime
    processed: bool


@dataclass(frozen=True)
class License:
    uuid: UUID
    plan: Plan
    email: str | None
    lms_user_id: int | None
    status: Status
    renewed: bool
    assigned: datetime | None
    revoked: datetime | None

    @property
    def mailbox(self) -> str:
        """The LMS trims white space around an e-mail; case does not make another learner."""
        return (self.email or "").strip().lower()

    def is_same_learners(self, other: "License") -> bool:
        """Same e-mail, or same user; what is not known matches nothing."""
        by_user = self.lms_user_id is not None and self.lms_user_id == other.lms_user_id
        return self.plan.customer == other.plan.customer and (by_user or self.has_address_of(other))

    def has_address_of(self, other: "License") -> bool:
        return self.mailbox != "" and self.mailbox == other.mailbox and self.plan.customer == other.plan.customer


@dataclass
class World:
    """The rows of some customers, as objects; `lay_down` writes them, and those of the ledger, to the database."""

    data: Data
    as_of: datetime
    agreements: dict[UUID, Agreement] = field(default_factory=dict)
    plans: dict[UUID, Plan] = field(default_factory=dict)
    renewals: dict[UUID, Renewal] = field(default_factory=dict)
    licenses: dict[UUID, License] = field(default_factory=dict)
    marks: list[tuple[UUID, datetime, bool, bool]] = field(default_factory=list)
    moves: list[tuple[UUID, datetime, UUID]] = field(default_factory=list)
    events: list[tuple[UUID, str, datetime]] = field(default_factory=list)
    confirmations: list[tuple[UUID, UUID, datetime]] = field(default_factory=list)
    holds: dict[UUID, tuple[UUID, datetime]] = field(default_factory=dict)
    held_at: dict[UUID, UUID] = field(default_factory=dict)
    undowngraded: set[UUID] = field(default_factory=set)

    def customer(self) -> UUID:
        agreement = self.data.agreement()
        self.agreements[agreement.enterprise_customer_uuid] = agreement
        return agreement.enterprise_customer_uuid

    def plan(
        self,
        customer: UUID,
        ago: timedelta = 100 * DAY,
        since: timedelta = 900 * DAY,
        is_active: bool = True,
        processed: bool = False,
    ) -> Plan:
        """Add a plan that expired `ago` (or will, when negative) and began `since`, both counted from `as_of`."""
        starts, expires = self.as_of - since, self.as_of - ago
        agreement = self.agreements[customer]
        uuid = self.data.plan(agreement, starts, expires, is_active=is_active, expiration_processed=processed)
        self.plans[uuid] = Plan(uuid, customer, starts, expires, is_active, processed)
        return self.plans[uuid]

    def show_mark(self, plan: Plan, after: timedelta, processed: bool = True, ours: bool = False) -> None:
        """Let the plan's history show it as marked (or not) so long after its expiration date, as that is today.

        In a row of `ours` both moments are the same; Django saves a row a moment before it notes that in the history.
        """
        moment = self._at(plan, after)
        self.data.plan_history(plan.uuid, moment, processed, modified=moment if ours else moment - MS)
        self.marks.append((plan.uuid, moment, processed, ours))

    def renew(
        self,
        prior: Plan,
        renewed: Plan | None = None,
        effective_ago: timedelta = -DAY,
        processed: bool | None = None,
    ) -> None:
        """Add a renewal of a plan, to be processed `effective_ago`; it is when the next plan is there, unless given."""
        following, effective = renewed.uuid if renewed else None, self.as_of - effective_ago
        done = renewed is not None if processed is None else processed
        self.data.renewal(prior.uuid, following, effective, processed=done)
        self.renewals[prior.uuid] = Renewal(following, effective, done)

    def license(
        self,
        plan: Plan,
        email: str | None = "ann@example.org",
        lms_user_id: int | None = None,
        status: Status = "activated",
        renewed: bool = False,
        assigned_after: timedelta | None = -300 * DAY,
        revoked_after: timedelta | None = None,
    ) -> License:
        """Add a license; a `renewed` one is carried on by one that is nobody's yet, in the same plan.

        When it was assigned and revoked is counted from its plan's expiration date.
        """
        on = self.license(plan, None, None, "unassigned") if renewed else None
        dated = (assigned_after, revoked_after)
        assigned, revoked = (None if after is None else self._at(plan, after) for after in dated)
        dates = {"assigned_date": assigned, "revoked_date": revoked}
        uuid = self.data.license(plan.uuid, email, lms_user_id, status, on.uuid if on else None, **dates)
        self.licenses[uuid] = License(uuid, plan, email, lms_user_id, status, renewed, assigned, revoked)
        return self.licenses[uuid]

    def show_plan(self, license: License, after: timedelta, plan: Plan) -> None:
        """Let the license's history show it in this plan, so long after its plan's expiration date."""
        moment = self._at(license.plan, after)
        self.data.license_history(license.uuid, moment, plan.uuid)
        self.moves.append((license.uuid, moment, plan.uuid))

    def event(self, license: License, name: str, after: timedelta = DAY) -> None:
        """Add an event of a license, so long after its plan's expiration date."""
        self.data.event(license.uuid, name, license.plan.expires + after)
        self.events.append((license.uuid, name, license.plan.expires + after))

    def confirm(self, license: License, after: timedelta = DAY, run: UUID = OTHER_RUN) -> None:
        """Let the ledger have the downgrade confirmed, so long after the plan's expiration date."""
        self.confirmations.append((license.uuid, run, license.plan.expires + after))

    def hold(
        self,
        license: License,
        ago: timedelta = timedelta(),
        run: UUID = OTHER_RUN,
        step: str = "unlink",
        held_at: UUID | None = None,
    ) -> None:
        """Hold a license; at the customer whose it was then, unless that is the same."""
        self.holds[license.uuid] = (run, self.as_of - ago)
        self.held_at[license.uuid] = held_at or license.plan.customer
        if step == "downgrade":
            self.undowngraded.add(license.uuid)

    def _at(self, plan: Plan, after: timedelta) -> datetime:
        """So long after the plan's expiration date; not in the future, which nobody can have written."""
        return min(plan.expires + after, self.as_of)

    def confirmation_rows(self) -> list[dict[str, Any]]:
        return [
            {"license_uuid": uuid, "run_id": run, "confirmed_at": at, "enterprise_customer_uuid": self._customer(uuid)}
            for uuid, run, at in self.confirmations
        ]

    def hold_rows(self) -> list[dict[str, Any]]:
        rest = {"reason": "refused", "tries": 1}
        return [
            {"license_uuid": uuid, "run_id": run, "as_of": at, "enterprise_customer_uuid": self.held_at[uuid]}
            | {"first_held_at": at, "step": "downgrade" if uuid in self.undowngraded else "unlink", **rest}
            for uuid, (run, at) in self.holds.items()
        ]

    def _customer(self, license_uuid: UUID) -> UUID:
        return self.licenses[license_uuid].plan.customer


def lay_down(engine: Engine, *worlds: World) -> None:
    """Write everything to the database; the worlds share their `Data`."""
    worlds[0].data.flush()
    confirmed = [row for world in worlds for row in world.confirmation_rows()]
    held = [row for world in worlds for row in world.hold_rows()]
    with engine.begin() as connection:
        for table, found in ((ledger_tables.Downgrade, confirmed), (ledger_tables.HeldLicense, held)):
            if found:
                connection.execute(insert(table), found)


class Reading:
    """What is due in a world under a scope."""

    def __init__(self, world: World, scope: Scope) -> None:
        self.world = world
        self.scope = scope
        self._pending = {plan: self._to_send(plan) for plan in world.plans.values()}

    def answers(self) -> Answers:
        """Every question's answer, as sorted rows."""
        of_plans = {"due_plans": self.due_plans, "done_plans": self.done_plans, "waiting_plans": self.waiting_plans}
        of_licenses = {
            "due_downgrades": self.due_downgrades,
            "waiting_downgrades": self.waiting_downgrades,
            "due_unlinks": self.due_unlinks,
            "rehearsed_unlinks": self.rehearsed_unlinks,
            "protected": self.protected,
        }
        found: dict[str, Iterable[Row]] = {
            name: ((plan.uuid, plan.expires, plan.customer) for plan in ask()) for name, ask in of_plans.items()
        }
        for name, ask in of_licenses.items():
            found[name] = ((license.uuid, license.plan.uuid, license.plan.customer) for license in ask())
        found["due_enterprises"] = ((customer,) for customer in self.due_enterprises())
        found["plans_waiting"] = self.plans_waiting()
        return {name: sorted(answer, key=str) for name, answer in found.items()}

    def due_plans(self) -> set[Plan]:
        return {plan for plan in self.world.plans.values() if self.is_ripe(plan) and not self._only_held_left(plan)}

    def done_plans(self) -> set[Plan]:
        return {plan for plan in self.due_plans() if not self._pending[plan]}

    def waiting_plans(self) -> set[Plan]:
        return {license.plan for license in self.waiting_downgrades()}

    def due_downgrades(self) -> set[License]:
        ripe = [plan for plan in self.world.plans.values() if self.is_ripe(plan)]
        return {license for plan in ripe for license in self._pending[plan] if not self.is_held(license)}

    def waiting_downgrades(self) -> set[License]:
        alone = self.rehearsed_unlinks()
        return {each for each in alone if not self.is_confirmed(each) and not self.is_ripe(each.plan)}

    def due_unlinks(self) -> set[License]:
        """A learner stays linked for as long as another license of theirs is on the list of those not downgraded."""
        kept = [license for license in self.world.licenses.values() if license.uuid in self.world.undowngraded]
        return {
            license
            for license in self.rehearsed_unlinks()
            if self.is_confirmed(license) and not self.is_of_one_who_has(license, kept)
        }

    def rehearsed_unlinks(self) -> set[License]:
        """Also those whose downgrade is still to come in the same run."""
        return {license for license in self._unlinkable() if not self.is_protected(license)}

    def protected(self) -> set[License]:
        return {license for license in self._unlinkable() if self.is_protected(license)}

    def counts(self) -> Counter[tuple[UUID, str]]:
        """What `license-expiry due` counts of each plan's licenses."""
        of = {
            "downgrades": self.due_downgrades() | self.waiting_downgrades(),
            "unlinks": self.rehearsed_unlinks(),
            "protected": (protected := self.protected()),
            "protected_by_user_email": {each for each in protected if self._is_known_by_email(each)},
            "protected_by_lms_user_id": {each for each in protected if self._is_known_by_id(each)},
            "without_email": self.without_email(),
        }
        return Counter((license.plan.uuid, name) for name, those in of.items() for license in those)

    def due_enterprises(self) -> set[UUID]:
        plans = self.due_plans() | {license.plan for license in self.due_downgrades() | self.rehearsed_unlinks()}
        return {plan.customer for plan in plans}

    def is_ripe(self, plan: Plan) -> bool:
        """Expired, asked for, not processed, and nothing of its renewal chain is to come."""
        fresh = self.scope.force or not self.is_marked(plan)
        return plan.expires <= self.scope.as_of and fresh and self._is_asked_for(plan) and self._chain_ended(plan)

    def is_marked(self, plan: Plan) -> bool:
        """A mark of before the plan's present expiration date attests an earlier one, and so does each later row of it.

        But for our own, which is a new mark; and a pruned history attests nothing else.
        """
        shown = [(at, ours) for uuid, at, marked, ours in self.world.marks if uuid == plan.uuid and marked]
        anew = any(ours and at >= plan.expires for at, ours in shown)
        return plan.processed and (not shown or min(shown)[0] >= plan.expires or anew)

    def is_confirmed(self, license: License) -> bool:
        by_mark = self.is_marked(license.plan) and not self._came_after_mark(license)
        return by_mark or self._was_downgraded(license)

    def is_protected(self, license: License) -> bool:
        """By any license, of whatever status, of an active, current plan; it is current at its very last date too.

        And at most a day before its first.
        """
        return self.is_of_one_who_has(license, self._current())

    def _current(self) -> list[License]:
        assert self.scope.now is not None
        now = self.scope.now
        licenses = self.world.licenses.values()
        return [it for it in licenses if it.plan.is_active and it.plan.starts - DAY <= now <= it.plan.expires]

    def _is_known_by_email(self, license: License) -> bool:
        return any(license.has_address_of(that) for that in self._current())

    def _is_known_by_id(self, license: License) -> bool:
        """Does a license with the address have the user id of a current one, or of one with a current one's address?"""
        mine = [other for other in self.world.licenses.values() if other.has_address_of(license)]
        current = self._current()
        theirs = [*current, *(it for it in self.world.licenses.values() if any(map(it.has_address_of, current)))]
        users = {(it.plan.customer, it.lms_user_id) for it in theirs if it.lms_user_id is not None}
        return any((it.plan.customer, it.lms_user_id) in users for it in mine)

    def is_of_one_who_has(self, license: License, those: Iterable[License]) -> bool:
        """Is the address, or any user id that goes with it, of somebody who has one of those licenses?"""
        same_address = [other for other in self.world.licenses.values() if other.has_address_of(license)]
        ids = {other.lms_user_id for other in same_address} - {None}
        by_id = [
            other
            for other in self.world.licenses.values()
            if other.plan.customer == license.plan.customer and other.lms_user_id in ids
        ]
        return any(mine == that or mine.is_same_learners(that) for mine in [*same_address, *by_id] for that in those)

    def is_held(self, license: License) -> bool:
        """Held by this very run, or in the last twelve hours; who forces it wants the older ones tried again.

        A hold of the future is one of a clock that was wrong.
        """
        run, held_at = self.world.holds.get(license.uuid, (None, None))
        if held_at is None:
            return False
        young = timedelta(minutes=-10) <= self.scope.as_of - held_at < HELD_FOR
        return run == self.scope.run_id or (not self.scope.force and young)

    def _is_asked_for(self, plan: Plan) -> bool:
        scope = self.scope
        return (
            scope.enterprise in (None, plan.customer)
            and (scope.plan_uuids is None or plan.uuid in scope.plan_uuids)
            and (scope.expired_after is None or scope.expired_after <= plan.expires)
            and (scope.expired_before is None or plan.expires <= scope.expired_before)
        )

    def _chain_ended(self, plan: Plan) -> bool:
        seen = set()
        while (renewal := self._renewal_of(plan)) is not None:
            following = renewal.following
            if following is None or following in seen:
                return False
            seen.add(following)
            plan = self.world.plans[following]
        return plan.expires <= self.scope.as_of

    def _renewal_of(self, plan: Plan) -> Renewal | None:
        """Who names plans and forces them ends a chain at a renewal that nobody has processed."""
        renewal = self.world.renewals.get(plan.uuid)
        ends = self.scope.force and self.scope.plan_uuids is not None
        return None if renewal and ends and self._is_stale(renewal) else renewal

    def _is_stale(self, renewal: Renewal) -> bool:
        return not renewal.processed and renewal.effective <= self.scope.as_of

    def _came_after_mark(self, license: License) -> bool:
        """It was in another plan, or in none, when its plan was marked; not one of which nothing is known."""
        moves = enumerate(self.world.moves)
        shown = sorted((at, number, plan) for number, (uuid, at, plan) in moves if uuid == license.uuid)
        if not shown or not self.scope.license_history:
            return False
        plan = license.plan
        marks = [at for uuid, at, marked, _ in self.world.marks if uuid == plan.uuid and marked and at >= plan.expires]
        marked_at = min(marks, default=plan.expires)
        return [in_plan for at, _, in_plan in shown if at <= marked_at][-1:] != [plan.uuid]

    def _to_send(self, plan: Plan) -> set[License]:
        learners = {each for each in self.world.licenses.values() if each.plan == plan and was_a_learners(each)}
        if self.scope.force:
            sent = {uuid for uuid, run, _ in self.world.confirmations if run == self.scope.run_id}
            return {license for license in learners if license.uuid not in sent}
        return {license for license in learners if not self._was_downgraded(license)}

    def _only_held_left(self, plan: Plan) -> bool:
        return bool(self._pending[plan]) and all(self.is_held(license) for license in self._pending[plan])

    def _was_downgraded(self, license: License) -> bool:
        """What was confirmed before the expiration date, as that stands, was for an earlier one."""
        told = [at for uuid, _, at in self.world.confirmations if uuid == license.uuid]
        told += [at for uuid, name, at in self.world.events if (uuid, name) == (license.uuid, DOWNGRADED_EVENT)]
        return any(at >= license.plan.expires for at in told)

    def _unlinkable(self) -> set[License]:
        held = [license for license in self.world.licenses.values() if self.is_held(license)]
        return {it for it in self._left() if it.mailbox and not self.is_of_one_who_has(it, held)}

    def without_email(self) -> set[License]:
        return {license for license in self._left() if not license.mailbox}

    def plans_waiting(self) -> Iterator[Row]:
        for plan in self.world.plans.values():
            expired = plan.expires <= self.scope.as_of and not self.is_marked(plan) and self._is_asked_for(plan)
            if expired and not self._chain_ended(plan):
                renewal = self.world.renewals.get(plan.uuid)
                since = renewal.effective if renewal and self._is_stale(renewal) else None
                yield plan.uuid, plan.expires, plan.customer, since

    def _left(self) -> set[License]:
        """Those of learners whose time has come and who were not unlinked since."""
        return {
            license
            for license in self.world.licenses.values()
            if license.plan.customer in self.scope.unlink_enabled
            and self._is_asked_for(license.plan)
            and self.scope.as_of - license.plan.expires > self.scope.unlink_after
            and license.status in ("assigned", "activated")
            and not license.renewed
            and not self._was_unlinked(license)
        }

    def _was_unlinked(self, license: License) -> bool:
        """Since its plan expired, and since this learner has it."""
        told = [at for uuid, name, at in self.world.events if (uuid, name) == (license.uuid, UNLINKED_EVENT)]
        return any(at >= license.plan.expires and (not license.assigned or at >= license.assigned) for at in told)


def was_a_learners(license: License) -> bool:
    """Who had it when the plan expired; that it was revoked since, the LMS was not told."""
    revoked_since = license.status == "revoked" and license.revoked and license.revoked >= license.plan.expires
    return license.status in ("assigned", "activated") or bool(revoked_since)


COLUMNS = (
    license_manager_tables.License.uuid,
    license_manager_tables.SubscriptionPlan.uuid,
    license_manager_tables.CustomerAgreement.enterprise_customer_uuid,
)


def _of_licenses(question: Callable[..., sql.Rows], **more: Any) -> Callable[[Scope], sql.Rows]:
    return lambda scope: question(scope, *COLUMNS, **more)


# Each is built once for each shape of a scope, as the product does it: building takes longer than asking.
QUESTIONS: dict[str, Callable[[Scope], sql.Rows]] = {
    "due_plans": plans.due_plans,
    "done_plans": plans.done_plans,
    "waiting_plans": downgrades.waiting_plans,
    "plans_waiting": plans.plans_waiting_for_renewal,
    "due_downgrades": _of_licenses(downgrades.due_downgrades),
    "waiting_downgrades": _of_licenses(downgrades.waiting_downgrades),
    "due_unlinks": _of_licenses(unlinks.due_unlinks),
    "rehearsed_unlinks": _of_licenses(unlinks.due_unlinks, downgraded=False),
    "protected": _of_licenses(unlinks.protected),
}


def answers_of(connection: Connection, scope: Scope, *names: str) -> Answers:
    """Put these questions, or every one, to the queries; the answers as sorted rows, repeats and all."""
    answers, session = {}, Session(connection)
    for name in names or (*QUESTIONS, "due_enterprises"):
        if name == "due_enterprises":  # not one query
            answers[name] = [(customer,) for customer in enterprises.find_due_enterprises(session, scope)]
        else:
            answers[name] = sorted((tuple(row) for row in fetch(session, QUESTIONS[name], scope)), key=str)
    return answers


def counts_of(engine: Engine, scope: Scope) -> Counter[tuple[UUID, str]]:
    """What `license-expiry due` counts, to hold against `Reading.counts`."""
    told = plan_rows(Database(engine), scope)
    names = [name for name, count in asdict(PlanRow("", "", "", "")).items() if count == 0]
    counts = {(UUID(row.plan_uuid), name): getattr(row, name) for row in told for name in names}
    return +Counter({key: count for key, count in counts.items() if key[1] not in ("nights_back", "waiting")})


def pages_of(connection: Connection, page: Page, limit: int) -> Iterator[list[Row]]:
    """Read pages by key as a step does, up to the first that is not full."""
    after, full, keys = None, True, set()
    while full:
        found = rows(connection, page(after))
        yield found
        full = len(found) == limit
        after = found[-1][0] if found else None
        assert after not in keys, "a page comes again"
        keys.add(after)


def rows(connection: Connection, query: sql.Rows) -> list[Row]:
    return [tuple(row) for row in connection.execute(query)]


def uuids(answer: Iterable[Row]) -> set[UUID]:
    return {row[0] for row in answer}
