"""Add message numbers, tries, waits and stops to runs, and the tables of common waits and of the ledger's id."""

from typing import Any
from uuid import uuid4

import sqlalchemy as sa
from alembic import op

from worker.db.types import DjangoUUID, UTCDateTime
from worker.ledger.migrations import UTF8, license_uuid_type

revision = "0005"
down_revision = "0004"

RUN, RETRY = "license_expiry_run", "license_expiry_retry"
COLUMNS: dict[str, Any] = {
    "message_number": sa.Integer(),
    "queued_at": UTCDateTime(),
    "tries": sa.Integer(),
    "tries_left": sa.Integer(),
    "gives_up_at": UTCDateTime(),
    "waits_for": sa.String(64),
    "confirmed_at": UTCDateTime(),
    "stopped_by": sa.String(255),
    "stop_reason": sa.String(255),
}


def upgrade() -> None:
    uuid, moment = license_uuid_type(op.get_bind()), UTCDateTime()
    for name, kind in COLUMNS.items():
        op.add_column(RUN, sa.Column(name, kind))
    op.execute(f"UPDATE {RUN} SET message_number = 1, tries = 0, queued_at = opened_at")  # noqa: S608
    op.add_column(RETRY, sa.Column("times", sa.Integer))
    op.execute(f"UPDATE {RETRY} SET times = 1")  # noqa: S608
    op.create_table(
        "license_expiry_wait",
        sa.Column("kind", sa.String(16), primary_key=True),
        sa.Column("since", moment, nullable=False),
        sa.Column("reason", sa.String(255), nullable=False),
        sa.Column("error", sa.String(500)),
        sa.Column("set_by", sa.String(255)),
        sa.Column("again_at", moment),
        sa.Column("tries", sa.Integer, nullable=False),
        **UTF8,
    )
    op.create_table(
        "license_expiry_ledger",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("uuid", uuid, nullable=False),
    )
    ledger = sa.table("license_expiry_ledger", sa.column("id"), sa.column("uuid", DjangoUUID()))
    op.execute(ledger.insert().values(id=1, uuid=uuid4()))


def downgrade() -> None:
    op.drop_table("license_expiry_ledger")
    op.drop_table("license_expiry_wait")
    op.drop_column(RETRY, "times")
    for name in COLUMNS:
        op.drop_column(RUN, name)
