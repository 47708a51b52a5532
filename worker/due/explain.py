"""Why a learner has access or was unlinked, license by license, and what the nights to come will do.

Each answer is one of a night's own selects and conditions: the rules stand nowhere a second time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import bindparam, func, or_, select
from sqlalchemy.orm import Session, aliased

from worker.db.ledger_tables import Downgrade, HeldLicense, Run
from worker.db.license_manager_tables import (
    DOWNGRADED_EVENT,
    UNLINKED_EVENT,
    CustomerAgreement as Agreement,
    License,
    LicenseEvent,
    SubscriptionPlan as Plan,
    SubscriptionPlanRenewal as Renewal,
)
from worker.db.sql import Mailbox, OneOf, Rows
from worker.db.types import DjangoUUID
from worker.due import conditions, learners, outlook, unlinks
from worker.due.outlook import Night
from worker.due.plans import stale
from worker.due.scope import Scope
from worker.due.statements import fetch, fetch_count
from worker.ledger.order import DOWNGRADE, UNLINK, Step
from worker.license_manager.marks import marked, marked_at

# Of a person's licenses at one customer no more are explained.
MOST = 50


@dataclass(frozen=True)
class Outcome:
    """What becomes of a license in one step.

    `done`: `at` is when, if that is known, and `run` is the run of ours that did it, if one did. `next` and `later`:
    `at` is the night that will do it, the first or another. `why` names what keeps it from being done by the first
    night, or at all (`never`): one of outlook.RULES, or another license of the learner, `held` or `protected`.
    """

    state: Literal["done", "next", "later", "never"]
    at: datetime | None = None
    run: UUID | None = None
    why: str = ""


@dataclass(frozen=True)
class Explained:
    """A license: its row of `_facts`, the renewals of its plan, its hold, what keeps its learner linked, its outcomes.

    `renewals` are rows of `_renewals`; `held_by` and `protected_by` are rows of `_keepers`, as the first night finds
    them, or the last where none will ever unlink. They are None where the license or its plan decides already.
    """

    facts: Any
    renewals: Sequence[Any]
    hold: HeldLicense | None
    held_by: Sequence[Any] | None
    protected_by: Sequence[Any] | None
    downgrade: Outcome
    unlink: Outcome


def explain(session: Session, scope: Scope, named: Sequence[UUID], night: Night) -> tuple[list[Explained], int]:
    """Explain these licenses and all others of the same learners, at each customer; these first.

    The scope is that of a night over everything at the present moment. Returns also how many licenses were left out,
    of those of which one customer has more than MOST.
    """
    found: list[Explained] = []
    left_out = 0
    alike = fetch(session, learners.alike, scope, licenses=named)
    for customer, rows in groupby(sorted(alike, key=lambda row: row[1]), key=lambda row: row[1]):
        theirs = outlook.at(replace(scope, enterprise=customer), scope.as_of)
        seeds = [uuid for uuid, _ in rows]
        person = {uuid for (uuid,) in fetch(session, learners.licenses_of_learners, theirs, licenses=seeds)}
        first = sorted(person, key=lambda uuid: (uuid not in named, uuid))[:MOST]
        left_out += len(person) - len(first)
        found += _explain(session, theirs, first, night)
    found.sort(key=lambda one: (one.facts.uuid not in named, one.facts.enterprise, one.facts.uuid))
    return found, left_out


def licenses_by_uuid(_: Scope, licenses: Sequence[UUID]) -> Rows:
    """Which of these licenses are there?"""
    return conditions.among(conditions.licenses(), licenses)


def licenses_of_user(_: Scope, lms_user_id: int) -> Rows:
    """Which licenses have this LMS user id?"""
    return conditions.licenses().where(License.lms_user_id == bindparam("lms_user_id", lms_user_id))


def unlinks_over_limit(session: Session, scope: Scope, limit: int) -> int:
    """How many learners the scope's enterprise has due to be unlinked; 0 when these are no more than `limit`."""
    if fetch_count(session, unlinks.unlink_candidates, scope) <= limit:  # quickly counted, and never fewer
        return 0
    number = fetch_count(session, unlinks.due_unlinks, scope, downgraded=False)
    return number if number > limit else 0


def _explain(session: Session, scope: Scope, licenses: Sequence[UUID], night: Night) -> list[Explained]:
    """Explain these licenses of the scope's enterprise."""
    circle = outlook.circle_of(session, scope, licenses)
    renewals = _renewals_of(session, scope, circle.plans)
    ends = [link.expires for link in renewals.values() if link.expires]
    ahead = outlook.look_ahead(session, scope, licenses, circle, ends, night)
    # What keeps something from being done by the first night is asked then; what keeps it for ever, at the last.
    asked = {moment: outlook.at(scope, moment) for moment in (ahead.first, ahead.last)}
    broken = {moment: outlook.broken_rules(session, then, licenses, circle) for moment, then in asked.items()}
    dates, holds = _Dates(session, scope, licenses), _holds(session, licenses)

    def explained(row: Any) -> Explained:
        outcomes: list[Outcome] = []
        keeping: dict[str, Sequence[Any]] = {}
        for step in (DOWNGRADE, UNLINK):
            then = ahead.nights.get((step.name, row.uuid))
            moment = ahead.first if then else ahead.last
            reasons = broken[moment][step.name, row.uuid]
            if step is UNLINK and not set(reasons) - {"age"}:
                keeping = _keeping(session, asked[moment], row.uuid)
            why = next(iter([*reasons, *(why for why, rows in keeping.items() if rows)]), "")
            outcomes.append(_outcome(dates.done(row, step), then, ahead.first, why))
        chain, keepers = list(_chain(renewals, row.plan)), (keeping.get("held"), keeping.get("protected"))
        return Explained(row, chain, holds.get(row.uuid), *keepers, *outcomes)

    return [explained(row) for row in fetch(session, _facts, scope, licenses=licenses)]


def _outcome(done: Outcome | None, night: datetime | None, first: datetime, why: str) -> Outcome:
    if night:
        return Outcome("next", night) if night == first else Outcome("later", night, why=why)
    return done or Outcome("never", why=why)


def _holds(session: Session, licenses: Sequence[UUID]) -> dict[UUID, HeldLicense]:
    held = select(HeldLicense).where(OneOf(HeldLicense.license_uuid, "licenses", licenses))
    return {hold.license_uuid: hold for hold in session.scalars(held)}


class _Dates:
    """When some licenses were downgraded and unlinked, and in which runs."""

    def __init__(self, session: Session, scope: Scope, licenses: Sequence[UUID]) -> None:
        self._session = session
        self._as_of = scope.as_of
        self._events = {(row[0], row[1]): row[2] for row in fetch(session, _events, scope, licenses=licenses)}
        confirmed = fetch(session, _confirmations, scope, licenses=licenses)
        self._confirmed = {row.license_uuid: row for row in confirmed}  # the newest last

    def done(self, row: Any, step: Step) -> Outcome | None:
        """The outcome of a step that was done for this row of `_facts`; None if it was not."""
        if step is UNLINK:
            return self._by_run(row, UNLINK, self._events.get((row.uuid, UNLINKED_EVENT))) if row.unlinked else None
        event, confirmed = self._events.get((row.uuid, DOWNGRADED_EVENT)), self._confirmed.get(row.uuid)
        if row.downgrade_confirmed:
            if confirmed and (row.expires is None or confirmed.confirmed_at >= row.expires):
                return Outcome("done", confirmed.confirmed_at, confirmed.run_id)
            return self._by_run(row, DOWNGRADE, event)
        expired = row.expires is not None and row.expires <= self._as_of
        return self._by_run(row, DOWNGRADE, row.marked_at) if row.confirmed and row.was_learners and expired else None

    def _by_run(self, row: Any, step: Step, moment: datetime | None) -> Outcome:
        """Done then; by the run of ours that was at this step just then, if any was."""
        if moment is None:
            return Outcome("done")
        began, ended = getattr(Run, step.began_at), func.coalesce(getattr(Run, step.ended_at), Run.ended_at)
        at_work = (began <= moment, or_(ended.is_(None), ended >= moment), Run.dry_run.is_(False))
        run = select(Run.id).where(Run.enterprise_customer_uuid == row.enterprise, *at_work).order_by(began.desc())
        return Outcome("done", moment, self._session.scalars(run.limit(1)).first())


def _chain(renewals: Mapping[UUID, Any], plan: UUID) -> Any:
    """The renewals that follow a plan, up to one without a next plan, or to a ring's beginning."""
    seen: set[UUID | None] = set()
    link = renewals.get(plan)
    while link and link.prior not in seen:
        yield link
        seen.add(link.prior)
        link = renewals.get(link.following)


def _renewals_of(session: Session, scope: Scope, plans: Sequence[UUID]) -> dict[UUID, Any]:
    """The renewals of these plans and of those that follow them, by prior plan."""
    found: dict[UUID, Any] = {}
    asked = set(plans)
    while asked:
        links = fetch(session, _renewals, scope, plans=sorted(asked))
        found |= {link.prior: link for link in links}
        asked = {link.following for link in links if link.following} - found.keys()
    return found


def _renewals(scope: Scope, plans: Sequence[UUID]) -> Rows:
    following = aliased(Plan)
    columns = (
        Renewal.prior_subscription_plan_id.label("prior"),
        Renewal.renewed_subscription_plan_id.label("following"),
        conditions.readable(Renewal.effective_date).label("effective"),
        Renewal.processed,
        conditions.readable(following.expiration_date).label("expires"),
        stale(scope).label("stale"),
    )
    rows = select(*columns).outerjoin(following, following.uuid == Renewal.renewed_subscription_plan_id)
    return rows.where(OneOf(Renewal.prior_subscription_plan_id, "plans", plans))


def _facts(scope: Scope, licenses: Sequence[UUID]) -> Rows:
    columns = (
        License.uuid,
        Agreement.enterprise_customer_uuid.label("enterprise"),
        Agreement.enterprise_customer_name.label("name"),
        License.status,
        License.renewed_to_id.label("renewed_to"),
        func.coalesce(Mailbox(License.user_email) != "", False).label("addressed"),
        conditions.readable(License.assigned_date).label("assigned"),
        conditions.readable(License.revoked_date).label("revoked"),
        Plan.uuid.label("plan"),
        conditions.readable(Plan.start_date).label("starts"),
        conditions.readable(Plan.expiration_date).label("expires"),
        Plan.is_active,
        Plan.expiration_processed.label("processed"),
        marked().label("marked"),
        conditions.readable(marked_at()).label("marked_at"),
        conditions.was_a_learners().label("was_learners"),
        conditions.confirmed(scope).label("confirmed"),
        conditions.downgrade_confirmed().label("downgrade_confirmed"),
        conditions.held(scope).label("held"),
        unlinks.unlinked().label("unlinked"),
    )
    return conditions.among(conditions.licenses(*columns), licenses)


def _events(_: Scope, licenses: Sequence[UUID]) -> Rows:
    """(license, event, when last)"""
    kind = (LicenseEvent.license_id, LicenseEvent.event_name)
    of_these = (OneOf(LicenseEvent.license_id, "licenses", licenses), kind[1].in_((DOWNGRADED_EVENT, UNLINKED_EVENT)))
    return select(*kind, func.max(conditions.readable(LicenseEvent.created))).where(*of_these).group_by(*kind)


def _confirmations(_: Scope, licenses: Sequence[UUID]) -> Rows:
    found = select(Downgrade.license_uuid, Downgrade.run_id, Downgrade.confirmed_at)
    return found.where(OneOf(Downgrade.license_uuid, "licenses", licenses)).order_by(Downgrade.confirmed_at)


def _keeping(session: Session, scope: Scope, license: UUID) -> dict[str, Sequence[Any]]:
    """The licenses that keep the learner of this one linked, by why: `held`, `protected`."""
    questions = {"held": _holding, "protected": _protecting}
    return {why: fetch(session, question, scope, license=license) for why, question in questions.items()}


def _holding(scope: Scope, license: UUID) -> Rows:
    return _keepers(scope, license, "held")


def _protecting(scope: Scope, license: UUID) -> Rows:
    """Not itself, because its own plan is current."""
    return _keepers(scope, license, "protected").where(License.uuid != bindparam("license", license, DjangoUUID()))


def _keepers(scope: Scope, license: UUID, why: str) -> Rows:
    this = bindparam("license", license, DjangoUUID())
    which = unlinks.keeping(scope, unlinks.keeping_holds(scope))[why]
    theirs = learners.is_of_learner([lambda one, _: (one.uuid == this,)], unlinks.agreements(scope))
    columns = (License.uuid, Plan.uuid.label("plan"), conditions.readable(Plan.expiration_date).label("expires"))
    return conditions.licenses(*columns).where(*which(License, Plan), theirs).order_by(License.uuid)
