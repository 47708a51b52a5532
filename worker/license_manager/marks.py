"""What license-manager's mark on a plan, `expiration_processed`, attests, and what it does not.

license-manager never takes a mark back: it stays when a plan's expiration date is moved on, and when a license is moved
into the plan later. The histories of plans and licenses tell when each of these happened.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement

from worker.db.license_manager_tables import (
    HistoricalLicense,
    HistoricalSubscriptionPlan as PlanHistory,
    License,
    SubscriptionPlan as Plan,
)
from worker.db.sql import Digits, any_of


def marked() -> ColumnElement[bool]:
    """Is the Plan at hand marked as processed, and that for its present expiration date?

    Its history shows the mark for the first time at or after that date; or our own mark since then; or the mark at no
    time, because it was pruned. Other rows since then do not count: once a plan is marked, whoever saves it adds one.
    To downgrade once more than needed is harmless, for the call's date protects what was upgraded since; not to is not.
    """
    first = sa.func.coalesce(_of_mark(sa.func.min(PlanHistory.history_date)).scalar_subquery(), Plan.expiration_date)
    ours = (PlanHistory.history_date >= Plan.expiration_date, PlanHistory.history_date == PlanHistory.modified)
    for_this_date = (first >= Plan.expiration_date) | any_of(_of_mark(sa.literal(1)).where(*ours))
    return Plan.expiration_processed.is_(True) & for_this_date


def marked_at() -> sa.ScalarSelect[Any]:
    """When the Plan at hand was first marked since its present expiration date, as its history shows it; or NULL."""
    since = _of_mark(sa.func.min(PlanHistory.history_date)).where(PlanHistory.history_date >= Plan.expiration_date)
    return since.scalar_subquery()


def came_after_mark() -> ColumnElement[bool]:
    """Did the License at hand come into its Plan, which is marked, only after the mark was made?

    So that nobody has downgraded it. Its history tells in which plan it was then: license-manager's transfer job adds a
    row to it. One without a history was there all the time.
    """
    of_license = HistoricalLicense.uuid == Digits(License.uuid)
    known = sa.select(sa.literal(1)).where(of_license).correlate(License, Plan)
    plan_then = (
        sa.select(Digits(HistoricalLicense.subscription_plan_id))
        .where(of_license, HistoricalLicense.history_date <= sa.func.coalesce(marked_at(), Plan.expiration_date))
        .order_by(HistoricalLicense.history_date.desc(), HistoricalLicense.history_id.desc())
        .limit(1)
        .correlate(License, Plan)
        .scalar_subquery()
    )
    was_there = sa.case((plan_then == Digits(Plan.uuid), 1), else_=0) == 1  # never NULL
    return any_of(known) & ~was_there


def _of_mark(column: Any) -> sa.Select[Any]:
    """A column of the rows of the Plan's history that show it marked."""
    of_plan = (PlanHistory.uuid == Digits(Plan.uuid), PlanHistory.expiration_processed.is_(True))
    return sa.select(column).where(*of_plan).correlate(License, Plan)
