"""Alembic's entry: runs the ledger's migrations on the connection that `worker.migrations.upgrade` hands over."""

from alembic import context

from worker.models import Ledger

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Ledger.metadata,
    version_table="license_expiry_alembic_version",
)
with context.begin_transaction():
    context.run_migrations()
