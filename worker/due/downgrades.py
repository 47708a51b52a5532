"""Which licenses are due to be downgraded: those of due plans, and single ones whose plan waits for its renewals."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import ColumnElement, bindparam

from worker.db.license_manager_tables import License, SubscriptionPlan as Plan
from worker.db.sql import Among, Rows
from worker.db.types import DjangoUUID
from worker.due import conditions, plans, unlinks
from worker.due.scope import Scope

Of: TypeAlias = Sequence[ColumnElement[bool]]


def due_downgrades(scope: Scope, *columns: Any, of: Of = ()) -> Rows:
    """Which licenses of due plans (those `of`) has the LMS not confirmed? (`columns` of License, Plan or Agreement)"""
    return conditions.licenses(*columns).where(*downgrade_rules(scope, of).values())


def downgrade_rules(scope: Scope, of: Of = ()) -> conditions.Rules:
    """Is the License at hand to be downgraded with its Plan, which is one of those `of`?"""
    return conditions.to_process(scope) | {  # of the plan once more: MariaDB would else look into every one
        "renewals": Among(License.subscription_plan_id, plans.plans_whose_chain_ended(scope, *of)),
        "status": conditions.was_a_learners(),
        "confirmed": ~conditions.sent(scope),
        "held": ~conditions.held(scope),
    }


def waiting_downgrades(scope: Scope, *columns: Any, of: Of = ()) -> Rows:
    """Which licenses are due to be unlinked while their plan waits, and are to be downgraded one by one first?"""
    return unlinks.unlinkable(scope, *columns).where(*_to_downgrade_alone(scope, *of))


def waiting_plans(scope: Scope) -> Rows:
    """Which unprocessed plans that are not due have licenses to be downgraded one by one? (as `plans.due_plans`)"""
    return waiting_downgrades(scope, *plans.COLUMNS).distinct()


def first_unconfirmed(scope: Scope) -> Rows:
    """Is there any candidate to be unlinked that the LMS has not confirmed? (one row, or none)"""
    return unlinks.unlink_candidates(scope).where(*_to_downgrade_alone(scope)).limit(1)


def downgrade_page(scope: Scope, plan: UUID, waiting: bool, limit: int, after: UUID | None) -> Rows:
    """Which licenses of one plan go into the next downgrade calls?

    (uuid, whether it is on the held list, the plan's expiration_date)
    """
    return conditions.first_after(_of_plan(scope, plan, waiting), limit, after)


def still_to_downgrade(scope: Scope, plan: UUID, waiting: bool, licenses: Sequence[UUID]) -> Rows:
    """Which of these licenses of one plan are still to be downgraded? (as `downgrade_page`)"""
    return conditions.among(_of_plan(scope, plan, waiting), licenses)


def _of_plan(scope: Scope, plan: UUID, waiting: bool) -> Rows:
    due = waiting_downgrades if waiting else due_downgrades
    of_plan = Plan.uuid == bindparam("plan", plan, DjangoUUID())  # or each plan's page would walk the chains of all
    return due(scope, License.uuid, conditions.on_held_list(), Plan.expiration_date, of=[of_plan]).where(of_plan)


def ignore_enrollments_modified_after(expiration_date: datetime, as_of: datetime) -> datetime | None:
    """The date of a downgrade call: the plan's expiration date when more than a day before `as_of`, else None."""
    return expiration_date if as_of - expiration_date > timedelta(days=1) else None


def _to_downgrade_alone(scope: Scope, *of: ColumnElement[bool]) -> list[ColumnElement[bool]]:
    return [~conditions.confirmed(scope), Plan.uuid.not_in(plans.plans_whose_chain_ended(scope, *of))]
