"""Alembic's entry point: runs the ledger's migrations on the connection that `migrations.upgrade` passes in."""

from alembic import context

from worker.db.ledger_tables import Ledger
from worker.ledger.migrations import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Ledger.metadata, version_table=VERSION_TABLE
)
with context.begin_transaction():
    context.run_migrations()
