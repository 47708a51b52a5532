"""Identifies the ledger: its id, which messages carry, and the LMS that its database belongs to.

Two installations may share one broker, so a message must name its ledger. A worker configured for another LMS, such
as staging's, must not work on this database.
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
    """Return the id of this database's ledger, None if its table is empty. Raises as `transact` does."""
    return database.transact(lambda session: session.scalar(select(Identity.uuid)))


def ledger_at(url: str) -> UUID | None:
    """Return `ledger_id` of the database at this URL; closes its connection."""
    engine = make_engine(url)
    try:
        return ledger_id(Database(engine))
    finally:
        engine.dispose()


def lms_of(database: Database) -> str | None:
    """Return the URL of the LMS that this database belongs to; None before the first run."""
    return database.transact(lambda session: session.scalar(select(Lms.url)))


def set_lms(database: Database, url: str) -> None:
    """Record that this database belongs to the LMS at this URL, in place of any other."""

    def work(session: Session) -> None:
        if not changed(session, update(Lms).values(url=url)) and session.scalar(select(Lms.url)) is None:
            session.execute(_first(url))

    database.transact(work)


def check_lms(database: Database, url: str, *, first: bool) -> None:
    """Raise Unusable if this database belongs to another LMS than the one at `url`.

    If it belongs to none yet and `first` is true, records that it belongs to this LMS.
    """
    known = lms_of(database)
    if known is None and first:
        with suppress(IntegrityError):  # another was the first
            database.transact(lambda session: session.execute(_first(url)))
        known = lms_of(database)
    if known is not None and (error := of_another_lms(known, url)):
        raise error


def of_another_lms(known: str, url: str) -> Unusable | None:
    """Return the error for a database that belongs to the LMS `known` and not to `url`; None if they are the same."""
    if known.lower() == url.lower():
        return None
    what = f"the database belongs to the LMS {known}, but LMS_URL is {url}: nothing is sent or recorded"
    moved = f"license-expiry init-db --lms-url {url}"
    return Unusable(what, f"correct LMS_URL or DATABASE_URL; if the LMS has moved, run {moved}")


def _first(url: str) -> Insert:
    return insert(Lms).values(id=1, url=url)
