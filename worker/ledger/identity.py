"""The id of this ledger, which messages carry: two installations may have one broker."""

from uuid import UUID

from sqlalchemy import select

from worker.db.engine import make_engine
from worker.db.ledger_tables import Identity
from worker.db.transactions import Database


def ledger_id(database: Database) -> UUID | None:
    """The id of the ledger in this database; None if somebody has emptied its table. Raises as `transact` does."""
    return database.transact(lambda session: session.scalar(select(Identity.uuid)))


def ledger_at(url: str) -> UUID | None:
    """As `ledger_id`, of the database that this URL leads to; keeps no connection."""
    engine = make_engine(url)
    try:
        return ledger_id(Database(engine))
    finally:
        engine.dispose()
