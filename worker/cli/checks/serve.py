"""Checks a database account of serve's own: it only reads, and needs e-mail addresses for /metrics alone."""

from collections.abc import Iterator

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from worker.cli.checks import rights
from worker.cli.checks.findings import Finding
from worker.db.engine import address_of, cannot_be_used, make_engine
from worker.db.transactions import Database
from worker.errors import Unusable
from worker.settings import DatabaseSettings
from worker.web import history


def check_serve(settings: DatabaseSettings) -> Iterator[Finding]:
    """Check what serve reads. Raises LicenseExpiryError when it cannot be checked."""
    database = Database(make_engine(settings.DATABASE_URL))
    try:
        with database.engine.connect() as connection:
            yield Finding("database", "ok", f"{address_of(database.engine)} answers")
            found = [] if connection.dialect.name == "sqlite" else list(_rights(connection))
        yield from found
        if not any(finding.status == "wrong" for finding in found):
            database.require_schema()
            history.check_ledger(database)
            yield Finding("ledger", "ok", "its tables are those of this release")
    except DBAPIError as error:
        raise Unusable(*cannot_be_used(database.engine, error)) from error
    finally:
        database.engine.dispose()


def _rights(connection: Connection) -> Iterator[Finding]:
    account = rights.account(connection)
    missing = rights.missing_rights(connection, rights.OF_SERVE)
    for right in missing:
        yield rights.lacks(account, right, connection)
    if not missing:
        yield Finding("rights", "ok", f"{account} may read all that the pages show")
        if rights.may_read_emails(connection):
            what = "may read e-mail addresses: /metrics counts the work due by them"
        else:
            what = (
                "may not read e-mail addresses: /metrics has no license_expiry_due_… series, which are counted by them"
            )
        yield Finding("rights", "ok", f"{account} {what}")
    remedy = "give serve an account of its own that may only read, see docs/how-to/accounts.md"
    yield from rights.surplus(connection, "serve needs", remedy, rights.OF_SERVE)
