"""Reads the form that starts a run, and previews the run from the database. Changes nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from worker.db.ledger_tables import HeldLicense, Run, Wait
from worker.db.license_manager_tables import CustomerAgreement as Agreement, SubscriptionPlan as Plan
from worker.db.sql import DatabaseNow, OneOf
from worker.db.transactions import Database
from worker.due import conditions, forecast
from worker.due.enterprises import names_of
from worker.due.scope import scope_of
from worker.errors import BadArgument
from worker.flower.database import customers
from worker.ledger import runs, waits
from worker.runs.request import Request, check_against_database, parse_request
from worker.settings import DatabaseSettings

TEXTS = ("expired_after", "expired_before", "reason", "approve_unlinks")
FLAGS = ("dry_run", "force")
COUNTS = ("downgrades", "unlinks", "protected", "protected_by_user_email", "protected_by_lms_user_id", "waiting")
MOST_PLANS = 200
MOST_DIGITS = 10
OF_A_NIGHT = {"dry_run", "reason", "triggered_by"}  # the arguments of a night


@dataclass
class Form:
    """The form as it was typed; `enterprise` is None for the whole night, `plans` has the UUIDs of those chosen."""

    enterprise: UUID | None = None
    plans: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)

    def request(self, triggered_by: str) -> Request:
        """The request of this form. Raises BadArgument, with a complaint for each wrong field."""
        given: dict[str, Any] = {name: text.strip() or None for name, text in self.texts.items()}
        approved = given.get("approve_unlinks")
        if approved and approved.isdecimal() and len(approved) <= MOST_DIGITS:
            given["approve_unlinks"] = int(approved)
        flags = {name: name in self.flags for name in FLAGS}
        request = parse_request(**given, **flags, plan_uuids=self.plans or None, triggered_by=triggered_by)
        more = request.model_dump(exclude_defaults=True).keys() - OF_A_NIGHT
        if self.enterprise is None and more:
            raise BadArgument(f"the whole night takes no {', '.join(sorted(more))}", "choose an enterprise")
        return request


def form_of(run: Run) -> Form:
    """The form of this run, without its approval: that was for one number at one time."""
    texts = {name: getattr(run, name) for name in TEXTS if name != "approve_unlinks"}
    moments = {name: value and value.isoformat() for name, value in texts.items() if name.startswith("expired")}
    said = {name: str(value) for name, value in (texts | moments).items() if value is not None}
    flags = {name for name in FLAGS if getattr(run, name)}
    return Form(run.enterprise_customer_uuid, list(run.plan_uuids or ()), said, flags)


def arguments(enterprise: UUID | None, request: Request) -> dict[str, Any]:
    """The arguments of the task that starts this request, for one enterprise or the night."""
    given = request.model_dump(mode="json", exclude_defaults=True)
    return given if enterprise is None else {"enterprise_customer_uuid": str(enterprise), **given}


@dataclass(frozen=True)
class Preview:
    """The work of a run if it began now, by plan; of a night, `customers` has the sums of each enterprise, else none.

    `titles` are those of the plans, or the names of these enterprises, by UUID. `held` licenses are on the list of
    those that the LMS refuses; `live` is the run that the enterprise has; `waits` is what all runs wait for.
    `unlinking` says by which settings learners are unlinked, as this process has them. `digest` changes with what is
    due.
    """

    name: str
    rows: Sequence[forecast.PlanRow]
    customers: Sequence[dict[str, Any]]
    titles: Mapping[str, str]
    unlinking: str
    held: int
    live: Run | None
    waits: Sequence[Wait]
    unlink_limit: int
    digest: str

    @property
    def shown(self) -> Sequence[forecast.PlanRow]:
        """The plans to show."""
        return [row for row in self.rows if row.work or row.state in ("waiting", "held")]

    def total(self, count: str) -> int:
        """The sum of one of COUNTS over all plans."""
        return sum(getattr(row, count) for row in self.rows)


def preview(database: Database, settings: DatabaseSettings, enterprise: UUID | None, request: Request) -> Preview:
    """Count what a run of this enterprise, or a night, would do. Raises BadArgument as `start_runs` does."""
    as_of = database.now()
    check_against_database(database, request, frozenset([enterprise] if enterprise else ()), as_of)
    scope = replace(scope_of(database, settings, as_of, request), enterprise=enterprise)
    rows = forecast.plan_rows(database, scope, detailed=enterprise is not None)
    counted = [[row.plan_uuid, row.state, *(getattr(row, name) for name in COUNTS)] for row in rows]
    due = [request.model_dump(mode="json"), settings.judged_by, counted]
    night = [] if enterprise else forecast.due_rows(rows)

    def work(session: Session) -> Preview:
        held = select(func.count()).where(HeldLicense.enterprise_customer_uuid == enterprise)
        named = [enterprise] if enterprise else [UUID(row["enterprise_customer_uuid"]) for row in night]
        names = {str(one): name for one, name in names_of(session, named).items()}
        return Preview(
            name=names.get(str(enterprise), ""),
            rows=rows,
            customers=night,
            titles=_titles(session, rows) if enterprise else names,
            unlinking=_unlinking(settings, enterprise),
            held=session.scalar(held) or 0,
            live=session.scalar(select(Run).where(Run.live == enterprise)) if enterprise else None,
            waits=[wait for wait, _ in waits.standing(session)],
            unlink_limit=settings.UNLINK_LIMIT,
            digest=sha256(json.dumps(due).encode()).hexdigest(),
        )

    return database.transact(work)


def _titles(session: Session, rows: Sequence[forecast.PlanRow]) -> dict[str, str]:
    named = select(Plan.uuid, Plan.title).where(OneOf(Plan.uuid, "plans", [UUID(row.plan_uuid) for row in rows]))
    return {str(plan): title for plan, title in session.execute(named)}


def _unlinking(settings: DatabaseSettings, enterprise: UUID | None) -> str:
    listed = settings.CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED
    days = f"more than {settings.UNLINK_AFTER_DAYS} days after a plan expired"
    if enterprise is None:
        return f"Learners are unlinked {days}, of the {len(listed)} enterprises on the unlink list."
    where = "is on the unlink list" if enterprise in listed else "is not on the unlink list: it keeps its learners"
    return f"This enterprise {where}{f'. Learners are unlinked {days}' if enterprise in listed else ''}."


def expired_plans(session: Session, enterprise: UUID) -> Sequence[Any]:
    """The newest expired plans of a customer: (uuid, title, expiration_date), the latest first."""
    theirs = conditions.plans_where(
        Agreement.enterprise_customer_uuid == enterprise,
        Plan.expiration_date <= DatabaseNow(),
        conditions.can_be_read(Plan.expiration_date),
        columns=(Plan.uuid, Plan.title, Plan.expiration_date),
    )
    return session.execute(theirs.order_by(Plan.expiration_date.desc()).limit(MOST_PLANS)).all()


def matching(named: Mapping[UUID, str], text: str) -> dict[UUID, str]:
    """Those of these customers, with their names, whose name holds this text, or whose UUID begins with it."""
    wanted = text.strip().casefold()
    digits = wanted.replace("-", "")

    def matches(customer: UUID, name: str) -> bool:
        return wanted in name.casefold() or customer.hex.startswith(digits or "-")

    return {customer: name for customer, name in named.items() if matches(customer, name)}


def started(session: Session, trigger: str, enterprise: UUID | None) -> Sequence[Run]:
    """The runs that this trigger, a task's id, has opened: that of one enterprise, or those of a night."""
    concerned = [enterprise] if enterprise else list(customers(session))
    return runs.runs_by_id(session, [runs.run_id_of(one, trigger) for one in concerned])
