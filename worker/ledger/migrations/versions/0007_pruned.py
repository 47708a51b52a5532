"""Create the table of the sums of pruned runs, so that pruning decreases no counter of /metrics."""

import sqlalchemy as sa
from alembic import op

from worker.ledger.migrations import UTF8

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "license_expiry_pruned",
        sa.Column("series", sa.String(128), primary_key=True),
        sa.Column("value", sa.Double, nullable=False),
        **UTF8,
    )


def downgrade() -> None:
    op.drop_table("license_expiry_pruned")
