"""Counts what a night would do, plan by plan: for the command `due` and the metrics."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any
from uuid import UUID

from sqlalchemy import func, literal, select

from worker.db.license_manager_tables import License, SubscriptionPlan as Plan
from worker.db.sql import Rows
from worker.db.transactions import Database
from worker.due import conditions, plans
from worker.due.fates import Progress, count_fates
from worker.due.scope import Scope

COUNTS = ("downgrades", "unlinks", "protected")


@dataclass
class PlanRow:
    """The number of a plan's licenses that a night would downgrade, unlink or leave alone.

    `state` is `due` (to be processed), `waiting` (for its renewals), `held` (only held licenses are left), `processed`
    or `undated` (its expiration date cannot be read and is empty here; no night touches the plan).
    `nights_back` is how many days ago its work became due. `unlinks` assumes that every downgrade is confirmed.
    A learner protected by both columns is counted in both `protected_by_` numbers and once in `protected`.
    No night can unlink the learners of licenses `without_email`, or process a plan whose renewal has been overdue
    since the date `waiting_since`.
    """

    enterprise_customer_uuid: str
    plan_uuid: str
    expiration_date: str
    state: str
    nights_back: int = 0
    downgrades: int = 0
    unlinks: int = 0
    protected: int = 0
    protected_by_user_email: int = 0
    protected_by_lms_user_id: int = 0
    waiting: int = 0
    without_email: int = 0
    waiting_since: str | None = None

    @property
    def work(self) -> bool:
        """True if a night would do anything for this plan."""
        return self.state == "due" or self.downgrades > 0 or self.unlinks > 0


def plan_rows(
    database: Database, scope: Scope, *, detailed: bool = True, progress: Progress = lambda _done, _of: None
) -> list[PlanRow]:
    """Count what is due under this scope; sorted by enterprise, then by expiration date, oldest first.

    With `detailed`, the waiting licenses are counted too. `progress` is passed to `count_fates`.
    """
    rows: dict[UUID, PlanRow] = {}
    for name, found in _counted(database, scope, detailed, progress):
        for customer, plan, expired, processed, count, *more in found:
            state = "processed" if processed else "held"
            row = rows.setdefault(plan, PlanRow(str(customer), str(plan), expired.isoformat(), state))
            if name in ("due", "waiting"):
                row.state = name
            if more and more[0]:
                row.waiting_since = more[0].isoformat()
            if name != "due":
                setattr(row, name, getattr(row, name) + count)
            if name in ("due", "downgrades", "unlinks"):
                since = expired if row.state == "due" else expired + scope.unlink_after
                row.nights_back = (scope.as_of - since).days
    undated = plans.plans_without_date(scope)
    for plan, customer in database.transact(lambda session: session.execute(undated).all()):
        rows[plan] = PlanRow(str(customer), str(plan), "", "undated")
    return sorted(rows.values(), key=lambda row: (row.enterprise_customer_uuid, row.expiration_date))


def due_rows(plans: Sequence[PlanRow]) -> list[dict[str, Any]]:
    """Sum up sorted plan rows into one row per enterprise; enterprises without work are left out, they get no run."""
    rows = []
    for customer, group in groupby(plans, lambda plan: plan.enterprise_customer_uuid):
        of_customer = list(group)
        if any(plan.work for plan in of_customer):
            sums = {name: sum(getattr(plan, name) for plan in of_customer) for name in COUNTS}
            due = sum(plan.state == "due" for plan in of_customer)
            rows.append({"enterprise_customer_uuid": customer, "plans": due, **sums})
    return rows


def _counted(
    database: Database, scope: Scope, detailed: bool, progress: Progress
) -> Iterator[tuple[str, Iterable[Any]]]:
    """Yield (name of a count, rows of (customer, plan, expiration date, processed, count[, waiting since]))."""

    def ask(query: Rows) -> Sequence[Any]:
        return database.transact(lambda session: session.execute(query).all())

    due = ask(_due(scope))
    yield "due", due
    yield "downgrades", [row for row in due if row[-1]]
    for plan, name, count in count_fates(database, scope, progress):
        yield name, [(plan.customer, plan.uuid, plan.expired, plan.processed, count)]
    yield "waiting", ask(_waiting(scope, detailed))


def _due(scope: Scope) -> Rows:
    count = plans.workable(scope).with_only_columns(func.count()).scalar_subquery()
    due = plans.due_plans(scope).add_columns(count.label("count")).subquery().c
    return select(due.enterprise_customer_uuid, due.uuid, due.expiration_date, literal(False), due.count)


def _waiting(scope: Scope, counted: bool) -> Rows:
    waits = plans.plans_waiting_for_renewal(scope).subquery().c
    of_plan = select(func.count()).select_from(License).join(Plan, Plan.uuid == License.subscription_plan_id)
    theirs = of_plan.where(License.subscription_plan_id == waits.uuid, conditions.was_a_learners())
    count = theirs.scalar_subquery() if counted else literal(0)
    return select(
        waits.enterprise_customer_uuid, waits.uuid, waits.expiration_date, literal(False), count, waits.waiting_since
    )
