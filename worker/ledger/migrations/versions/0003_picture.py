"""Add the times of steps, and the tables of retries, LMS calls and beat's heartbeat."""

import sqlalchemy as sa
from alembic import op

from worker.db.sql import DatabaseNow
from worker.db.types import UTCDateTime
from worker.ledger.migrations import UTF8, license_uuid_type

revision = "0003"
down_revision = "0002"

INDEXED = ("as_of", "scheduled_for")
TIMES = ("scheduled_for", "downgrade_began_at", "downgraded_at", "unlink_began_at")


def upgrade() -> None:
    uuid, moment = license_uuid_type(op.get_bind()), UTCDateTime()
    for name in TIMES:
        op.add_column("license_expiry_run", sa.Column(name, moment))
    for name in INDEXED:
        op.create_index(f"license_expiry_run_{name}", "license_expiry_run", [name])
    op.create_table(
        "license_expiry_retry",
        sa.Column("run_id", uuid, primary_key=True),
        sa.Column("fence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("step", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("again_at", moment, nullable=False),
        **UTF8,
    )
    op.create_table(
        "license_expiry_lms_call",
        sa.Column("run_id", uuid, primary_key=True),
        sa.Column("fence", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("step", sa.String(16), primary_key=True),
        sa.Column("outcome", sa.String(32), primary_key=True),
        sa.Column("le", sa.String(8), primary_key=True),
        sa.Column("calls", sa.Integer, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        **UTF8,
    )
    heartbeat = op.create_table(
        "license_expiry_heartbeat",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("reconciled_at", moment, nullable=False),
    )
    op.execute(heartbeat.insert().values(id=1, reconciled_at=DatabaseNow()))  # keeps a new ledger from firing alerts


def downgrade() -> None:
    for table in ("heartbeat", "lms_call", "retry"):
        op.drop_table(f"license_expiry_{table}")
    for name in INDEXED:
        op.drop_index(f"license_expiry_run_{name}", "license_expiry_run")
    for name in TIMES:
        op.drop_column("license_expiry_run", name)
