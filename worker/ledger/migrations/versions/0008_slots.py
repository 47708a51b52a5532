"""Add `slots` to runs: they limit the LMS calls that all workers together have in flight."""

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
