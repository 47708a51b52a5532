"""Create the ledger's tables: runs, confirmed downgrades, held licenses, the throttle."""

import datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

from worker.db.types import UTCDateTime
from worker.ledger.migrations import UTF8, license_uuid_type

revision = "0001"
down_revision = None

COUNTS = ("plans_processed", "licenses_downgraded", "licenses_held", "learners_unlinked", "learners_protected")


def upgrade() -> None:
    uuid = license_uuid_type(op.get_bind())
    _create_run(uuid, UTCDateTime())
    _create_the_rest(uuid, UTCDateTime())


def _create_run(uuid: sa.types.TypeEngine[Any], moment: UTCDateTime) -> None:
    op.create_table(
        "license_expiry_run",
        sa.Column("id", uuid, primary_key=True),
        sa.Column("enterprise_customer_uuid", uuid, nullable=False),
        sa.Column("live", uuid, unique=True),
        sa.Column("phase", sa.String(16), nullable=False),
        sa.Column("as_of", moment, nullable=False),
        sa.Column("dry_run", sa.Boolean, nullable=False),
        sa.Column("force", sa.Boolean, nullable=False),
        sa.Column("reason", sa.String(255)),
        sa.Column("plan_uuids", sa.JSON),
        sa.Column("expired_after", moment),
        sa.Column("expired_before", moment),
        sa.Column("owner", sa.String(255)),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("lease_until", moment),
        sa.Column("publications", sa.Integer, nullable=False),
        sa.Column("retries", sa.Integer, nullable=False),
        sa.Column("recorded", sa.Integer, nullable=False),
        *(sa.Column(name, sa.Integer, nullable=False) for name in COUNTS),
        sa.Column("error", sa.String(500)),
        sa.Column("opened_at", moment, nullable=False),
        sa.Column("ended_at", moment),
        **UTF8,
    )
    op.create_index("license_expiry_run_enterprise", "license_expiry_run", ["enterprise_customer_uuid", "opened_at"])
    op.create_index("license_expiry_run_opened", "license_expiry_run", ["opened_at"])


def _create_the_rest(uuid: sa.types.TypeEngine[Any], moment: UTCDateTime) -> None:
    op.create_table(
        "license_expiry_downgrade",
        sa.Column("license_uuid", uuid, primary_key=True),
        sa.Column("run_id", uuid, primary_key=True),
        sa.Column("enterprise_customer_uuid", uuid, nullable=False, index=True),
        sa.Column("confirmed_at", moment, nullable=False),
    )
    op.create_table(
        "license_expiry_held",
        sa.Column("license_uuid", uuid, primary_key=True),
        sa.Column("enterprise_customer_uuid", uuid, nullable=False, index=True),
        sa.Column("run_id", uuid, nullable=False),
        sa.Column("step", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(64), nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("first_held_at", moment, nullable=False),
        sa.Column("as_of", moment, nullable=False),
        **UTF8,
    )
    throttle = op.create_table(
        "license_expiry_throttle",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("next_call_at", moment, nullable=False),
    )
    op.bulk_insert(throttle, [{"id": 1, "next_call_at": datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)}])


def downgrade() -> None:
    for table in ("throttle", "held", "downgrade", "run"):
        op.drop_table(f"license_expiry_{table}")
