"""What is due, read a second time: plain Python, to hold worker/due/conditions.py against.

Written from DESIGN ("What is due") and the facts about license-manager, object by object, and not from the
selects. A `World` keeps rows as objects and lays them down in a database; a `Reading` of it answers every question
of what is due; `answers_of` and `pages_of` put the same questions to the queries themselves.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, partial
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, insert
from sqlalchemy.orm import Session

from simulator.data.rows import DAY, DOWNGRADED_EVENT, UNLINKED_EVENT, Agreement, Data, Status
from worker.db import ledger_tables, license_manager_tables, sql
from worker.due import downgrades, enterprises, plans as conditions_plans, unlinks
from worker.due.scope import Scope

Row = tuple[Any, ...]
Answers = dict[str, list[Row]]
Page = Callable[[UUID | None], sql.Rows]

HELD_FOR = timedelta(hours=12)
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
class License:
    uuid: UUID
    plan: Plan
    email: str | None
    lms_user_id: int | None
    status: Status
    renewed: bool

    @property
    def mailbox(self) -> str:
        """The LMS trims white space around an e-mail; case does not make another learner."""
        return (self.email or "").strip().lower()

    def is_same_learners(self, other: "License") -> bool:
        """Same e-mail, or same user; what is not known matches nothing."""
        by_email = self.mailbox != "" and self.mailbox == other.mailbox
        by_user = self.lms_user_id is not None and self.lms_user_id == other.lms_user_id
        return self.plan.customer == other.plan.customer and (by_email or by_user)


@dataclass
class World:
    """The rows of some customers, as objects; `lay_down` writes them, and those of the ledger, to the database."""

    data: Data
    as_of: datetime
    agreements: dict[UUID, Agreement] = field(default_factory=dict)
    plans: dict[UUID, Plan] = field(default_factory=dict)
    renewals: dict[UUID, UUID | None] = field(default_factory=dict)
    licenses: dict[UUID, License] = field(default_factory=dict)
    events: list[tuple[UUID, str, datetime]] = field(default_factory=list)
    confirmations: list[tuple[UUID, UUID, datetime]] = field(default_factory=list)
    holds: dict[UUID, tuple[UUID, datetime]] = field(default_factory=dict)
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

    def renew(self, prior: Plan, renewed: Plan | None = None) -> None:
        self.data.renewal(prior.uuid, renewed.uuid if renewed else None)
        self.renewals[prior.uuid] = renewed.uuid if renewed else None

    def license(
        self,
        plan: Plan,
        email: str | None = "ann@example.org",
        lms_user_id: int | None = None,
        status: Status = "activated",
        renewed: bool = False,
    ) -> License:
        """Add a license; a `renewed` one is carried on by one that is nobody's yet, in the same plan."""
        on = self.license(plan, None, None, "unassigned") if renewed else None
        uuid = self.data.license(plan.uuid, email, lms_user_id, status, on.uuid if on else None)
        self.licenses[uuid] = License(uuid, plan, email, lms_user_id, status, renewed)
        return self.licenses[uuid]

    def event(self, license: License, name: str, after: timedelta = DAY) -> None:
        """Add an event of a license, so long after its plan's expiration date."""
        self.data.event(license.uuid, name, license.plan.expires + after)
        self.events.append((license.uuid, name, license.plan.expires + after))

    def confirm(self, license: License, after: timedelta = DAY, run: UUID = OTHER_RUN) -> None:
        """Let the ledger have the downgrade confirmed, so long after the plan's expiration date."""
        self.confirmations.append((license.uuid, run, license.plan.expires + after))

    def hold(self, license: License, ago: timedelta = timedelta(), run: UUID = OTHER_RUN, step: str = "unlink") -> None:
        self.holds[license.uuid] = (run, self.as_of - ago)
        if step == "downgrade":
            self.undowngraded.add(license.uuid)

    def confirmation_rows(self) -> list[dict[str, Any]]:
        return [
            {"license_uuid": uuid, "run_id": run, "confirmed_at": at, "enterprise_customer_uuid": self._customer(uuid)}
            for uuid, run, at in self.confirmations
        ]

    def hold_rows(self) -> list[dict[str, Any]]:
        rest = {"reason": "refused", "tries": 1}
        return [
            {"license_uuid": uuid, "run_id": run, "as_of": at, "enterprise_customer_uuid": self._customer(uuid)}
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
        plans = {"due_plans": self.due_plans, "done_plans": self.done_plans, "waiting_plans": self.waiting_plans}
        licenses = {
            "due_downgrades": self.due_downgrades,
            "waiting_downgrades": self.waiting_downgrades,
            "due_unlinks": self.due_unlinks,
            "rehearsed_unlinks": self.rehearsed_unlinks,
            "protected": self.protected,
        }
        return (
            {name: sorted((plan.uuid, plan.expires, plan.customer) for plan in ask()) for name, ask in plans.items()}
            | {name: sorted((each.uuid, each.plan.uuid, each.plan.customer) for each in ask())
               for name, ask in licenses.items()}
            | {"due_enterprises": sorted((customer,) for customer in self.due_enterprises())}
        )  # fmt: skip

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
            if self.is_confirmed(license)
            and not any(held == license or held.is_same_learners(license) for held in kept)
        }

    def rehearsed_unlinks(self) -> set[License]:
        """Also those whose downgrade is still to come in the same run."""
        return {license for license in self._unlinkable() if not self.is_protected(license)}

    def protected(self) -> set[License]:
        return {license for license in self._unlinkable() if self.is_protected(license)}

    def due_enterprises(self) -> set[UUID]:
        plans = self.due_plans() | {license.plan for license in self.due_downgrades() | self.rehearsed_unlinks()}
        return {plan.customer for plan in plans}

    def is_ripe(self, plan: Plan) -> bool:
        """Expired, asked for, not processed, and nothing of its renewal chain is to come."""
        fresh = self.scope.force or not plan.processed
        return plan.expires <= self.scope.as_of and fresh and self._is_asked_for(plan) and self._chain_ended(plan)

    def is_confirmed(self, license: License) -> bool:
        return license.plan.processed or self._was_downgraded(license)

    def is_protected(self, license: License) -> bool:
        """By any license, of whatever status, of an active, current plan; it is current at its very last date too."""
        return any(
            other.is_same_learners(license)
            and other.plan.is_active
            and other.plan.starts <= self.scope.as_of <= other.plan.expires
            for other in self.world.licenses.values()
        )

    def is_held(self, license: License) -> bool:
        """Held by this very run, or in the last twelve hours; who forces it wants the older ones tried again."""
        run, held_at = self.world.holds.get(license.uuid, (None, None))
        if held_at is None:
            return False
        return run == self.scope.run_id or (not self.scope.force and self.scope.as_of - held_at < HELD_FOR)

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
        while plan.uuid in self.world.renewals:
            following = self.world.renewals[plan.uuid]
            if following is None or following in seen:
                return False
            seen.add(following)
            plan = self.world.plans[following]
        return plan.expires <= self.scope.as_of

    def _to_send(self, plan: Plan) -> set[License]:
        learners = {each for each in self.world.licenses.values() if each.plan == plan and _is_a_learners(each)}
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
        unlinked = {uuid for uuid, name, _ in self.world.events if name == UNLINKED_EVENT}
        kept = [license for license in self.world.licenses.values() if self.is_held(license)]
        return {
            license
            for license in self.world.licenses.values()
            if license.plan.customer in self.scope.unlink_enabled
            and self._is_asked_for(license.plan)
            and self.scope.as_of - license.plan.expires > self.scope.unlink_after
            and _is_a_learners(license)
            and not license.renewed
            and license.mailbox
            and license.uuid not in unlinked
            and not any(held == license or held.is_same_learners(license) for held in kept)
        }


def _is_a_learners(license: License) -> bool:
    return license.status in ("assigned", "activated")


LICENSE_QUERIES: dict[str, Callable[..., sql.Rows]] = {
    "due_downgrades": downgrades.due_downgrades,
    "waiting_downgrades": downgrades.waiting_downgrades,
    "due_unlinks": unlinks.due_unlinks,
    "rehearsed_unlinks": partial(unlinks.due_unlinks, downgraded=False),
    "protected": unlinks.protected,
}
QUERIES: dict[str, Callable[[Scope], sql.Rows]] = {
    "due_plans": conditions_plans.due_plans,
    "done_plans": conditions_plans.done_plans,
    "waiting_plans": downgrades.waiting_plans,
}
COLUMNS = (
    license_manager_tables.License.uuid,
    license_manager_tables.SubscriptionPlan.uuid,
    license_manager_tables.CustomerAgreement.enterprise_customer_uuid,
)


def answers_of(connection: Connection, scope: Scope, *names: str) -> Answers:
    """Put these questions, or every one, to the queries; the answers as sorted rows, repeats and all."""
    answers = {}
    for name in names or (*QUERIES, *LICENSE_QUERIES, "due_enterprises"):
        if name == "due_enterprises":  # not one query
            answers[name] = [(customer,) for customer in enterprises.find_due_enterprises(Session(connection), scope)]
        else:
            answers[name] = sorted(rows(connection, _query(name, scope)))
    return answers


@cache
def _query(name: str, scope: Scope) -> sql.Rows:
    """A query is a function of its scope; and building it takes SQLAlchemy far longer than asking it here."""
    return QUERIES[name](scope) if name in QUERIES else LICENSE_QUERIES[name](scope, *COLUMNS)


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
