"""The database as our pages in Flower read it: opened when it is first needed, so that Flower starts without it."""

import time
from functools import cache
from threading import Thread
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from worker.db.engine import make_engine
from worker.db.license_manager_tables import CustomerAgreement as Agreement
from worker.db.transactions import Database
from worker.errors import LicenseExpiryError
from worker.logs import get_logger
from worker.settings import DatabaseSettings
from worker.settings.sources import load

NAMES_SECONDS = 60
UNKNOWN_SECONDS = 5

log = get_logger(__name__)


@cache
def opened() -> tuple[DatabaseSettings, Database]:
    """The settings and the database of this process. Raises Unusable, Unavailable; the next call tries again."""
    settings = load(DatabaseSettings)
    database = Database(make_engine(settings.DATABASE_URL))
    database.require_schema()
    return settings, database


def customers(session: Session) -> dict[UUID, str]:
    """The names of all enterprise customers that have an agreement, in their order; "" of one without a name."""
    found = session.execute(select(Agreement.enterprise_customer_uuid, Agreement.enterprise_customer_name))
    named = {customer: name or "" for customer, name in found}
    return dict(sorted(named.items(), key=lambda one: (one[1].casefold(), one[0])))


class Names:
    """The customers' names for Flower's own pages, whose event loop must not wait for a database.

    They are read in a thread, again when one is needed and NAMES_SECONDS have passed, or, if it is not known,
    UNKNOWN_SECONDS.
    """

    def __init__(self) -> None:
        self._known: dict[UUID, str] = {}
        self._asked_at = -float("inf")

    def of(self, customer: UUID) -> str:
        """The name as it was last read; the UUID when there is none, or none is known yet."""
        if time.monotonic() - self._asked_at > (NAMES_SECONDS if customer in self._known else UNKNOWN_SECONDS):
            self.read()
        return self._known.get(customer) or str(customer)

    def read(self) -> None:
        """Start reading them; returns at once."""
        self._asked_at = time.monotonic()
        Thread(target=self._read, name="names", daemon=True).start()

    def _read(self) -> None:
        try:
            self._known = opened()[1].transact(customers)
        except LicenseExpiryError as error:
            log.warning("enterprise names cannot be read: Flower shows UUIDs", error=str(error))
