"""Explains why a learner has access or was unlinked, license by license, and what the coming nights will do.

Every answer comes from the selects and conditions that a night itself uses. No rule is written twice.
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

# The most licenses of one person at one customer that are explained.
MOST = 50


@dataclass(frozen=True)
class Outcome:
    """The result of one step for one license.

    `done`: `at` is when, if known, and `run` the run that did it, if one did. `next` and `later`: `at` is the night
    (UTC) that will do it, the first or a later one. `why` names the obstacle for the first night (`later`) or for all
    (`never`): one of outlook.RULES, or another license of the learner that is `held` or `protected`.
    """

    state: Literal["done", "next", "later", "never"]
    at: datetime | None = None
    run: UUID | None = None
    why: str = ""


@dataclass(frozen=True)
class Explained:
    """A license: its row of `_facts`, its plan's renewals, its hold, the licenses that keep its learner, its outcomes.

    `renewals` are rows of `_renewals`. `held_by` and `protected_by` are rows of `_keepers`, as the first night finds
    them, or the last night if none will unlink. They are None if the license or its plan already decides.
    """

    facts: Any
    renewals: Sequence[Any]
    hold: HeldLicense | None
    held_by: Sequence[Any] | None
    protected_by: Sequence[Any] | None
    downgrade: Outcome
    unlink: Outcome


def explain(session: Session, scope: Scope, named: Sequence[UUID], night: Night) -> tuple[list[Explained], int]:
    """Explain these licenses and all others of the same learners, at each customer; the named ones come first.

    `scope` is that of a night over all enterprises now. `night` returns the first scheduled night at or after a moment.
    Also returns how many licenses were left out because a learner has more than MOST at one customer.
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
    """Select those of these licenses that exist."""
    return conditions.among(conditions.licenses(), licenses)


def licenses_of_user(_: Scope, lms_user_id: int) -> Rows:
    """Select the licenses with this LMS user id."""
    return conditions.licenses().where(License.lms_user_id == bindparam("lms_user_id", lms_user_id))


def unlinks_over_limit(session: Session, scope: Scope, limit: int) -> int:
    """Count the learners due to be unlinked at the scope's enterprise; 0 if they are at most `limit`."""
    if fetch_count(session, unlinks.unlink_candidates, scope) <= limit:  # an upper bound that is cheap to count
        return 0
    number = fetch_count(session, unlinks.due_unlinks, scope, downgraded=False)
    return number if number > limit else 0


def _explain(session: Session, scope: Scope, licenses: Sequence[UUID], night: Night) -> list[Explained]:
    """Explain these licenses of the scope's enterprise."""
    circle = outlook.circle_of(session, scope, licenses)
    renewals = _renewals_of(session, scope, circle.plans)
    ends = [link.expires for link in renewals.values() if link.expires]
    ahead = outlook.look_ahead(session, scope, licenses, circle, ends, night)
    # Obstacles to the first night are evaluated at that night, permanent ones at the last night.
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
    """Looks up when these licenses were downgraded and unlinked, and in which runs."""

    def __init__(self, session: Session, scope: Scope, licenses: Sequence[UUID]) -> None:
        self._session = session
        self._as_of = scope.as_of
        self._events = {(row[0], row[1]): row[2] for row in fetch(session, _events, scope, licenses=licenses)}
        confirmed = fetch(session, _confirmations, scope, licenses=licenses)
        self._confirmed = {row.license_uuid: row for row in confirmed}  # the newest last

    def done(self, row: Any, step: Step) -> Outcome | None:
        """Return the outcome if the step was done for this row of `_facts`, else None."""
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
        """Return the outcome "done" at this moment, with the run that was in this step then, if any."""
        if moment is None:
            return Outcome("done")
        began, ended = getattr(Run, step.began_at), func.coalesce(getattr(Run, step.ended_at), Run.ended_at)
        at_work = (began <= moment, or_(ended.is_(None), ended >= moment), Run.dry_run.is_(False))
        run = select(Run.id).where(Run.enterprise_customer_uuid == row.enterprise, *at_work).order_by(began.desc())
        return Outcome("done", moment, self._session.scalars(run.limit(1)).first())


def _chain(renewals: Mapping[UUID, Any], plan: UUID) -> Any:
    """Yield the renewals that follow a plan, until one has no next plan or the chain returns to its start."""
    seen: set[UUID | None] = set()
    link = renewals.get(plan)
    while link and link.prior not in seen:
        yield link
        seen.add(link.prior)
        link = renewals.get(link.following)


def _renewals_of(session: Session, scope: Scope, plans: Sequence[UUID]) -> dict[UUID, Any]:
    """Read the renewals of these plans and of all plans that follow them, by prior plan."""
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
    """Select (license, event name, time of the newest one)."""
    kind = (LicenseEvent.license_id, LicenseEvent.event_name)
    of_these = (OneOf(LicenseEvent.license_id, "licenses", licenses), kind[1].in_((DOWNGRADED_EVENT, UNLINKED_EVENT)))
    return select(*kind, func.max(conditions.readable(LicenseEvent.created))).where(*of_these).group_by(*kind)


def _confirmations(_: Scope, licenses: Sequence[UUID]) -> Rows:
    found = select(Downgrade.license_uuid, Downgrade.run_id, Downgrade.confirmed_at)
    return found.where(OneOf(Downgrade.license_uuid, "licenses", licenses)).order_by(Downgrade.confirmed_at)


def _keeping(session: Session, scope: Scope, license: UUID) -> dict[str, Sequence[Any]]:
    """Read the licenses that keep this license's learner linked, by reason: `held`, `protected`."""
    questions = {"held": _holding, "protected": _protecting}
    return {why: fetch(session, question, scope, license=license) for why, question in questions.items()}


def _holding(scope: Scope, license: UUID) -> Rows:
    return _keepers(scope, license, "held")


def _protecting(scope: Scope, license: UUID) -> Rows:
    """Leave the license itself out: its own plan may be current."""
    return _keepers(scope, license, "protected").where(License.uuid != bindparam("license", license, DjangoUUID()))


def _keepers(scope: Scope, license: UUID, why: str) -> Rows:
    this = bindparam("license", license, DjangoUUID())
    which = unlinks.keeping(scope, unlinks.keeping_holds(scope))[why]
    theirs = learners.is_of_learner([lambda one, _: (one.uuid == this,)], unlinks.agreements(scope))
    columns = (License.uuid, Plan.uuid.label("plan"), conditions.readable(Plan.expiration_date).label("expires"))
    return conditions.licenses(*columns).where(*which(License, Plan), theirs).order_by(License.uuid)
