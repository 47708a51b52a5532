"""Create the table of scheduled nights, so that a missed night is found and run late, once."""

import sqlalchemy as sa
from alembic import op

from worker.db.types import UTCDateTime

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "license_expiry_night",
        sa.Column("scheduled_for", UTCDateTime(), primary_key=True),
        sa.Column("opened_at", UTCDateTime(), nullable=False),
        sa.Column("lease_until", UTCDateTime()),
        sa.Column("tries", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("license_expiry_night")
