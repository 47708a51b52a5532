"""Decides whether license-manager's mark on a plan, `expiration_processed`, is valid for a plan and a license.

license-manager never removes a mark: it stays when the plan's expiration date is extended, and when a license is moved
into the plan later. The history tables of plans and licenses show when either happened.
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
    """Condition: the Plan is marked as processed for its present expiration date.

    It is if the first marked row of its history is at or after that date, if we marked it at or after that date, or if
    its history has no marked row because it was pruned. Other marked rows do not count: each later save of a marked
    plan adds one. If in doubt, the plan counts as unmarked: a repeated downgrade is harmless, because the call's date
    protects enrollments upgraded since, but a missing downgrade is not.
    """
    first = sa.func.coalesce(_of_mark(sa.func.min(PlanHistory.history_date)).scalar_subquery(), Plan.expiration_date)
    ours = (PlanHistory.history_date >= Plan.expiration_date, PlanHistory.history_date == PlanHistory.modified)
    for_this_date = (first >= Plan.expiration_date) | any_of(_of_mark(sa.literal(1)).where(*ours))
    return Plan.expiration_processed.is_(True) & for_this_date


def marked_at() -> sa.ScalarSelect[Any]:
    """Select when the Plan was first marked at or after its present expiration date, by its history; or NULL."""
    since = _of_mark(sa.func.min(PlanHistory.history_date)).where(PlanHistory.history_date >= Plan.expiration_date)
    return since.scalar_subquery()


def came_after_mark() -> ColumnElement[bool]:
    """Condition: the License was moved into its marked Plan after the mark was made, so it was not downgraded.

    Its history shows its plan at that time: license-manager's transfer job adds a row. A license without history was
    in the plan all the time.
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
    """Select a column from the rows of the Plan's history in which it is marked."""
    of_plan = (PlanHistory.uuid == Digits(Plan.uuid), PlanHistory.expiration_processed.is_(True))
    return sa.select(column).where(*of_plan).correlate(License, Plan)
