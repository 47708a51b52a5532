"""LMS calls in flight are limited over all workers: each run has the slots that its worker holds."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

INDEX = "license_expiry_run_slots"


def upgrade() -> None:
    op.add_column("license_expiry_run", sa.Column("slots", sa.Integer(), nullable=True))
    op.create_index(INDEX, "license_expiry_run", ["slots"])


def downgrade() -> None:
    op.drop_index(INDEX, "license_expiry_run")
    op.drop_column("license_expiry_run", "slots")
