"""Licenses the LMS refuses: held, tried again after 12 hours, released.

A hold goes only when the LMS has taken the license, when the license or its plan is gone, or when the plan is no longer
expired. It never goes because a query does not find the license due any more: license-manager may have purged or
revoked it, and its learner was not downgraded all the same.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from worker.db.ledger_tables import HeldLicense, Run
from worker.db.license_manager_tables import License, SubscriptionPlan
from worker.db.sql import DatabaseNow, any_of, changed

# A held license is tried again next night: longer than a repeat by hand, shorter than any two nights are apart.
HOLD_FOR = timedelta(hours=12)


def hold(session: Session, run: Run, step: str, license_uuid: UUID, reason: str) -> None:
    """Put a license on the held list, or raise its number of tries; it is held for the run's enterprise from now on."""
    values = {"run_id": run.id, "step": step, "reason": reason, "as_of": run.as_of}
    values |= {"enterprise_customer_uuid": run.enterprise_customer_uuid}  # its agreement may have moved
    listed = update(HeldLicense).where(HeldLicense.license_uuid == license_uuid)
    if not changed(session, listed.values(tries=HeldLicense.tries + 1, **values)):
        values |= {"license_uuid": license_uuid}
        session.execute(insert(HeldLicense).values(tries=1, first_held_at=run.as_of, **values))


def release(session: Session, licenses: Sequence[UUID]) -> None:
    """Take licenses off the held list: the LMS took them at last."""
    if licenses:
        session.execute(delete(HeldLicense).where(HeldLicense.license_uuid.in_(licenses)))


def drop_stale_holds(session: Session, enterprise: UUID) -> None:
    """Drop the enterprise's holds of licenses that are gone, with their plan or without, or whose plan was extended.

    By the database's clock, so that any run of the enterprise may do it.
    """
    expired = (
        select(License.uuid)
        .join(SubscriptionPlan, SubscriptionPlan.uuid == License.subscription_plan_id)
        .where(License.uuid == HeldLicense.license_uuid, SubscriptionPlan.expiration_date <= DatabaseNow())
    )
    session.execute(delete(HeldLicense).where(HeldLicense.enterprise_customer_uuid == enterprise, ~any_of(expired)))


def held_licenses(session: Session) -> Sequence[HeldLicense]:
    """Everything on the held list, by enterprise."""
    order = (HeldLicense.enterprise_customer_uuid, HeldLicense.step, HeldLicense.license_uuid)
    return session.scalars(select(HeldLicense).order_by(*order)).all()
