"""A night in this process: rows laid down, runs carried through both steps, and what came of it."""

import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar
from uuid import UUID

import pytest
from sqlalchemy import Engine, inspect, select, text, update

from simulator.data.rows import DAY, Data
from simulator.data.schema import table
from simulator.data.showcase import MALFORMED_EMAIL
from simulator.lms.journal import Entry, Journal
from simulator.lms.server import Simulator
from support.services import ENGINES, KINDS, SERVERS
from worker.db.ledger_tables import HeldLicense, Lms, Run, Wait
from worker.db.sql import DatabaseNow
from worker.db.transactions import Database
from worker.deps import Deps
from worker.errors import LicenseExpiryError
from worker.ledger.order import STEPS, Step, row_of
from worker.ledger.runs import Opened, open_runs
from worker.ledger.stalled import QUEUED_SECONDS, release_stalled
from worker.lms.client import NOBODYS_EMAIL, NOBODYS_LICENSE
from worker.runs import attempt as attempting
from worker.runs.attempt import Outcome
from worker.runs.request import parse_request
from worker.runs.start import start_runs

# What does not depend on the kind of database is tried on the quickest one alone; by `make test-all`, on each.
EVERY_ENGINE = bool(os.environ.get("EVERY_ENGINE"))
ON_SQLITE = pytest.mark.parametrize("engine_kind", KINDS if EVERY_ENGINE else ["sqlite"], indirect=True)
# What depends on it, but not on the form of the UUIDs.
ON_EACH = pytest.mark.parametrize("engine_kind", ["sqlite", "postgresql", "mariadb", "mysql"], indirect=True)
ON_ALL = pytest.mark.parametrize("engine_kind", ENGINES, indirect=True)
ON_ALL_SERVERS = pytest.mark.parametrize("engine_kind", list(SERVERS), indirect=True)
ON_SERVERS = pytest.mark.parametrize("engine_kind", ["postgresql", "mariadb", "mysql"], indirect=True)

# No lease of these tests is longer, in seconds.
LONGEST = 8000
# No run of these tests waits more often.
MOST_WAITS = 10

Make = Callable[..., Deps]
Row = dict[str, Any]
T = TypeVar("T")

LICENSE_MANAGERS = (
    "customeragreement",
    "subscriptionplan",
    "subscriptionplanrenewal",
    "license",
    "licenseevent",
    "historicalsubscriptionplan",
)


# Laying rows


@dataclass(frozen=True)
class Laid:
    """An enterprise with one plan: their ids, and those of the plan's licenses in the database's order."""

    enterprise: UUID
    plan: UUID
    licenses: list[UUID]


def lay(lms: Simulator, licenses: int = 6, days: float = 100, seed: int = 1, **plan: Any) -> Laid:
    """Insert an enterprise with one plan that expired so many days ago, and let the LMS know it."""
    assert lms.lms.engine is not None
    data = Data(lms.lms.engine, seed)
    agreement = data.agreement()
    made = data.plan(agreement, expires=data.now - days * DAY, **plan)
    ids = {data.license(made) for _ in range(licenses)}
    ready(data, lms)
    license = table(lms.lms.engine, "license")
    with lms.lms.engine.connect() as connection:  # MariaDB has an order of its own for its native UUIDs
        in_order = [each for each in connection.scalars(select(license.c.uuid).order_by(license.c.uuid)) if each in ids]
    return Laid(agreement.enterprise_customer_uuid, made, in_order)


def ready(data: Data, lms: Simulator) -> None:
    """Insert the rows, and let the LMS know them."""
    data.flush()
    lms.seed()


def unlinking(*enterprises: UUID) -> dict[str, Any]:
    """The setting that has these enterprises' learners unlinked."""
    return {"CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED": ",".join(map(str, enterprises))}


def batches_of(size: int, parallel: int = 1) -> dict[str, Any]:
    """The settings for calls of so many licenses, and for so many of them at once."""
    return {
        "LICENSE_EXPIRATION_BATCH_SIZE": size,
        "BULK_UNLINK_BATCH_SIZE": size,
        "LMS_PARALLEL_REQUESTS": parallel,
    }


# Running


def night(deps: Deps, *enterprises: UUID, **request: Any) -> dict[UUID, Run]:
    """Open a run for each enterprise with work due and carry it through; give the runs as they ended."""
    started = start(deps, *enterprises, **request)
    return {each.enterprise: finish(deps, each.enterprise, each.run_id) for each in started}


def start(deps: Deps, *enterprises: UUID, **request: Any) -> list[Opened]:
    """Open a run for each enterprise with work due, and publish nothing."""
    return start_runs(deps, parse_request(**request), enterprises, lambda *_: None)


def open_one(deps: Deps, enterprise: UUID, **request: Any) -> UUID:
    """Open the run of one enterprise that has work due; give its id."""
    [started] = start(deps, enterprise, **request)
    assert started.new
    return started.run_id


def opened_run(database: Database, enterprise: UUID, as_of: datetime, **request: Any) -> Opened:
    """Open a run of one enterprise, whether it has work due or not."""
    [opened] = open_runs(database, [enterprise], as_of, **request)
    return opened


def step_of(name: str) -> Step:
    """The step of this name."""
    return STEPS[row_of(name)]


def finish(deps: Deps, enterprise: UUID, run_id: UUID) -> Run:
    """Do both steps as a chain of tasks does: an error ends the chain, and the ledger has it."""
    waits = 0
    for step in STEPS:
        more = True
        while more:
            try:
                outcome = attempt(deps, enterprise, run_id, step)
            except LicenseExpiryError:
                return run_of(deps.database, run_id)
            more = outcome.more or outcome.retry is not None
            if outcome.retry:
                waits += 1
                assert waits <= MOST_WAITS, outcome.retry
                let_waits_pass(deps.database)
    return run_of(deps.database, run_id)


def let_waits_pass(database: Database) -> None:
    """Let the moment come at which an outage is probed next."""
    now = update(Wait).where(Wait.again_at.is_not(None)).values(again_at=DatabaseNow(-1))
    database.transact(lambda session: session.execute(now))


def attempt(deps: Deps, enterprise: UUID, run_id: UUID, step: Step, owner: str = "a test") -> Outcome:
    """Make one attempt at one step."""
    return attempting.attempt(deps, run_id, enterprise, step, owner)


def run_of(database: Database, run_id: UUID) -> Run:
    """The run as the ledger has it now."""
    run = database.transact(lambda session: session.get(Run, run_id))
    assert run is not None
    return run


def counts(run: Run) -> dict[str, int]:
    """The five counts of a run, under short names."""
    return {
        "plans": run.plans_processed,
        "downgraded": run.licenses_downgraded,
        "held": run.licenses_held,
        "unlinked": run.learners_unlinked,
        "protected": run.learners_protected,
    }


def together(count: int, work: Callable[[int], T]) -> list[T | LicenseExpiryError]:
    """Call `work` in so many threads that set out at the same moment; give what each returned or raised."""
    barrier = threading.Barrier(count)

    def one(number: int) -> T | LicenseExpiryError:
        barrier.wait(30)
        try:
            return work(number)
        except LicenseExpiryError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def lapse(engine: Engine, run_id: UUID) -> None:
    """Put the end of a run's lease into the past, as if whoever has it had been silent for too long."""
    past = {"queued_at": DatabaseNow(-1 - QUEUED_SECONDS), "lease_until": DatabaseNow(-1)}
    with engine.begin() as connection:
        connection.execute(update(Run).where(Run.id == run_id).values(past))


def take_over(deps: Deps, run_id: UUID) -> None:
    """Let a run be taken from whoever has it, as `reconcile` does when its lease has lapsed."""
    lapse(deps.database.engine, run_id)
    again, given_up = release_stalled(deps.database, LONGEST, 0)
    assert ([run.id for run in again], given_up) == ([run_id], [])


def age_holds(engine: Engine, by: timedelta = timedelta(hours=13)) -> None:
    """Let what is held have been held so much earlier: by default, long enough to be tried again."""
    for row in rows(engine, HeldLicense):
        this = HeldLicense.license_uuid == row["license_uuid"]
        with engine.begin() as connection:
            connection.execute(update(HeldLicense).where(this).values(as_of=row["as_of"] - by))


@contextmanager
def lost_commit_answer(engine: Engine) -> Iterator[list[str]]:
    """Let the next commit go through and its answer get lost, once; give what was lost, to be asserted."""
    dialect = engine.dialect
    commit = dialect.do_commit
    lost: list[str] = []

    def do_commit(connection: Any) -> None:
        commit(connection)
        if not lost:
            lost.append("the answer to a commit")
            raise dialect.loaded_dbapi.OperationalError("the connection broke after the commit")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialect, "do_commit", do_commit)
        yield lost


# What came of it, in the database


def rows(engine: Engine, of: str | type[Any]) -> list[Row]:
    """All rows of a table of license-manager's (by name) or of the ledger's (by model), in a steady order."""
    wanted = table(engine, of) if isinstance(of, str) else of.__table__
    with engine.connect() as connection:
        return sorted((dict(row._mapping) for row in connection.execute(select(wanted))), key=repr)


def raw(engine: Engine, question: str) -> list[tuple[Any, ...]]:
    """The answer to a question in SQL, as the driver gives it."""
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(question))]


def snapshot(engine: Engine) -> dict[str, list[str]]:
    """Every table with all of its rows, as the driver gives them; but for the LMS's address, of the first run."""
    return {
        name: [] if name == Lms.__tablename__ else sorted(map(repr, raw(engine, f"SELECT * FROM {name}")))
        for name in inspect(engine).get_table_names()
    }


def processed(engine: Engine) -> set[UUID]:
    """The plans that are marked as processed."""
    return {row["uuid"] for row in rows(engine, "subscriptionplan") if row["expiration_processed"]}


def events(engine: Engine, name: str) -> Counter[UUID]:
    """How many events of this name each license has."""
    return Counter(row["license_id"] for row in rows(engine, "licenseevent") if row["event_name"] == name)


def held(engine: Engine) -> dict[UUID, str]:
    """The licenses on the held list, each with its reason."""
    return {row["license_uuid"]: row["reason"] for row in rows(engine, HeldLicense)}


def emails(engine: Engine, *licenses: UUID) -> list[str]:
    """The e-mails of licenses, in their order."""
    of = {row["uuid"]: row["user_email"] for row in rows(engine, "license")}
    return [of[license] for license in licenses]


def scan(texts: Mapping[str, str], engine: Engine) -> list[str]:
    """The places among these, and in the ledger's tables, where an e-mail address of the test's data stands."""
    ledgers = [name for name in inspect(engine).get_table_names() if name.startswith("license_expiry")]
    places = {**texts, **{name: str(raw(engine, f"SELECT * FROM {name}")) for name in ledgers}}
    address = re.compile(r"[\w.+-]+@[\w-]+\.example|" + re.escape(MALFORMED_EMAIL))
    return [name for name, content in places.items() if address.search(content)]


# What came of it, at the LMS


def sent(lms: Simulator, kind: Literal["downgrade", "unlink"], status: int | None = None) -> list[list[str]]:
    """The licenses, or the e-mails, of each call (of those that were answered so), but for probes."""
    found = [_names(entry) for entry in lms.calls(kind) if status in (None, entry.status)]
    return [names for names in found if names not in ([str(NOBODYS_LICENSE)], [NOBODYS_EMAIL])]


def times_sent(lms: Simulator, kind: Literal["downgrade", "unlink"], status: int | None = None) -> Counter[str]:
    """How often each license, or each e-mail, was sent."""
    return Counter(name for names in sent(lms, kind, status) for name in names)


def texts(ids: Iterable[UUID]) -> list[str]:
    """UUIDs as the LMS is sent them."""
    return [str(each) for each in ids]


def assert_order(journal: Journal) -> None:
    """For each enterprise every downgrade call had ended before the first unlink call began."""
    for enterprise in {each for entry in journal.entries for each in entry.enterprises}:
        unlinks = [entry.start for entry in journal.calls("unlink", enterprise)]
        for entry in journal.calls("downgrade", enterprise) if unlinks else []:
            assert entry.end is not None, f"{enterprise}: an unlink was sent while a downgrade was in flight"
            assert entry.end < min(unlinks), f"{enterprise}: a downgrade ended after an unlink had begun"


def _names(entry: Entry) -> list[str]:
    return list(map(str, entry.licenses if entry.kind == "downgrade" else entry.emails))
