"""The data of a chaos night, the same for the same seed, and the night that nothing disturbs to hold others against."""

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import Engine, delete, make_url
from support.runs import night
from support.services import database_on

from chaos.enterprises import CASES, Enterprise
from chaos.snapshot import Snapshot, take_snapshot
from simulator.data.rows import ORDER, Data
from simulator.data.schema import create_tables, table
from simulator.lms.server import Simulator
from simulator.lms.state import Enrollment, EnrollmentFault
from worker.db.engine import make_engine
from worker.db.ledger_tables import Ledger
from worker.db.transactions import Database
from worker.deps import make_deps
from worker.due import enterprises
from worker.due.scope import Scope
from worker.ledger import migrations
from worker.ledger.order import Phase
from worker.lms.patience import Patience
from worker.settings import Settings

__all__ = ["BATCHES", "LaidData", "Snapshot", "due", "take_snapshot", "undisturbed"]

NAMESPACE = UUID("c4a05000-0000-4000-8000-11ce45e00000")
BATCH_SIZE = 5
PARALLEL = 2
BATCHES = {
    "LICENSE_EXPIRATION_BATCH_SIZE": str(BATCH_SIZE),
    "BULK_UNLINK_BATCH_SIZE": str(BATCH_SIZE),
    "LMS_PARALLEL_REQUESTS": str(PARALLEL),
}
# Whatever the environment says: the driver shortens these for its workers.
UNHURRIED = {
    "LEASE_SECONDS": 300,
    "TASK_TIME_LIMIT_SECONDS": 3000,
    "VISIBILITY_TIMEOUT_SECONDS": 4200,
    "BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS": 120,
    "BULK_UNLINK_REQUEST_TIMEOUT_SECONDS": 120,
}
UNLINK_AFTER = timedelta(days=90)
# Not of one night: who leads the nights, when the next call may go out.
KEPT = ("license_expiry_night", "license_expiry_throttle")


class LaidData:
    """The enterprises of a chaos night: every rule of what is due, and learners whom the LMS refuses for good.

    The same seed gives the same UUIDs and sizes; dates are counted from the moment of laying. `processed` are the
    plans, and `unlinked` the licenses, that are done before the night begins.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.by_name = {case.name: uuid5(NAMESPACE, f"{seed} {case.name}") for case in CASES}
        self.enterprises = list(self.by_name.values())
        self.listed = frozenset(self.by_name[case.name] for case in CASES if case.unlinks)
        self.due = frozenset(self.by_name[case.name] for case in CASES if case.due)
        self.laid_at: datetime | None = None
        self.processed: set[UUID] = set()
        self.unlinked: set[UUID] = set()
        self.planted: dict[UUID, tuple[UUID, EnrollmentFault]] = {}
        self.two_accounts: set[str] = set()

    def settings(self) -> dict[str, str]:
        """The setting that has the learners unlinked of those enterprises that are on the list."""
        return {"CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED": ",".join(map(str, sorted(self.listed)))}

    def lay(self, engine: Engine) -> None:
        """Insert everything into tables that are empty."""
        self.laid_at = datetime.now(UTC)
        data = Data(engine, self.seed, self.laid_at)
        sizes = random.Random(self.seed)
        for case in CASES:
            slug = case.name.replace(" ", "-")
            agreement = data.agreement(self.by_name[case.name], name=case.name.title(), slug=slug)
            site = Enterprise(data, agreement, sizes)
            case.lay(site)
            self.processed |= site.processed
            self.unlinked |= site.unlinked
            self.two_accounts |= site.two_accounts
            enterprise = agreement.enterprise_customer_uuid
            self.planted |= {license: (enterprise, fault) for license, fault in site.planted.items()}
        data.flush()

    def restore(self, engine: Engine, lms: Simulator) -> None:
        """Bring the database and the LMS to where they were before the first night, dates counted from now.

        No worker may be at work; what the LMS still has in hand is let go and waited for, or it would change the
        new state.
        """
        lms.faults()
        lms.throttle(0, 0)
        lms.release()
        lms.wait_for(lambda: lms.journal.in_flight == 0)
        empty(engine)
        self.lay(engine)
        lms.seed(engine)
        for license, (enterprise, fault) in self.planted.items():
            lms.state.add_license(license, enterprise, [Enrollment(fault=fault), Enrollment()])
        lms.state.two_accounts |= self.two_accounts
        lms.journal.clear()


def empty(engine: Engine) -> None:
    """Delete all rows of license-manager's tables and of the ledger's, but for those that are not of one night."""
    license = table(engine, "license")
    with engine.begin() as connection:
        connection.execute(license.update().where(license.c.renewed_to_id.is_not(None)).values(renewed_to_id=None))
        for name in reversed(ORDER):
            connection.execute(table(engine, name).delete())
        for each in reversed(Ledger.metadata.sorted_tables):
            if each.name not in KEPT:
                connection.execute(delete(each))


def due(laid_data: LaidData, engine: Engine) -> int:
    """How many enterprises are due now by our queries."""
    database = Database(engine)
    scope = Scope(database.now(), UNLINK_AFTER, laid_data.listed)
    return len(database.transact(lambda session: enterprises.find_due_enterprises(session, scope)))


def undisturbed(laid_data: LaidData, url: str) -> Snapshot:
    """What a whole night comes to that nothing disturbs, in a database of its own on the server of this one."""
    own = LaidData(laid_data.seed)
    with _beside(url) as beside:
        engine = make_engine(beside)
        try:
            create_tables(engine)
            migrations.upgrade(engine)
            with Simulator(engine) as lms:
                own.restore(engine, lms)
                run_night(own, beside, lms)
                return take_snapshot(engine, lms)
        finally:
            engine.dispose()


def run_night(laid_data: LaidData, url: str, lms: Simulator) -> None:
    """Carry every enterprise that is due through a night, in this process, one after the other."""
    given: dict[str, Any] = {
        "DATABASE_URL": url,
        "LMS_URL": lms.url,
        "BACKEND_SERVICE_EDX_OAUTH2_KEY": lms.client_id,
        "BACKEND_SERVICE_EDX_OAUTH2_SECRET": lms.client_secret,
    }
    deps = make_deps(
        Settings(**(given | UNHURRIED | BATCHES | laid_data.settings())),
        Patience(first_wait=0.01, in_place=1.0),
    )
    try:
        runs = night(deps)
    finally:
        deps.close()
    assert {enterprise: run.phase for enterprise, run in runs.items()} == dict.fromkeys(laid_data.due, Phase.FINISHED)


@contextmanager
def _beside(url: str) -> Iterator[str]:
    if make_url(url).get_backend_name() == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/undisturbed.sqlite3"
        return
    with database_on(url) as made:
        yield made
