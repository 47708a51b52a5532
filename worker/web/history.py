"""What the ledger has of past and present: the nights of a month, one night, one run. Reads only, never licenses.

A night here is all runs of one scheduled night, or else all of one trigger: those of the same
`triggered_at`. Each question takes the same few statements, however many enterprises and licenses there are.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Select, String, and_, case, column, exists, func, or_, select, table
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, aliased

from worker.db.engine import cannot_be_used
from worker.db.ledger_tables import Heartbeat, HeldLicense, LmsCall, Night, Retry, Run, Wait
from worker.db.license_manager_tables import CustomerAgreement
from worker.db.sql import DatabaseNow, OneOf
from worker.db.transactions import Database
from worker.errors import BadArgument, Unavailable, Unusable
from worker.ledger import migrations, nights, order, runs, waits

START_FROM_THE_LIST = "start from the list of nights"
MONTH = timedelta(days=31)
MOST_NIGHTS = 400
MOST_TROUBLES = 10
MOST_HELD = 200
OTHER_RUNS = 10
SUMMED = ("licenses_downgraded", "learners_unlinked", "learners_protected", "licenses_held", "retries")
_MOMENT: Any = func.coalesce(Run.scheduled_for, Run.triggered_at)
_KEYS = ("%Y-%m-%dT%H%M%S.%fZ", "%Y-%m-%dT%H%M%SZ")

T = TypeVar("T")
Names = Mapping[UUID, str]


@dataclass(frozen=True)
class NightSummary:
    """A night in numbers. `scheduled` is None for one by hand; `whole` tells that all of its runs were opened.

    `held_back` tells in words what a pause has done to one that was not begun.
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
class Overview:
    """The nights of a month, the newest first, and what is wrong now; `held` is counted by step and reason.

    `waits` is what all runs wait for, `waiting` how many do.
    """

    now: datetime
    reconciled_at: datetime
    nights: Sequence[NightSummary]
    troubles: Sequence[Run]
    troubled: int
    held: Sequence[Any]
    live: int
    live_since: datetime | None
    waiting: int
    waits: Sequence[Wait]
    names: Names


@dataclass(frozen=True)
class OneNight:
    """A night with its runs, and the retries of each."""

    now: datetime
    moment: datetime
    night: Night | None
    runs: Sequence[Run]
    retries: Mapping[UUID, Sequence[Retry]]
    names: Names


@dataclass(frozen=True)
class OneRun:
    """All that the ledger has of a run: `calls` are by step and outcome, `others` are its enterprise's."""

    now: datetime
    run: Run
    name: str
    retries: Sequence[Retry]
    held: Sequence[HeldLicense]
    calls: Sequence[Any]
    others: Sequence[Run]


def night_key(moment: datetime) -> str:
    """The moment of a night as it stands in an address."""
    return moment.strftime(_KEYS[0]).replace(".000000Z", "Z")


def night_of(key: str) -> datetime:
    """The moment that `night_key` wrote. Raises BadArgument."""
    for form in _KEYS:
        try:
            return datetime.strptime(key + "+0000", form + "%z")
        except ValueError:
            pass
    raise BadArgument("A night is named by its moment, such as 2026-01-31T020000Z", START_FROM_THE_LIST)


def check_ledger(database: Database) -> None:
    """Raise Unavailable or Unusable unless the ledger's tables are those of this release, and a run can be read."""
    version = select(column("version_num", String)).select_from(table(migrations.VERSION_TABLE))
    if read_once(database, lambda session: session.scalars(version).all()) != [migrations.revisions()[0]]:
        raise Unusable("The ledger's tables are of another release", "run license-expiry init-db")
    read_once(database, lambda session: session.scalars(select(Run).order_by(Run.opened_at.desc()).limit(1)).all())


def overview(database: Database) -> Overview:
    """Read the nights of the last month and what is wrong now. Raises Unavailable, Unusable."""

    def work(session: Session) -> Overview:
        beat = session.execute(select(Heartbeat.reconciled_at, DatabaseNow())).one_or_none()
        if beat is None:
            what = f"the ledger's table {Heartbeat.__tablename__} has lost its row"
            raise Unusable(what, "start beat and a worker: they write it again")
        reconciled_at, now = beat
        whole = select(func.max(Night.opened_at)).where(Night.tries > 0, Night.lease_until.is_(None))
        since = session.scalar(whole)  # an enterprise without a run since then had nothing due
        troubles = session.execute(_troubles(max(now - MONTH, since or now - MONTH))).all()
        held = select(HeldLicense.step, HeldLicense.reason, func.count()).group_by(HeldLicense.step, HeldLicense.reason)
        live, since = session.execute(select(func.count(), func.min(Run.opened_at)).where(Run.live.is_not(None))).one()
        return Overview(
            now=now,
            reconciled_at=reconciled_at,
            nights=_nights(session, now - MONTH),
            troubles=[run for run, _ in troubles],
            troubled=troubles[0][1] if troubles else 0,
            held=session.execute(held.order_by(func.count().desc())).all(),
            live=live,
            live_since=since,
            waiting=session.scalar(select(func.count()).where(*runs.WAITING)) or 0,
            waits=[wait for wait, _ in waits.standing(session)],
            names=_names(session, [run.enterprise_customer_uuid for run, _ in troubles]),
        )

    return read_once(database, work)


def one_night(database: Database, key: str | None) -> OneNight:
    """Read the night with this key, or the newest one. Raises BadArgument when there is none, Unavailable, Unusable."""
    moment = None if key is None else night_of(key)

    def work(session: Session) -> OneNight:
        of = moment or _newest(session)
        runs = session.scalars(_of_night(select(Run), of).order_by(Run.opened_at, Run.id)).all()
        night = session.get(Night, of)
        if not runs and not (night and night.tries > 0):
            raise BadArgument("The ledger has no night of this moment", START_FROM_THE_LIST)
        retries: dict[UUID, list[Retry]] = {}
        for retry in session.scalars(_of_night(select(Retry).join(Run, Run.id == Retry.run_id), of).order_by(Retry.at)):
            retries.setdefault(retry.run_id, []).append(retry)
        names = _names(session, [run.enterprise_customer_uuid for run in runs])
        return OneNight(session.execute(select(DatabaseNow())).scalar_one(), of, night, runs, retries, names)

    return read_once(database, work)


def one_run(database: Database, run_id: UUID) -> OneRun:
    """Read all that the ledger has of a run. Raises BadArgument when there is none, Unavailable, Unusable."""

    def work(session: Session) -> OneRun:
        run = session.get(Run, run_id)
        if run is None:
            raise BadArgument("The ledger has no run of this id", "license-expiry status lists them")
        enterprise, held = run.enterprise_customer_uuid, select(HeldLicense)
        held = held.where(HeldLicense.run_id == run_id, HeldLicense.enterprise_customer_uuid == enterprise)
        calls = select(LmsCall.step, LmsCall.outcome, func.sum(LmsCall.calls), func.sum(LmsCall.seconds))
        calls = calls.where(LmsCall.run_id == run_id).group_by(LmsCall.step, LmsCall.outcome)
        return OneRun(
            now=session.execute(select(DatabaseNow())).scalar_one(),
            run=run,
            name=_names(session, [enterprise]).get(enterprise, ""),
            retries=session.scalars(select(Retry).where(Retry.run_id == run_id).order_by(Retry.at)).all(),
            held=session.scalars(held.order_by(HeldLicense.step, HeldLicense.license_uuid).limit(MOST_HELD)).all(),
            calls=session.execute(calls.order_by(LmsCall.step, LmsCall.outcome)).all(),
            others=[other for other in runs.newest_runs(session, enterprise, OTHER_RUNS) if other.id != run_id],
        )

    return read_once(database, work)


def read_once(database: Database, work: Callable[[Session], T]) -> T:
    """Run `work` in one transaction. Retries once, and only when the pooled connection had gone stale.

    Raises Unavailable, Unusable, at once: a page or a metric does not wait for a database to come back.
    """
    for again in (True, False):
        try:
            with Session(database.engine, expire_on_commit=False) as session:
                return work(session)
        except DBAPIError as error:
            if again and error.connection_invalidated:
                continue
            database.require_schema()  # names what it lacks
            raise Unavailable("database", *cannot_be_used(database.engine, error)) from error
    raise AssertionError("unreachable")


def _nights(session: Session, since: datetime) -> list[NightSummary]:
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
    labelled = [column.label(name) for name, column in (columns | numbers).items()]
    begun = session.scalars(select(Night).where(Night.opened_at >= since, Night.tries > 0))
    of = {night.scheduled_for: night for night in begun}
    found = []
    for row in session.execute(select(*labelled).where(Run.opened_at >= since).group_by(_MOMENT)).mappings():
        night = of.pop(row["moment"], None)
        whole = night is None or night.lease_until is None
        sums = {name: int(row[name]) for name in numbers}  # some databases' sums are decimals
        found.append(NightSummary(**{**row, **sums}, whole=whole))
    for moment, night in of.items():
        found.append(NightSummary(moment, moment, night.opened_at, whole=night.lease_until is None))
    found += _held_back(session, since)
    return sorted(found, key=lambda night: night.opened_at, reverse=True)[:MOST_NIGHTS]


def _held_back(session: Session, since: datetime) -> list[NightSummary]:
    """The nights that were not begun because of a pause."""
    what = {0: "begins after the pause", nights.PASSED_OVER: "passed over: everything was paused"}
    which = or_(nights.HELD_BACK, Night.tries == nights.PASSED_OVER)
    return [
        NightSummary(night.scheduled_for, night.scheduled_for, night.opened_at, held_back=what[night.tries])
        for night in session.scalars(select(Night).where(which, Night.opened_at >= since))
    ]


def _troubles(since: datetime) -> Select[Run, int]:
    """The enterprises whose newest run, dry runs aside, went wrong: the newest few of these runs, and how many."""
    later = aliased(Run)
    newer = exists().where(
        later.enterprise_customer_uuid == Run.enterprise_customer_uuid,
        later.opened_at > Run.opened_at,
        later.dry_run.is_(False),
    )
    bad = select(Run, func.count().over()).where(Run.phase.in_(order.WENT_WRONG), Run.dry_run.is_(False))
    return bad.where(Run.opened_at >= since, ~newer).order_by(Run.opened_at.desc(), Run.id).limit(MOST_TROUBLES)


def _of_night(query: Select[T], moment: datetime) -> Select[T]:
    by_hand = and_(Run.scheduled_for.is_(None), Run.triggered_at == moment)
    return query.where(or_(Run.scheduled_for == moment, by_hand))


def _newest(session: Session) -> datetime:
    runs = session.execute(select(Run.opened_at, _MOMENT).order_by(Run.opened_at.desc()).limit(1)).first()
    nights = select(Night.opened_at, Night.scheduled_for).where(Night.tries > 0)
    night = session.execute(nights.order_by(Night.opened_at.desc()).limit(1)).first()
    found = [(row[0], row[1]) for row in (night, runs) if row]
    if not found:
        raise BadArgument("The ledger has no night yet", "license-expiry run begins one")
    moment: datetime = max(found)[1]
    return moment


def _names(session: Session, enterprises: Iterable[UUID]) -> dict[UUID, str]:
    customer, name = CustomerAgreement.enterprise_customer_uuid, CustomerAgreement.enterprise_customer_name
    named = select(customer, name).where(OneOf(customer, "enterprises", set(enterprises)))
    return {enterprise: called or "" for enterprise, called in session.execute(named)}
