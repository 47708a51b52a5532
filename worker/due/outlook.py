"""Which night is the first to downgrade or unlink a license, if nothing is changed until then.

A night's own selects are asked as if it were then: at the first night, and at those after a moment at which something
may become due. That is when a plan expires, its own or one that protects, some days after that, and when a hold ends.
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

# Nobody is told of what is still later.
HORIZON = timedelta(days=36525)
TICK = timedelta(microseconds=1)

Night: TypeAlias = Callable[[datetime], datetime]
"""The first night at or after a moment (both UTC)."""

# The rules that a night judges by, in the order in which the first that does not hold is told.
RULES = {
    DOWNGRADE.name: ("status", "date", "mark", "confirmed", "expired", "renewals", "held"),
    UNLINK.name: ("status", "date", "list", "renewed", "email", "unlinked", "age"),
}


@dataclass(frozen=True)
class Circle:
    """All licenses that may have a say in what becomes of some.

    Their plans, the moments at which they may make something due, and those of them that are held undowngraded.
    """

    plans: Sequence[UUID]
    moments: Sequence[datetime]
    undowngraded: Sequence[UUID]


@dataclass(frozen=True)
class Outlook:
    """The first night, and the last at which something may become due; by step and license, the one that does it."""

    first: datetime
    last: datetime
    nights: Mapping[tuple[str, UUID], datetime]


def circle_of(session: Session, scope: Scope, licenses: Sequence[UUID]) -> Circle:
    """The licenses of the learners of these, at the scope's enterprise."""
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
    """The nights that will be the first to do something about these licenses of the scope's enterprise.

    `more` are moments at which the renewals of their plans may end.
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
    """The scope of a night at this moment."""
    return replace(scope, as_of=moment, now=moment)


def broken_rules(
    session: Session, scope: Scope, licenses: Sequence[UUID], circle: Circle
) -> dict[tuple[str, UUID], list[str]]:
    """By step and license, the names of those RULES that do not hold at the scope's moment.

    Where all of the unlink hold, only another license can keep the learner linked.
    """
    found = {}
    for uuid, *values in fetch(session, _rules, scope, licenses=licenses, plans=circle.plans):
        held = iter(values)
        for step, names in RULES.items():
            found[step, uuid] = [name for name, holds in zip(names, held, strict=False) if not holds]
    return found


def _due(session: Session, scope: Scope, licenses: Sequence[UUID], circle: Circle) -> dict[str, set[UUID]]:
    """Which of these licenses a night at the scope's moment downgrades, and unlinks, if the LMS takes each call.

    It takes a license off the held list when it has downgraded it. One that is not downgraded keeps its learner linked.
    """
    asked = {"licenses": [*licenses, *circle.undowngraded], "plans": circle.plans}
    sent = {uuid for (uuid,) in fetch(session, _downgrades, scope, **asked)}
    unlinked: set[UUID] = set()
    if fetch(session, _candidates, scope, licenses=licenses):  # or the long queries would find none
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
