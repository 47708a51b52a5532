"""Add `triggered_at` beside `as_of`, `night_after`, `triggered_by` and `approve_unlinks`, and the table of the LMS."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from worker.db.types import UTCDateTime
from worker.ledger.migrations import UTF8

revision = "0004"
down_revision = "0003"

RUN = "license_expiry_run"
COLUMNS: dict[str, Any] = {
    "triggered_at": UTCDateTime(),
    "night_after": UTCDateTime(),
    "triggered_by": sa.String(255),
    "approve_unlinks": sa.Integer(),
}
INDEXED = ("triggered_at", "night_after")


def upgrade() -> None:
    for name, kind in COLUMNS.items():
        op.add_column(RUN, sa.Column(name, kind))
    op.execute(f"UPDATE {RUN} SET triggered_at = as_of")  # noqa: S608, a constant name
    for name in INDEXED:
        op.create_index(f"{RUN}_{name}", RUN, [name])
    op.drop_index(f"{RUN}_as_of", RUN)
    op.create_table(
        "license_expiry_lms",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("url", sa.String(255), nullable=False),
        **UTF8,
    )


def downgrade() -> None:
    op.drop_table("license_expiry_lms")
    op.create_index(f"{RUN}_as_of", RUN, ["as_of"])
    for name in INDEXED:
        op.drop_index(f"{RUN}_{name}", RUN)
    for name in COLUMNS:
        op.drop_column(RUN, name)
