"""Whether the database lets us in and takes what we write: looked at as a worker starts, and by `doctor`."""

import re
from datetime import UTC, datetime

from sqlalchemy import Connection, Engine, insert
from sqlalchemy.exc import DBAPIError, IntegrityError

from worker.db.engine import address_of, cannot_be_used, cause_of
from worker.db.ledger_tables import Night
from worker.db.sql import DatabaseNow
from worker.db.transactions import cannot_be_seen
from worker.errors import Away, Unusable

# How a server says that this account or this database will not do. MySQL and MariaDB have numbers for it; PostgreSQL
# tells a client that is not yet connected no SQLSTATE.
_NOT_THIS_ACCOUNT, _NOT_THIS_DATABASE = {1045, 1130, 1698}, {1044, 1049}
_WORDS = re.compile(
    r"(authentication failed|role .* does not exist|no pg_hba.conf entry|no password supplied|not permitted to log in)"
    r"|(database .* does not exist|permission denied for database|unable to open database file)"
)
_ACCOUNT = "correct the user and the password in DATABASE_URL, or let this account in from this host"
_DATABASE = "correct the database's name in DATABASE_URL, or give its account access to it"
_WRITES = "let DATABASE_URL lead to a server that takes writes, and not to a replica; see docs/reference/database.md"
_NEVER = {"scheduled_for": datetime(1970, 1, 1, tzinfo=UTC), "opened_at": DatabaseNow(), "tries": 0}


def check_answers(engine: Engine) -> None:
    """Connect once. Raises Unusable when the server refuses us or takes no writes, Away when it does not answer."""
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
    """Write a row of the ledger, and take it back. Raises Unusable when the server refuses any write.

    Raises DBAPIError when it is away. Nothing is said where there is no ledger, or this account may not write it.
    """
    try:
        connection.execute(insert(Night).values(_NEVER))
    except IntegrityError:
        return  # it is written
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        if not cannot_be_seen(error):
            what = f"the database {address_of(connection.engine)} takes no writes ({cause_of(error)})"
            raise Unusable(what, _WRITES) from error
    finally:
        connection.rollback()
