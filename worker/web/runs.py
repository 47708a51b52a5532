"""Reads one run with its plans, and on request lists the licenses that it downgraded or unlinked.

The ledger does not record the licenses of a run for ever. They are found by the marks of processed plans, by the
confirmations of plans not processed yet, and by license-manager's events.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, false, func, or_, select
from sqlalchemy.orm import Session

from worker.db.ledger_tables import Downgrade, HeldLicense, LmsCall, Retry, Run
from worker.db.license_manager_tables import (
    DOWNGRADED_EVENT,
    UNLINKED_EVENT,
    CustomerAgreement as Agreement,
    HistoricalSubscriptionPlan as PlanHistory,
    License,
    LicenseEvent,
    SubscriptionPlan as Plan,
)
from worker.db.sql import Digits, OneOf
from worker.db.transactions import Database
from worker.due import conditions
from worker.due.enterprises import name_of
from worker.errors import BadArgument
from worker.ledger import runs
from worker.web.history import read_now, read_once

MOST_HELD = 200
MOST_LISTED = 500
OTHER_RUNS = 10
DOWNGRADED, UNLINKED = "downgraded", "unlinked"


@dataclass
class PlanOfRun:
    """A plan of a run: when the run processed it (UTC), if it did, and the numbers of its licenses in the run."""

    title: str
    expiration_date: datetime
    processed_at: datetime | None = None
    downgraded: int = 0
    unlinked: int = 0
    held: int = 0


@dataclass(frozen=True)
class OneRun:
    """A run with its details. `calls` are by step and outcome, `others` are other runs of its enterprise."""

    now: datetime
    run: Run
    name: str
    retries: Sequence[Retry]
    held: Sequence[HeldLicense]
    calls: Sequence[Any]
    others: Sequence[Run]
    plans: dict[UUID, PlanOfRun]


@dataclass(frozen=True)
class Listed:
    """A page of the licenses that a run downgraded or unlinked: (UUID, title of its plan), and whether more follow.

    Sorted by UUID, at most MOST_LISTED.
    """

    now: datetime
    run: Run
    name: str
    licenses: Sequence[Any] = field(repr=False)
    more: bool


def one_run(database: Database, run_id: UUID) -> OneRun:
    """Read a run with its details. Raises BadArgument if there is none, Unavailable, Unusable."""

    def work(session: Session) -> OneRun:
        run, now = _run(session, run_id), read_now(session)
        enterprise = run.enterprise_customer_uuid
        calls = select(LmsCall.step, LmsCall.outcome, func.sum(LmsCall.calls), func.sum(LmsCall.seconds))
        calls = calls.where(LmsCall.run_id == run_id).group_by(LmsCall.step, LmsCall.outcome)
        return OneRun(
            now=now,
            run=run,
            name=name_of(session, enterprise),
            retries=session.scalars(select(Retry).where(Retry.run_id == run_id).order_by(Retry.at)).all(),
            held=held_licenses(session, enterprise, HeldLicense.run_id == run_id),
            calls=session.execute(calls.order_by(LmsCall.step, LmsCall.outcome)).all(),
            others=[other for other in runs.newest_runs(session, enterprise, OTHER_RUNS) if other.id != run_id],
            plans=_plans(session, run, now),
        )

    return read_once(database, work)


def licenses(database: Database, run_id: UUID, done: str, after: UUID | None) -> Listed:
    """List the licenses that a run has DOWNGRADED or UNLINKED (`done`), starting after this UUID.

    Raises BadArgument if there is no such run, Unavailable, Unusable.
    """

    def work(session: Session) -> Listed:
        run, now = _run(session, run_id), read_now(session)
        which = _unlinked(run, now) if done == UNLINKED else _downgraded(session, run, now)
        found = conditions.licenses(License.uuid, Plan.title).where(_of_enterprise(run), which)
        page = conditions.first_after(found, MOST_LISTED + 1, after)
        rows = session.execute(page, {"after": after} if after else {}).all()
        name = name_of(session, run.enterprise_customer_uuid)
        return Listed(now, run, name, rows[:MOST_LISTED], len(rows) > MOST_LISTED)

    return read_once(database, work)


def held_licenses(session: Session, enterprise: UUID, *which: ColumnElement[bool]) -> Sequence[HeldLicense]:
    """Return the enterprise's held licenses that meet `which`; one more than MOST_HELD if there are more."""
    held = select(HeldLicense).where(HeldLicense.enterprise_customer_uuid == enterprise, *which)
    return session.scalars(held.order_by(HeldLicense.step, HeldLicense.license_uuid).limit(MOST_HELD + 1)).all()


def _run(session: Session, run_id: UUID) -> Run:
    run = session.get(Run, run_id)
    if run is None:
        raise BadArgument("The ledger has no run with this id", "license-expiry status lists the runs")
    return run


def _plans(session: Session, run: Run, now: datetime) -> dict[UUID, PlanOfRun]:
    """Return the plans that a run was narrowed to and those with a license in it, oldest expiration first.

    Returns {} for a live run: its page reloads every 10 s, and counting takes 1 s for 100,000 licenses.
    """
    if run.live or run.dry_run:
        return {}
    processed = _processed(session, run, now)
    held = and_(HeldLicense.license_uuid == License.uuid, HeldLicense.run_id == run.id)
    counted = {
        DOWNGRADED: _by_plan(run).where(_downgraded(session, run, now)),
        UNLINKED: _by_plan(run).where(_unlinked(run, now)),
        "held": _by_plan(run).where(conditions.exists_for(held)),
    }
    numbers = {name: dict(session.execute(query).all()) for name, query in counted.items()}
    of_run = {*processed, *map(UUID, run.plan_uuids or ()), *(plan for each in numbers.values() for plan in each)}
    known = select(Plan.uuid, Plan.title, Plan.expiration_date).where(OneOf(Plan.uuid, "plans", of_run))
    return {
        uuid: PlanOfRun(
            title, expires, processed.get(uuid), **{name: each.get(uuid, 0) for name, each in numbers.items()}
        )
        for uuid, title, expires in session.execute(known.order_by(Plan.expiration_date, Plan.title))
    }


def _by_plan(run: Run) -> Any:
    counted = conditions.licenses(License.subscription_plan_id, func.count()).where(_of_enterprise(run))
    return counted.group_by(License.subscription_plan_id)


def _of_enterprise(run: Run) -> ColumnElement[bool]:
    # Only expired plans, so that the customer's current licenses are not read.
    return and_(Agreement.enterprise_customer_uuid == run.enterprise_customer_uuid, Plan.expiration_date <= run.as_of)


def _processed(session: Session, run: Run, now: datetime) -> dict[UUID, datetime]:
    """Return the plans that the run marked as processed, and when: from our history rows during its downgrade."""
    ours = (PlanHistory.expiration_processed.is_(True), PlanHistory.history_date == PlanHistory.modified)
    begin, end = _time_of_downgrade(run, now)
    if begin is None:
        return {}
    found = select(Plan.uuid, func.min(PlanHistory.history_date)).group_by(Plan.uuid)
    found = found.join(Agreement, Agreement.uuid == Plan.customer_agreement_id)
    found = found.join(PlanHistory, PlanHistory.uuid == Digits(Plan.uuid)).where(_of_enterprise(run), *ours)
    return dict(session.execute(found.where(PlanHistory.history_date.between(begin, end))).all())


def _sent_again(session: Session, run: Run) -> list[UUID]:
    """Return the plans already marked whose licenses a forced run sent again; nothing else records these."""
    if not (run.force and run.downgraded_at):
        return []
    found = conditions.plans_where(_of_enterprise(run), Plan.expiration_processed.is_(True))
    if run.plan_uuids:
        found = found.where(OneOf(Plan.uuid, "asked", map(UUID, run.plan_uuids)))
    if run.expired_after:
        found = found.where(Plan.expiration_date >= run.expired_after)
    if run.expired_before:
        found = found.where(Plan.expiration_date <= run.expired_before)
    return list(session.scalars(found))


def _downgraded(session: Session, run: Run, now: datetime) -> ColumnElement[bool]:
    """Condition: the run downgraded the License, or marked its plan, which covers all of the plan's licenses."""
    covered = {*_processed(session, run, now), *_sent_again(session, run)}
    of_plan = OneOf(License.subscription_plan_id, "covered", covered)
    own = and_(Downgrade.license_uuid == License.uuid, Downgrade.run_id == run.id)
    event = _has_event(DOWNGRADED_EVENT, *_time_of_downgrade(run, now))
    return or_(and_(of_plan, conditions.was_a_learners()), conditions.exists_for(own), event)


def _unlinked(run: Run, now: datetime) -> ColumnElement[bool]:
    """Condition: the run unlinked the License's learner."""
    return _has_event(UNLINKED_EVENT, run.unlink_began_at, run.ended_at or now)


def _has_event(name: str, begin: datetime | None, end: datetime) -> ColumnElement[bool]:
    if begin is None:
        return false()
    of_license = (LicenseEvent.license_id == License.uuid, LicenseEvent.event_name == name)
    return conditions.exists_for(*of_license, LicenseEvent.created.between(begin, end))


def _time_of_downgrade(run: Run, now: datetime) -> tuple[datetime | None, datetime]:
    return run.downgrade_began_at, run.downgraded_at or run.ended_at or now
