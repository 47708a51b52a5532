"""Checks that the LMS accepts the calls of a night. The test calls affect no learner."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from uuid import UUID

from sqlalchemy.exc import SQLAlchemyError

from worker.cli.checks.findings import Finding, explained
from worker.db.engine import make_engine
from worker.db.transactions import Database
from worker.errors import LicenseExpiryError
from worker.ledger.identity import lms_of, of_another_lms
from worker.lms.client import LmsClient
from worker.runs.request import unknown_enterprises
from worker.settings import Settings

# No account of a platform has it: ids are counted from 1.
NO_USER = 0
NOT_TRIED = "the unlink call is not tried"


def check_calls(client: LmsClient, settings: Settings) -> Iterator[Finding]:
    """Send the downgrade and the unlink call that concern nobody, and query linked learners; one finding each."""
    yield from _told("the downgrade call", _downgrades(client))
    listed = settings.CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED
    if not listed:
        yield Finding("LMS", "ok", f"{NOT_TRIED}: no enterprise is on the unlink list")
        return
    try:
        enterprise = _first_known(settings, listed)
    except (LicenseExpiryError, SQLAlchemyError):
        remedy = "fix the database first, as said above"
        yield Finding("LMS", "warning", f"{NOT_TRIED}: license-manager's enterprises cannot be read", remedy)
        return
    if enterprise is None:
        remedy = "check CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"
        yield Finding("LMS", "warning", f"{NOT_TRIED}: license-manager knows no enterprise of the unlink list", remedy)
        return
    yield from _told("the unlink call", _unlinks(client, enterprise))
    yield from _told("the question who is linked", _addresses(client, enterprise))


def check_owner(settings: Settings) -> Iterator[Finding]:
    """Find out whether the database belongs to this LMS; nothing is found where it cannot be read."""
    try:
        with _database(settings) as database:
            known = lms_of(database)
    except (LicenseExpiryError, SQLAlchemyError):  # reported with the database
        return
    if known is None:
        yield Finding("LMS", "ok", f"the database belongs to no LMS yet: the first run gives it to {settings.LMS_URL}")
    elif error := of_another_lms(known, settings.LMS_URL):
        yield Finding("LMS", "wrong", error.what, error.remedy)
    else:
        yield Finding("LMS", "ok", f"the database belongs to {known}")


def _told(call: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """The findings of a call, with its name where it fails: several may fail alike."""
    for each in explained("LMS", findings):
        yield replace(each, what=f"{call}: {each.what}") if each.status == "wrong" else each


def _downgrades(client: LmsClient) -> Iterator[Finding]:
    client.check_downgrades(_any_time)
    yield Finding("LMS", "ok", "it takes a downgrade call that concerns nobody")


def _unlinks(client: LmsClient, enterprise: UUID) -> Iterator[Finding]:
    client.check_unlinks(enterprise, _any_time)
    yield Finding("LMS", "ok", f"it takes an unlink call of enterprise {enterprise} that concerns nobody")


def _addresses(client: LmsClient, enterprise: UUID) -> Iterator[Finding]:
    if client.linked_learners(enterprise, [NO_USER], _any_time) is not None:
        yield Finding("LMS", "ok", "it returns the e-mail addresses of linked learners")
        return
    what = (
        "it does not return the e-mail addresses of linked learners: addresses are not checked, and a learner who "
        "changed theirs on the platform stays linked"
    )
    remedy = 'give license-manager\'s service user "is staff" in the LMS, and have enterprise-learner take user_ids'
    yield Finding("LMS", "warning", what, remedy)


def _first_known(settings: Settings, listed: frozenset[UUID]) -> UUID | None:
    with _database(settings) as database:
        return min(listed - unknown_enterprises(settings, database).keys(), default=None)


@contextmanager
def _database(settings: Settings) -> Iterator[Database]:
    database = Database(make_engine(settings.DATABASE_URL))
    try:
        yield database
    finally:
        database.engine.dispose()


def _any_time() -> float:
    """The guard of a call that belongs to no run."""
    return inf
