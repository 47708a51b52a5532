"""Finds the first night that will downgrade or unlink a license, if no data changes until then.

Evaluates the selects of a night at the first night and at each night after which something may become due: a plan
expires (its own, or one that protects the learner), UNLINK_AFTER_DAYS after that, or a hold ends.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import ColumnElement, or_
from sqlalchemy.orm import Session

from worker.db.ledger_tables import HeldLicense
from worker.db.license_manager_tables import CustomerAgreement as Agreement, License, SubscriptionPlan as Plan
from worker.db.sql import OneOf, Rows
from worker.due import conditions, downgrades, unlinks
from worker.due.learners import licenses_of_learners
from worker.due.scope import Scope
from worker.due.statements import fetch
from worker.ledger.held import HOLD_FOR
from worker.ledger.order import DOWNGRADE, UNLINK

# Events later than this are not reported.
HORIZON = timedelta(days=36525)
TICK = timedelta(microseconds=1)

Night: TypeAlias = Callable[[datetime], datetime]
"""The first night at or after a moment (both UTC)."""

# The rules of a night. The first one that does not hold, in this order, is reported.
RULES = {
    DOWNGRADE.name: ("status", "date", "mark", "confirmed", "expired", "renewals", "held"),
    UNLINK.name: ("status", "date", "list", "renewed", "email", "unlinked", "age"),
}


@dataclass(frozen=True)
class Circle:
    """All licenses that can affect the outcome of the given ones.

    Holds their plans, the moments (UTC) at which something may become due, and the licenses held without a downgrade.
    """

    plans: Sequence[UUID]
    moments: Sequence[datetime]
    undowngraded: Sequence[UUID]


@dataclass(frozen=True)
class Outlook:
    """The first night, the last night at which something may become due, and the night of each (step, license)."""

    first: datetime
    last: datetime
    nights: Mapping[tuple[str, UUID], datetime]


def circle_of(session: Session, scope: Scope, licenses: Sequence[UUID]) -> Circle:
    """Read all licenses that the learners of these have at the scope's enterprise."""
    rows = fetch(session, _circle, scope, licenses=licenses)
    horizon = scope.as_of + HORIZON
    moments: set[datetime] = set()
    for row in rows:
        if row.expires and row.expires < horizon:
            moments |= {row.expires, row.expires + scope.unlink_after}
        if row.held_at:
            moments.add(row.held_at + HOLD_FOR)
    undowngraded = [row.uuid for row in rows if row.held_step == DOWNGRADE.name]
    return Circle(sorted({row.plan for row in rows}), sorted(moments), undowngraded)


def look_ahead(
    session: Session, scope: Scope, licenses: Sequence[UUID], circle: Circle, more: Iterable[datetime], night: Night
) -> Outlook:
    """Find the first night that downgrades, and the first that unlinks, each of these licenses.

    The licenses are of the scope's enterprise. `more` are moments (UTC) at which the renewals of their plans may end.
    """
    near = (each for each in {*circle.moments, *more} if scope.as_of - TICK <= each < scope.as_of + HORIZON)
    first = night(scope.as_of)
    turns = {later for moment in near for later in (moment, moment + TICK) if later > scope.as_of}
    nights = sorted({first, *map(night, turns)})
    found: dict[tuple[str, UUID], datetime] = {}
    for then in nights:
        for step, due in _due(session, at(scope, then), licenses, circle).items():
            for license in due:
                found.setdefault((step, license), then)
        if len(found) == len(RULES) * len(licenses):
            break
    return Outlook(first, nights[-1], found)


def at(scope: Scope, moment: datetime) -> Scope:
    """Return the scope of a night at this moment (UTC)."""
    return replace(scope, as_of=moment, now=moment)


def broken_rules(
    session: Session, scope: Scope, licenses: Sequence[UUID], circle: Circle
) -> dict[tuple[str, UUID], list[str]]:
    """Return the names of the RULES that do not hold at the scope's moment, by step and license.

    If all unlink rules hold, only another license can keep the learner linked.
    """
    found = {}
    for uuid, *values in fetch(session, _rules, scope, licenses=licenses, plans=circle.plans):
        held = iter(values)
        for step, names in RULES.items():
            found[step, uuid] = [name for name, holds in zip(names, held, strict=False) if not holds]
    return found


def _due(session: Session, scope: Scope, licenses: Sequence[UUID], circle: Circle) -> dict[str, set[UUID]]:
    """Return the licenses that a night at the scope's moment downgrades and unlinks, if the LMS accepts each call.

    A downgraded license is released from the held list. A held one that is not downgraded keeps its learner linked.
    """
    asked = {"licenses": [*licenses, *circle.undowngraded], "plans": circle.plans}
    sent = {uuid for (uuid,) in fetch(session, _downgrades, scope, **asked)}
    unlinked: set[UUID] = set()
    if fetch(session, _candidates, scope, licenses=licenses):  # without candidates the slow queries find nothing
        sent |= {uuid for (uuid,) in fetch(session, _downgrades_alone, scope, **asked)}
        stuck = [uuid for uuid in circle.undowngraded if uuid not in sent]
        unlinked = {uuid for (uuid,) in fetch(session, _unlinks, scope, licenses=licenses, stuck=stuck)}
    return {DOWNGRADE.name: sent & set(licenses), UNLINK.name: unlinked}


def _downgrades(scope: Scope, licenses: Sequence[UUID], plans: Sequence[UUID]) -> Rows:
    return conditions.among(downgrades.due_downgrades(scope, of=_of(plans)), licenses)


def _downgrades_alone(scope: Scope, licenses: Sequence[UUID], plans: Sequence[UUID]) -> Rows:
    return conditions.among(downgrades.waiting_downgrades(scope, of=_of(plans)), licenses)


def _candidates(scope: Scope, licenses: Sequence[UUID]) -> Rows:
    return conditions.among(unlinks.unlink_candidates(scope), licenses)


def _unlinks(scope: Scope, licenses: Sequence[UUID], stuck: Sequence[UUID]) -> Rows:
    kept = or_(conditions.holds(scope), OneOf(HeldLicense.license_uuid, "stuck", stuck))
    return conditions.among(unlinks.unlinkable(scope, held=kept), licenses)


def _rules(scope: Scope, licenses: Sequence[UUID], plans: Sequence[UUID]) -> Rows:
    rules = {
        DOWNGRADE.name: downgrades.downgrade_rules(scope, _of(plans)),
        UNLINK.name: {"list": scope.lists("customers", Agreement.enterprise_customer_uuid)}
        | unlinks.not_unlinked(scope),
    }
    columns = [rules[step][name].label(f"{step}_{name}") for step, names in RULES.items() for name in names]
    return conditions.among(conditions.licenses(License.uuid, *columns), licenses)


def _of(plans: Sequence[UUID]) -> list[ColumnElement[bool]]:
    return [OneOf(Plan.uuid, "plans", plans)]


def _circle(scope: Scope, licenses: Sequence[UUID]) -> Rows:
    columns: tuple[Any, ...] = (
        License.uuid,
        Plan.uuid.label("plan"),
        conditions.readable(Plan.expiration_date).label("expires"),
        HeldLicense.as_of.label("held_at"),
        HeldLicense.step.label("held_step"),
    )
    found = licenses_of_learners(scope, licenses, *columns)
    return found.outerjoin(HeldLicense, HeldLicense.license_uuid == License.uuid)
