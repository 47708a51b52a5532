"""Licenses the LMS refuses: held, tried again after 12 hours, released.

A hold is deleted only if the LMS has accepted the license, the license or its plan was deleted, or the plan is no
longer expired. A license that no query finds due any more stays held: license-manager may have purged or revoked it,
and its learner still has not been downgraded.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from worker.db.ledger_tables import HeldLicense, Run
from worker.db.license_manager_tables import License, SubscriptionPlan
from worker.db.sql import DatabaseNow, any_of, changed

# A held license is tried again next night. Long enough that a run repeated by hand skips it, shorter than a day.
HOLD_FOR = timedelta(hours=12)


def hold(session: Session, run: Run, step: str, license_uuid: UUID, reason: str) -> None:
    """Put a license on the held list, or count one more try. `step` and `reason` are the ledger's names and codes."""
    values = {"run_id": run.id, "step": step, "reason": reason, "as_of": run.as_of}
    values |= {"enterprise_customer_uuid": run.enterprise_customer_uuid}  # the license may have moved between customers
    listed = update(HeldLicense).where(HeldLicense.license_uuid == license_uuid)
    if not changed(session, listed.values(tries=HeldLicense.tries + 1, **values)):
        values |= {"license_uuid": license_uuid}
        session.execute(insert(HeldLicense).values(tries=1, first_held_at=run.as_of, **values))


def release(session: Session, licenses: Sequence[UUID]) -> None:
    """Take licenses that the LMS has accepted off the held list."""
    if licenses:
        session.execute(delete(HeldLicense).where(HeldLicense.license_uuid.in_(licenses)))


def drop_stale_holds(session: Session, enterprise: UUID) -> None:
    """Delete the enterprise's holds whose license or plan was deleted, or whose plan is not expired any more.

    Compares with the database's clock, not a run's `as_of`, so that any run of the enterprise may do it.
    """
    expired = (
        select(License.uuid)
        .join(SubscriptionPlan, SubscriptionPlan.uuid == License.subscription_plan_id)
        .where(License.uuid == HeldLicense.license_uuid, SubscriptionPlan.expiration_date <= DatabaseNow())
    )
    session.execute(delete(HeldLicense).where(HeldLicense.enterprise_customer_uuid == enterprise, ~any_of(expired)))


def held_licenses(session: Session) -> Sequence[HeldLicense]:
    """Return the whole held list, sorted by enterprise, step and license."""
    order = (HeldLicense.enterprise_customer_uuid, HeldLicense.step, HeldLicense.license_uuid)
    return session.scalars(select(HeldLicense).order_by(*order)).all()
