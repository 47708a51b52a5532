"""Who is the same learner: whoever has the same e-mail address or the same LMS user id, at the same customer."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, case, or_, select, tuple_
from sqlalchemy.orm import aliased

from worker.db.license_manager_tables import License, SubscriptionPlan as Plan
from worker.db.sql import Fingerprint, Mailbox

KNOWN_BY = ("user_email", "lms_user_id")  # either of these makes two licenses the same learner's


def learner_among(other: Any, which: ColumnElement[bool], known_by: Sequence[str] = KNOWN_BY) -> ColumnElement[bool]:
    """Is the learner of the License and Plan at hand that of an `other` license, an alias, of the same customer?

    It compares with sets that do not depend on the license at hand, so that they are read once and not once for each
    license. The OFFSET, and a CASE that hides them, keep databases from doing otherwise. A NULL matches nothing.
    """
    plan = aliased(Plan)

    def among(name: str, key: Callable[[Any], Any]) -> ColumnElement[bool]:
        mine, theirs = getattr(License, name), getattr(other, name)
        those = select(plan.customer_agreement_id, key(theirs).label("learner"))
        those = those.join_from(other, plan, plan.uuid == other.subscription_plan_id).where(theirs.is_not(None), which)
        customer_and_learner = tuple_(Plan.customer_agreement_id, key(mine))
        return and_(mine.is_not(None), customer_and_learner.in_(select(those.offset(0).subquery())))

    keys: dict[str, Callable[[Any], Any]] = {
        "user_email": lambda column: Fingerprint(Mailbox(column)),
        "lms_user_id": lambda column: column,
    }
    either = or_(*(among(name, keys[name]) for name in known_by))
    return case((either, 1), else_=0) == 1  # never NULL: for a NOT IN that might be, SQLite reads the set every time
