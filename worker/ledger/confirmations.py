"""Records the downgrades that the LMS confirmed, until their plan is marked as processed."""

from collections.abc import Sequence
from typing import cast
from uuid import UUID

from sqlalchemy import Table, bindparam, delete, insert, select
from sqlalchemy.orm import Session

from worker.db.ledger_tables import Downgrade, Run
from worker.db.license_manager_tables import License, SubscriptionPlan
from worker.db.sql import any_of, of_licenses
from worker.license_manager.marks import marked

_COLUMNS = ("run_id", "enterprise_customer_uuid", "confirmed_at")
_CONFIRM = insert(cast(Table, Downgrade.__table__)).from_select(
    ["license_uuid", *_COLUMNS],
    of_licenses(*(bindparam(name, None, Downgrade.__table__.c[name].type) for name in _COLUMNS)),
)


def confirm_downgrades(session: Session, run: Run, licenses: Sequence[UUID]) -> None:
    """Record that the LMS confirmed these licenses' downgrades, so that no run sends them again."""
    row = {"run_id": run.id, "enterprise_customer_uuid": run.enterprise_customer_uuid, "confirmed_at": run.as_of}
    session.execute(_CONFIRM, row | {"licenses": licenses})


def drop_confirmations(session: Session, enterprise: UUID) -> None:
    """Delete the enterprise's confirmations whose plan is marked as processed: the mark replaces them."""
    processed = (
        select(License.uuid)
        .join(SubscriptionPlan, SubscriptionPlan.uuid == License.subscription_plan_id)
        .where(marked(), License.uuid == Downgrade.license_uuid)
    )
    session.execute(delete(Downgrade).where(Downgrade.enterprise_customer_uuid == enterprise, any_of(processed)))
