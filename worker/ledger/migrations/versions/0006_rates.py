"""Add a second throttle row, for the unlink calls: the LMS throttles downgrade and unlink calls separately."""

import datetime

import sqlalchemy as sa
from alembic import op

from worker.db.types import UTCDateTime

revision = "0006"
down_revision = "0005"

THROTTLE = sa.table("license_expiry_throttle", sa.column("id"), sa.column("next_call_at", UTCDateTime()))


def upgrade() -> None:
    moment = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
    op.execute(THROTTLE.insert().values(id=2, next_call_at=moment))


def downgrade() -> None:
    op.execute(THROTTLE.delete().where(THROTTLE.c.id == 2))
