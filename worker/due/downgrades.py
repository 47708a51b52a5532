"""Finds the licenses due to be downgraded: those of due plans, and single ones whose plan waits for its renewals."""

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
    """Select the licenses of due plans whose downgrade the LMS has not confirmed.

    `columns` are of License, Plan or Agreement; `of` are conditions that narrow the plans.
    """
    return conditions.licenses(*columns).where(*downgrade_rules(scope, of).values())


def downgrade_rules(scope: Scope, of: Of = ()) -> conditions.Rules:
    """Conditions: the License is due to be downgraded with its Plan. `of` narrows the plans."""
    return conditions.to_process(scope) | {  # repeats the plan's conditions: without them MariaDB scans every plan
        "renewals": Among(License.subscription_plan_id, plans.plans_whose_chain_ended(scope, *of)),
        "status": conditions.was_a_learners(),
        "confirmed": ~conditions.sent(scope),
        "held": ~conditions.held(scope),
    }


def waiting_downgrades(scope: Scope, *columns: Any, of: Of = ()) -> Rows:
    """Select the licenses due to be unlinked while their plan waits: they are downgraded one by one first."""
    return unlinks.unlinkable(scope, *columns).where(*_to_downgrade_alone(scope, *of))


def waiting_plans(scope: Scope) -> Rows:
    """Select the waiting plans that have licenses to downgrade one by one. Columns as in `plans.due_plans`."""
    return waiting_downgrades(scope, *plans.COLUMNS).distinct()


def first_unconfirmed(scope: Scope) -> Rows:
    """Select one row if any candidate for unlinking still lacks a confirmed downgrade, else none."""
    return unlinks.unlink_candidates(scope).where(*_to_downgrade_alone(scope)).limit(1)


def downgrade_page(scope: Scope, plan: UUID, waiting: bool, limit: int, after: UUID | None) -> Rows:
    """Select the licenses of one plan for the next downgrade calls: at most `limit`, after the license `after`.

    Rows are (uuid, whether it is on the held list, the plan's expiration_date).
    """
    return conditions.first_after(_of_plan(scope, plan, waiting), limit, after)


def still_to_downgrade(scope: Scope, plan: UUID, waiting: bool, licenses: Sequence[UUID]) -> Rows:
    """Select those of these licenses of one plan that still need a downgrade. Rows as in `downgrade_page`."""
    return conditions.among(_of_plan(scope, plan, waiting), licenses)


def _of_plan(scope: Scope, plan: UUID, waiting: bool) -> Rows:
    due = waiting_downgrades if waiting else due_downgrades
    of_plan = Plan.uuid == bindparam("plan", plan, DjangoUUID())  # else each page walks the renewal chains of all plans
    return due(scope, License.uuid, conditions.on_held_list(), Plan.expiration_date, of=[of_plan]).where(of_plan)


def ignore_enrollments_modified_after(expiration_date: datetime, as_of: datetime) -> datetime | None:
    """Return the call's argument of this name: the expiration date if over a day before `as_of`, else None (UTC)."""
    return expiration_date if as_of - expiration_date > timedelta(days=1) else None


def _to_downgrade_alone(scope: Scope, *of: ColumnElement[bool]) -> list[ColumnElement[bool]]:
    return [~conditions.confirmed(scope), Plan.uuid.not_in(plans.plans_whose_chain_ended(scope, *of))]
