"""Checks that the database accepts our connection and our writes; used when a worker starts and by `doctor`."""

import re
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, insert
from sqlalchemy.exc import DBAPIError, IntegrityError

from worker.db.engine import address_of, cannot_be_used, cause_of
from worker.db.ledger_tables import Night
from worker.db.sql import DatabaseNow
from worker.db.transactions import cannot_be_seen
from worker.errors import Away, Unusable

# Errors for a wrong account or database. MySQL and MariaDB have numbers for them; PostgreSQL sends no SQLSTATE to a
# client that is not connected yet, so its text is matched.
_NOT_THIS_ACCOUNT, _NOT_THIS_DATABASE = {1045, 1130, 1698}, {1044, 1049}
_WORDS = re.compile(
    r"(authentication failed|role .* does not exist|no pg_hba.conf entry|no password supplied|not permitted to log in)"
    r"|(database .* does not exist|permission denied for database|unable to open database file)"
)
_ACCOUNT = "correct the user and the password in DATABASE_URL, or let this account connect from this host"
_DATABASE = "correct the database's name in DATABASE_URL, or grant its account access to it"
_WRITES = "set DATABASE_URL to a server that accepts writes, not a replica; see docs/reference/database.md"
_NEVER = {"scheduled_for": datetime(1970, 1, 1, tzinfo=UTC), "opened_at": DatabaseNow(), "tries": 0}


def check_answers(engine: Engine) -> None:
    """Connect once. Raises Unusable if the server refuses the account or writes, Away if it does not answer."""
    try:
        with engine.connect() as connection:
            check_writes(connection)
    except DBAPIError as error:
        what, remedy = cannot_be_used(engine, error)
        code, words = next(iter(getattr(error.orig, "args", ())), None), _WORDS.search(str(error.orig))
        if code in _NOT_THIS_ACCOUNT or (words and words[1]):
            raise Unusable(what, _ACCOUNT) from error
        if code in _NOT_THIS_DATABASE or words:
            raise Unusable(what, _DATABASE) from error
        raise Away(what, remedy) from error
    finally:
        engine.dispose()


def check_writes(connection: Connection) -> None:
    """Insert a row into the ledger, and roll back. Raises Unusable if the server refuses all writes.

    Raises DBAPIError if the connection is lost. Ignores a missing ledger or privilege, which `require_schema` and
    `doctor` report.
    """
    try:
        connection.execute(insert(Night).values(_NEVER))
    except IntegrityError:
        return  # the row exists, so the server accepts writes
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        if not cannot_be_seen(error):
            what = f"the database {address_of(connection.engine)} accepts no writes ({cause_of(error)})"
            raise Unusable(what, _WRITES) from error
    finally:
        connection.rollback()
