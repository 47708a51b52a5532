"""Reads past nights from the ledger: the nights of a month, and one night with its runs. Reads no licenses.

A night here is all runs of one scheduled night, or all runs of one trigger by hand (the same `triggered_at`). The
number of statements does not depend on the number of enterprises.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Select, String, and_, case, column, func, or_, select, table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from worker.db.engine import cannot_be_used
from worker.db.ledger_tables import Night, Retry, Run
from worker.db.sql import DatabaseNow
from worker.db.transactions import Database
from worker.due.enterprises import names_of
from worker.errors import BadArgument, Unavailable, Unusable
from worker.ledger import migrations, nights, order

START_FROM_THE_LIST = "the first page of license-expiry serve lists the nights"
MONTH = timedelta(days=31)
MOST_NIGHTS = 400
SUMMED = ("licenses_downgraded", "learners_unlinked", "learners_protected", "licenses_held", "retries")
_MOMENT: Any = func.coalesce(Run.scheduled_for, Run.triggered_at)
_KEYS = ("%Y-%m-%dT%H%M%S.%fZ", "%Y-%m-%dT%H%M%SZ")

T = TypeVar("T")
Names = Mapping[UUID, str]


@dataclass(frozen=True)
class NightSummary:
    """The counts of a night. `scheduled` is None for one by hand; `whole` is true if all of its runs were opened.

    `held_back` says, for a night that did not begin because of a pause, what happens to it. Date-times are UTC.
    """

    moment: datetime
    scheduled: datetime | None
    opened_at: datetime
    ended_at: datetime | None = None
    dry_run: int = 0
    enterprises: int = 0
    finished: int = 0
    failed: int = 0
    live: int = 0
    licenses_downgraded: int = 0
    learners_unlinked: int = 0
    learners_protected: int = 0
    licenses_held: int = 0
    retries: int = 0
    stopped: int = 0
    whole: bool = True
    held_back: str = ""


@dataclass(frozen=True)
class OneNight:
    """A night with its runs, and the retries of each."""

    now: datetime
    moment: datetime
    night: Night | None
    runs: Sequence[Run]
    retries: Mapping[UUID, Sequence[Retry]]
    names: Names


def night_key(moment: datetime) -> str:
    """Format a night's moment (UTC) for a page's address, such as 2026-01-31T020000Z."""
    return moment.strftime(_KEYS[0]).replace(".000000Z", "Z")


def night_of(key: str) -> datetime:
    """Parse the result of `night_key`. Raises BadArgument."""
    for form in _KEYS:
        try:
            return datetime.strptime(key + "+0000", form + "%z")
        except ValueError:
            pass
    raise BadArgument(
        "A night's address must end in its scheduled time (UTC), such as 2026-01-31T020000Z", START_FROM_THE_LIST
    )


def check_ledger(database: Database) -> None:
    """Raise Unavailable or Unusable unless the ledger's tables are of this release and a run can be read."""
    version = select(column("version_num", String)).select_from(table(migrations.VERSION_TABLE))
    if read_once(database, lambda session: session.scalars(version).all()) != [migrations.revisions()[0]]:
        raise Unusable("The ledger's tables are of another release", "run license-expiry init-db")
    read_once(database, lambda session: session.scalars(select(Run).order_by(Run.opened_at.desc()).limit(1)).all())


def one_night(database: Database, key: str | None) -> OneNight:
    """Read the night with this key, or the newest one. Raises BadArgument if there is none, Unavailable, Unusable."""
    moment = None if key is None else night_of(key)

    def work(session: Session) -> OneNight:
        of = moment or _newest(session)
        runs = session.scalars(_of_night(select(Run), of).order_by(Run.opened_at, Run.id)).all()
        night = session.get(Night, of)
        if not runs and not (night and night.tries > 0):
            raise BadArgument("The ledger has no night at this moment", START_FROM_THE_LIST)
        retries = retries_by_run(session, _of_night(select(Retry).join(Run, Run.id == Retry.run_id), of))
        names = names_of(session, [run.enterprise_customer_uuid for run in runs])
        return OneNight(read_now(session), of, night, runs, retries, names)

    return read_once(database, work)


def read_once(database: Database, work: Callable[[Session], T]) -> T:
    """Run `work` in one transaction. Retries once, and only if the pooled connection had gone stale.

    Raises Unavailable or Unusable at once, so that a page or a scrape does not wait for the database.
    """
    for again in (True, False):
        try:
            with Session(database.engine, expire_on_commit=False) as session:
                return work(session)
        except DBAPIError as error:
            if again and error.connection_invalidated:
                continue
            database.require_schema()  # raises with the missing tables and columns, if that is the cause
            raise Unavailable("database", *cannot_be_used(database.engine, error)) from error
    raise AssertionError("unreachable")


def retries_by_run(session: Session, which: Select[Retry]) -> dict[UUID, list[Retry]]:
    """Read these retries, oldest first, by run id."""
    found: dict[UUID, list[Retry]] = {}
    for retry in session.scalars(which.order_by(Retry.at)):
        found.setdefault(retry.run_id, []).append(retry)
    return found


def read_now(session: Session) -> datetime:
    """Return the database's time (UTC)."""
    now: datetime = session.execute(select(DatabaseNow())).scalar_one()
    return now


def nights_since(session: Session, since: datetime) -> list[NightSummary]:
    """Return the nights that began, or opened a run, after `since` (UTC), newest first; at most MOST_NIGHTS."""

    def number(condition: Any) -> Any:
        return func.sum(case((condition, 1), else_=0))

    columns = {
        "moment": _MOMENT,
        "scheduled": func.max(Run.scheduled_for),
        "opened_at": func.min(Run.opened_at),
        "ended_at": func.max(Run.ended_at),
    }
    numbers = {
        "dry_run": number(Run.dry_run.is_(True)),
        "enterprises": func.count(),
        "finished": number(Run.phase == order.Phase.FINISHED),
        "failed": number(Run.phase.in_(order.WENT_WRONG)),
        "stopped": number(Run.phase == order.Phase.STOPPED),
        "live": number(Run.live.is_not(None)),
        **{name: func.sum(getattr(Run, name)) for name in SUMMED},
    }
    labeled = [column.label(name) for name, column in (columns | numbers).items()]
    begun = session.scalars(select(Night).where(Night.opened_at >= since, Night.tries > 0))
    of = {night.scheduled_for: night for night in begun}
    found = []
    for row in session.execute(select(*labeled).where(Run.opened_at >= since).group_by(_MOMENT)).mappings():
        night = of.pop(row["moment"], None)
        whole = night is None or night.lease_until is None
        sums = {name: int(row[name]) for name in numbers}  # some databases return sums as decimals
        found.append(NightSummary(**{**row, **sums}, whole=whole))
    for moment, night in of.items():
        found.append(NightSummary(moment, moment, night.opened_at, whole=night.lease_until is None))
    found += _held_back(session, since)
    return sorted(found, key=lambda night: night.opened_at, reverse=True)[:MOST_NIGHTS]


def _held_back(session: Session, since: datetime) -> list[NightSummary]:
    """Return the nights that did not begin because of a pause."""
    what = {0: "begins after the pause", nights.PASSED_OVER: "skipped: everything was paused"}
    which = or_(nights.HELD_BACK, Night.tries == nights.PASSED_OVER)
    return [
        NightSummary(night.scheduled_for, night.scheduled_for, night.opened_at, held_back=what[night.tries])
        for night in session.scalars(select(Night).where(which, Night.opened_at >= since))
    ]


def _of_night(query: Select[T], moment: datetime) -> Select[T]:
    by_hand = and_(Run.scheduled_for.is_(None), Run.triggered_at == moment)
    return query.where(or_(Run.scheduled_for == moment, by_hand))


def _newest(session: Session) -> datetime:
    runs = session.execute(select(Run.opened_at, _MOMENT).order_by(Run.opened_at.desc()).limit(1)).first()
    nights = select(Night.opened_at, Night.scheduled_for).where(Night.tries > 0)
    night = session.execute(nights.order_by(Night.opened_at.desc()).limit(1)).first()
    found = [(row[0], row[1]) for row in (night, runs) if row]
    if not found:
        raise BadArgument("The ledger has no night yet", "start one with license-expiry run")
    moment: datetime = max(found)[1]
    return moment
