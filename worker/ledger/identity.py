"""Whose ledger this is: its id, which messages carry, and the LMS that its database belongs to.

Two installations may have one broker; and a worker of another LMS, staging's say, is to do nothing here.
"""

from contextlib import suppress
from uuid import UUID

from sqlalchemy import Insert, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from worker.db.engine import make_engine
from worker.db.ledger_tables import Identity, Lms
from worker.db.sql import changed
from worker.db.transactions import Database
from worker.errors import Unusable


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


def lms_of(database: Database) -> str | None:
    """The address of the LMS that this database belongs to; None before the first run."""
    return database.transact(lambda session: session.scalar(select(Lms.url)))


def set_lms(database: Database, url: str) -> None:
    """Let this database belong to the LMS at this address from now on."""

    def work(session: Session) -> None:
        if not changed(session, update(Lms).values(url=url)) and session.scalar(select(Lms.url)) is None:
            session.execute(_first(url))

    database.transact(work)


def check_lms(database: Database, url: str, *, first: bool) -> None:
    """Raise Unusable if this database belongs to another LMS than the one at `url`.

    The `first` run of a database that belongs to none yet gives it to that LMS.
    """
    known = lms_of(database)
    if known is None and first:
        with suppress(IntegrityError):  # another was the first
            database.transact(lambda session: session.execute(_first(url)))
        known = lms_of(database)
    if known is not None and (error := of_another_lms(known, url)):
        raise error


def of_another_lms(known: str, url: str) -> Unusable | None:
    """The error that the LMS at `url` is not the one that the database is known to belong to, if so."""
    if known.lower() == url.lower():
        return None
    what = f"the database belongs to the LMS {known}, and LMS_URL is {url}: nothing is sent and nothing recorded"
    moved = f"license-expiry init-db --lms-url {url}"
    return Unusable(what, f"correct LMS_URL or DATABASE_URL; if the LMS has moved: {moved}")


def _first(url: str) -> Insert:
    return insert(Lms).values(id=1, url=url)
