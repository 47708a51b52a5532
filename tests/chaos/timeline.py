"""What license-manager's jobs and people did in a night, and how its rows were at each moment between.

A night's judge asks it what a request may have been based on. It holds e-mail addresses, which its repr does not show.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, select

from chaos.data import LaidData
from simulator.data.schema import table

Row = dict[str, Any]


@dataclass(frozen=True)
class Deed:
    """Something that was done to license-manager's tables, in a transaction between two moments, and to which rows."""

    kind: str
    enterprise: UUID
    began: datetime
    ended: datetime
    about: tuple[UUID, ...]


@dataclass(frozen=True)
class Rows:
    """An enterprise's rows of license-manager's tables, as they are at one moment."""

    plans: list[Row] = field(repr=False)
    renewals: list[Row] = field(repr=False)
    licenses: list[Row] = field(repr=False)

    def all(self) -> Iterator[Row]:
        """Each of them that has a UUID."""
        yield from self.plans
        yield from self.licenses


@dataclass(frozen=True)
class Version:
    """Rows as they were from one moment, when the transaction began that made them, to another, when one had changed
    them. Where two versions overlap, either may be what a worker has read.
    """

    since: datetime
    until: datetime | None
    rows: Rows


class Timeline:
    """The versions of all enterprises' rows in a night, and the deeds between them."""

    def __init__(self) -> None:
        self.deeds: list[Deed] = []
        self.linked: set[tuple[UUID, str]] = set()
        """The learners whom somebody linked to their enterprise at the LMS, by enterprise and address"""
        self.history: set[tuple[UUID, datetime]] = set()
        """The rows that were added to the history of plans, by plan and moment: a worker's marks are not among them"""
        self._versions: dict[UUID, list[Version]] = {}

    @property
    def touched(self) -> frozenset[UUID]:
        """The enterprises to which something was done."""
        return frozenset(deed.enterprise for deed in self.deeds)

    def begin(self, engine: Engine, laid_data: LaidData) -> None:
        """Note all rows as they were laid."""
        assert laid_data.laid_at is not None
        with engine.connect() as connection:
            for enterprise in laid_data.enterprises:
                rows = read(engine, connection, enterprise)
                self._versions[enterprise] = [Version(laid_data.laid_at, None, rows)]

    def note(self, deed: Deed, rows: Rows) -> None:
        """Note what was done, and the rows of its enterprise after it."""
        self.deeds.append(deed)
        versions = self._versions[deed.enterprise]
        last = versions[-1]
        versions[-1:] = [Version(last.since, deed.ended, last.rows), Version(deed.began, None, rows)]

    def between(self, enterprise: UUID, since: datetime, until: datetime) -> list[Version]:
        """The versions of an enterprise's rows that somebody may have read between these moments, the newest first."""
        return [
            version
            for version in reversed(self._versions[enterprise])
            if version.since <= until and (version.until is None or version.until >= since)
        ]

    def ids(self) -> set[UUID]:
        """The UUIDs of everything that the enterprises have, or had, to which something was done."""
        found = set(self.touched)
        for enterprise in self.touched:
            for version in self._versions[enterprise]:
                found |= {row["uuid"] for row in version.rows.all()}
                found |= {row["customer_agreement_id"] for row in version.rows.plans}
        return found


def read(engine: Engine, connection: Connection, enterprise: UUID) -> Rows:
    """Read an enterprise's rows in a transaction, each kind in the order of its keys."""
    agreement, plan, renewal, license = (
        table(engine, name) for name in ("customeragreement", "subscriptionplan", "subscriptionplanrenewal", "license")
    )
    own = select(agreement.c.uuid).where(agreement.c.enterprise_customer_uuid == enterprise)
    plans = select(plan.c.uuid).where(plan.c.customer_agreement_id.in_(own))

    def rows(what: Any, of: Any, wanted: Any, key: str = "uuid") -> list[Row]:
        found = connection.execute(select(what).where(of.in_(wanted)))
        return sorted((dict(row._mapping) for row in found), key=lambda row: str(row[key]))

    return Rows(
        rows(plan, plan.c.customer_agreement_id, own),
        rows(renewal, renewal.c.prior_subscription_plan_id, plans, "prior_subscription_plan_id"),
        rows(license, license.c.subscription_plan_id, plans),
    )
