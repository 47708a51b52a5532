"""The enterprises of a chaos night, each laid down by a function that says what it is there for."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID

from simulator.data.rows import DAY, Agreement, Data
from simulator.data.showcase import MALFORMED_EMAIL
from simulator.lms.state import EnrollmentFault


@dataclass
class Enterprise:
    """One enterprise being laid: shorthands for its rows, and what is to be known of them besides."""

    data: Data
    agreement: Agreement
    sizes: random.Random
    processed: set[UUID] = field(default_factory=set)
    unlinked: set[UUID] = field(default_factory=set)
    planted: dict[UUID, EnrollmentFault] = field(default_factory=dict)
    two_accounts: set[str] = field(default_factory=set)

    def expired(self, days: float, processed: bool = False) -> UUID:
        """Add a plan that expired so many days ago."""
        expires = self.data.now - timedelta(days=days)
        plan = self.data.plan(self.agreement, expires=expires, expiration_processed=processed, title=f"{days} days ago")
        if processed:
            self.processed.add(plan)
        return plan

    def current(self) -> UUID:
        """Add a plan that is current."""
        return self.data.plan(self.agreement, title="Current")

    def learner(self, plan: UUID, fault: EnrollmentFault | None = None, **columns: Any) -> UUID:
        """Add a license, now and then with a user's number or not yet activated; or one that the LMS refuses."""
        user = self.sizes.choice([None, self.sizes.getrandbits(31)])
        columns = {"status": self.sizes.choice(["assigned", "activated"]), "lms_user_id": user, **columns}
        license = self.data.license(plan, **columns)
        if fault is not None:
            self.planted[license] = fault
        return license

    def learners(self, plan: UUID, least: int, most: int) -> None:
        """Add so many licenses, and beside them one that is nobody's and one that was revoked."""
        for _ in range(self.sizes.randint(least, most)):
            self.learner(plan)
        self.data.license(plan, status="unassigned")
        self.data.license(plan, status="revoked")

    def email(self, name: str) -> str:
        """An address of this enterprise's."""
        return f"{name}@{self.agreement.domain}"


@dataclass(frozen=True)
class Case:
    """An enterprise, whether it is on the unlink list, and whether anything of it is due."""

    name: str
    lay: Callable[[Enterprise], None]
    unlinks: bool = True
    due: bool = True


def chain(site: Enterprise) -> None:
    """A is renewed into B and B into C, and all have expired: all are downgraded, who was not carried on unlinked."""
    first, second, last = (site.expired(days) for days in (750, 385, 100))
    site.data.renewal(first, second, effective=site.data.now - 750 * DAY)
    site.data.renewal(second, last, effective=site.data.now - 385 * DAY)
    for number in range(site.sizes.randint(12, 16)):
        email = site.email(f"renewed-{number}")
        carried = site.learner(last, email=email)
        if number % 3:
            carried = site.learner(second, email=email, renewed_to=carried)
        if number % 3 == 2:
            site.learner(first, email=email, renewed_to=carried)
    site.learners(first, 2, 4)


def waiting(site: Enterprise) -> None:
    """A plan waits for its renewal, its learners' 90 days being over: downgraded one by one; and one is due."""
    waits, bridge, old = site.expired(120), site.current(), site.expired(200)
    site.data.renewal(waits, None, effective=site.data.now + 7 * DAY)
    site.learners(waits, 12, 16)
    site.learner(waits, "locked")
    email = site.email("carried-on")
    site.learner(waits, email=email, renewed_to=site.learner(bridge, email=email))
    site.learners(old, 5, 8)


def protected(site: Enterprise) -> None:
    """Downgraded but not unlinked: the same address in other letters, the same user, a revoked license."""
    old, current = site.expired(120), site.current()
    site.learner(old, email=site.email("Bob.Smith"))
    site.learner(current, email=site.email("bob.smith"))
    site.learner(old, email=site.email("maiden.name"), lms_user_id=4711)
    site.learner(current, email=site.email("married.name"), lms_user_id=4711)
    site.learner(old, email=site.email("revoked.since"))
    site.data.license(current, email=site.email("revoked.since"), status="revoked")
    site.learners(old, 10, 20)


def processed(site: Enterprise) -> None:
    """Downgraded long ago, and one learner unlinked: the others are still to be."""
    plan = site.expired(150, processed=True)
    site.learners(plan, 12, 20)
    gone = site.learner(plan)
    site.data.event(gone, created=site.data.now - 30 * DAY)
    site.unlinked.add(gone)


def recent(site: Enterprise) -> None:
    """Expired ten days ago: downgraded, nobody is unlinked yet."""
    site.learners(site.expired(10), 12, 25)


def unlisted(site: Enterprise) -> None:
    """Not on the unlink list: downgraded, nobody is ever unlinked."""
    site.learners(site.expired(200), 12, 18)


def no_address(site: Enterprise) -> None:
    """A license without an e-mail is downgraded and nobody; and a plan of this very day is sent without a date."""
    old, today = site.expired(120), site.expired(0.5)
    site.learner(old, email=None)
    site.learners(old, 5, 9)
    site.learners(today, 4, 7)


def large(site: Enterprise) -> None:
    """Enough for a dozen batches of each kind."""
    site.learners(site.expired(100), 60, 60)


def locked(site: Enterprise) -> None:
    """A fixed enrollment (422), a course without overview (500); the first learner has two plans."""
    old, older = site.expired(120), site.expired(300)
    site.learners(old, 10, 18)
    site.learner(old, "locked", email=site.email("two.plans"))
    site.learner(older, email=site.email("two.plans"))
    site.learner(old, "no_overview")
    site.learners(older, 3, 6)


def no_history(site: Enterprise) -> None:
    """An enrollment without history: a 500 where a date is given."""
    plan = site.expired(100)
    site.learners(plan, 11, 20)
    site.learner(plan, "no_history")


def refused(site: Enterprise) -> None:
    """Downgraded; but the LMS unlinks neither a malformed address (400) nor one that two accounts have (500)."""
    plan, double = site.expired(110), site.email("two.accounts")
    site.learner(plan, email=MALFORMED_EMAIL)
    site.learners(plan, 10, 18)
    site.learner(plan, email=double)
    site.two_accounts.add(double)


def twice(site: Enterprise) -> None:
    """Learners with a license in each of two expired plans."""
    old, older = site.expired(100), site.expired(200)
    for number in range(3):
        email = site.email(f"twice-{number}")
        site.learner(old, email=email)
        site.learner(older, email=email)
    site.learners(old, 8, 12)
    site.learners(older, 5, 8)


def nobody(site: Enterprise) -> None:
    """A plan without licenses: marked as processed, nothing is sent."""
    site.expired(40)


def current(site: Enterprise) -> None:
    """Nothing is due."""
    site.learners(site.current(), 5, 5)


CASES = [
    Case("chain", chain),
    Case("waiting", waiting),
    Case("protected", protected),
    Case("processed", processed),
    Case("recent", recent),
    Case("unlisted", unlisted, unlinks=False),
    Case("no address", no_address),
    Case("large", large),
    Case("locked", locked),
    Case("no history", no_history),
    Case("refused", refused),
    Case("twice", twice),
    Case("nobody", nobody),
    Case("current", current, due=False),
]
