"""Reads enterprises over time: one enterprise with its runs, and all enterprises in the last nights as a grid."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from worker.db.ledger_tables import HeldLicense, Night, Retry, Run
from worker.db.transactions import Database
from worker.due.enterprises import name_of, names_of
from worker.errors import BadArgument
from worker.ledger import order
from worker.ledger.runs import newest_runs
from worker.web.history import read_now, read_once, retries_by_run
from worker.web.matters import Failed, failed_enterprises
from worker.web.runs import held_licenses

MOST_RUNS = 60
GRID_NIGHTS = 14


@dataclass(frozen=True)
class OneEnterprise:
    """An enterprise with its newest runs (newest first), their retries, and its held licenses."""

    now: datetime
    enterprise: UUID
    name: str
    runs: Sequence[Run]
    retries: dict[UUID, list[Retry]]
    held: Sequence[HeldLicense]


@dataclass(frozen=True)
class Row:
    """An enterprise in the grid: its run of each night, and its failure if its newest ended run failed."""

    enterprise: UUID
    name: str
    runs: dict[datetime, Any]
    failed: Failed | None

    @property
    def failures(self) -> int:
        """The number of nights in which it failed."""
        return sum(run.phase in order.WENT_WRONG for run in self.runs.values())

    @property
    def troubles(self) -> int:
        """The number of nights in which it failed, was stopped or held licenses. Successful retries do not count."""
        return sum(bool(run.phase in _TROUBLED or run.licenses_held) for run in self.runs.values())


_TROUBLED = (*order.WENT_WRONG, order.Phase.STOPPED)


@dataclass(frozen=True)
class Grid:
    """The last nights, newest first, and a row for each enterprise that ever had a run."""

    now: datetime
    nights: Sequence[datetime]
    rows: Sequence[Row] = field(repr=False)


def one_enterprise(database: Database, enterprise: UUID) -> OneEnterprise:
    """Read an enterprise's newest runs and held licenses.

    Raises BadArgument if neither the ledger nor license-manager knows it, Unavailable, Unusable.
    """

    def work(session: Session) -> OneEnterprise:
        name = name_of(session, enterprise)
        runs = newest_runs(session, enterprise, MOST_RUNS)
        if not runs and not name:
            raise BadArgument("There is no enterprise with this UUID", "find it on the page Enterprises")
        retries = retries_by_run(session, select(Retry).where(Retry.run_id.in_([run.id for run in runs])))
        held = held_licenses(session, enterprise)
        return OneEnterprise(read_now(session), enterprise, name, runs, retries, held)

    return read_once(database, work)


def grid(database: Database) -> Grid:
    """Read the last GRID_NIGHTS scheduled nights; the enterprises that failed most often come first.

    Raises Unavailable, Unusable.
    """

    def work(session: Session) -> Grid:
        begun = select(Night.scheduled_for).where(Night.tries > 0).order_by(Night.scheduled_for.desc())
        nights = session.scalars(begun.limit(GRID_NIGHTS)).all()
        columns = (Run.enterprise_customer_uuid, Run.scheduled_for, Run.id, Run.phase, Run.licenses_held, Run.retries)
        of_nights = select(*columns).where(Run.scheduled_for.in_(nights)).order_by(Run.opened_at)
        runs: dict[UUID, dict[datetime, Any]] = {}
        for run in session.execute(of_nights):
            runs.setdefault(run.enterprise_customer_uuid, {})[run.scheduled_for] = run
        now = read_now(session)
        failed = {found.enterprise: found for found in failed_enterprises(session, now)}
        known = session.scalars(select(Run.enterprise_customer_uuid).distinct())  # some only have runs by hand
        runs |= {enterprise: {} for enterprise in known if enterprise not in runs}
        names = names_of(session, runs)
        rows = [Row(each, names.get(each, ""), of_each, failed.get(each)) for each, of_each in runs.items()]
        return Grid(now, nights, sorted(rows, key=lambda row: (-row.failures, -row.troubles, row.name.casefold())))

    return read_once(database, work)
