"""Licenses the LMS refuses: held, tried again after 12 hours, released."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from worker.db.ledger_tables import HeldLicense, Run
from worker.db.sql import changed

# A held license is tried again next night: longer than a repeat by hand, shorter than any two nights are apart.
HOLD_FOR = timedelta(hours=12)


def hold(session: Session, run: Run, step: str, license_uuid: UUID, reason: str) -> None:
    """Put a license on the held list, or raise its number of tries."""
    values = {"run_id": run.id, "step": step, "reason": reason, "as_of": run.as_of}
    listed = update(HeldLicense).where(HeldLicense.license_uuid == license_uuid)
    if not changed(session, listed.values(tries=HeldLicense.tries + 1, **values)):
        values |= {"license_uuid": license_uuid, "enterprise_customer_uuid": run.enterprise_customer_uuid}
        session.execute(insert(HeldLicense).values(tries=1, first_held_at=run.as_of, **values))


def release(session: Session, licenses: Sequence[UUID]) -> None:
    """Take licenses off the held list: the LMS took them at last."""
    if licenses:
        session.execute(delete(HeldLicense).where(HeldLicense.license_uuid.in_(licenses)))


def drop_stale_holds(session: Session, run: Run) -> None:
    """Drop the holds that were due again and that this run, if it looked at all plans, did not find due any more."""
    if (run.plan_uuids, run.expired_after, run.expired_before) == (None, None, None):
        of_others = (HeldLicense.enterprise_customer_uuid == run.enterprise_customer_uuid, HeldLicense.run_id != run.id)
        session.execute(delete(HeldLicense).where(*of_others, HeldLicense.as_of <= run.as_of - HOLD_FOR))


def held_licenses(session: Session) -> Sequence[HeldLicense]:
    """Everything on the held list, by enterprise."""
    order = (HeldLicense.enterprise_customer_uuid, HeldLicense.step, HeldLicense.license_uuid)
    return session.scalars(select(HeldLicense).order_by(*order)).all()
