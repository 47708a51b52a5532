"""Alembic's entry: runs the ledger's migrations on the connection that `worker.migrations.upgrade` hands over."""

from alembic import context

from worker.migrations import VERSION_TABLE
from worker.models import Ledger

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Ledger.metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
