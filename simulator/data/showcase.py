"""Ready-made license-manager data: the demo's enterprises, and any number of plain ones for benchmarks."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid5

from sqlalchemy import Engine, inspect, select

from simulator.data.rows import DAY, Agreement, Data
from simulator.data.schema import table

NAMESPACE = UUID("c0ffee00-0000-4000-8000-11ce45e00000")
# The LMS refuses it because it has no @. It is unique, so that a privacy scan can search for it.
MALFORMED_EMAIL = "malformed.address.example"
FLUSH_EVERY = 20_000


@dataclass(frozen=True)
class DemoEnterprise:
    """One enterprise of the demo, with a sentence on what it shows."""

    uuid: UUID
    name: str
    shows: str


@dataclass(frozen=True)
class Demo:
    """The demo's enterprises, those on the unlink list, and the licenses that the LMS will refuse."""

    enterprises: list[DemoEnterprise]
    unlink_enabled: list[UUID]
    planted_held: set[UUID]


@dataclass(frozen=True)
class Case:
    """One enterprise of the demo, and the function that adds its rows."""

    name: str
    shows: str
    lay: Callable[[Data, Agreement], None]
    unlinks: bool = True

    @property
    def slug(self) -> str:
        """Return the enterprise's slug, from which the domain of its learners' addresses is made."""
        return self.name.lower().replace(" ", "-")

    @property
    def uuid(self) -> UUID:
        """Return the enterprise's UUID, the same in every demo."""
        return uuid5(NAMESPACE, self.slug)


def demo(data: Data, now: datetime) -> Demo:
    """Insert the demo's enterprises, with dates relative to `now`; return what they show."""
    data.now = now
    for case in CASES:
        case.lay(data, data.agreement(case.uuid, name=case.name, slug=case.slug))
    data.flush()
    return _describe(data.engine)


def read_demo(engine: Engine) -> Demo | None:
    """Return the demo that a database already contains; None if any of it is missing."""
    if not inspect(engine).has_table("subscriptions_customeragreement"):
        return None
    column = table(engine, "customeragreement").c.enterprise_customer_uuid
    with engine.connect() as connection:
        there = set(connection.execute(select(column)).scalars())
    return _describe(engine) if {case.uuid for case in CASES} <= there else None


def bulk(data: Data, enterprises: int, licenses: int, due_share: float = 0.5, expired_days: int = 100) -> list[UUID]:
    """Insert this number of enterprises and, in all, of licenses; return the enterprises' UUIDs.

    Each has a plan that expired `expired_days` days before `data.now`, unprocessed, with `due_share` of its
    licenses, and a current plan with the others, of other learners. Rows are inserted in parts, so that a
    million licenses need little memory.
    """
    made: list[UUID] = []
    user = 0
    for number in range(enterprises):
        agreement = data.agreement()
        made.append(agreement.enterprise_customer_uuid)
        old = data.plan(agreement, expires=data.now - timedelta(days=expired_days), title="Old")
        current = data.plan(agreement, title="Current")
        share = licenses * (number + 1) // enterprises - licenses * number // enterprises
        for position in range(share):
            user += 1
            data.license(old if position < share * due_share else current, lms_user_id=user)
            if user % FLUSH_EVERY == 0:
                data.flush()
    data.flush()
    return made


def _describe(engine: Engine) -> Demo:
    license = table(engine, "license")
    with engine.connect() as connection:
        held = connection.execute(select(license.c.uuid).where(license.c.user_email == MALFORMED_EMAIL))
        planted = set(held.scalars())
    return Demo(
        enterprises=[DemoEnterprise(case.uuid, case.name, case.shows) for case in CASES],
        unlink_enabled=[case.uuid for case in CASES if case.unlinks],
        planted_held=planted,
    )


def _expired(data: Data, agreement: Agreement, days: float = 120, processed: bool = False) -> UUID:
    expires = data.now - timedelta(days=days)
    return data.plan(agreement, expires=expires, expiration_processed=processed, title=f"Until {expires:%Y-%m-%d}")


def _many(data: Data, plan: UUID, count: int) -> list[UUID]:
    return [data.license(plan) for _ in range(count)]


def _chain(data: Data, agreement: Agreement) -> None:
    first, second, last = (_expired(data, agreement, days) for days in (750, 385, 20))
    data.renewal(first, second, effective=data.now - 750 * DAY)
    data.renewal(second, last, effective=data.now - 385 * DAY)
    for number in range(5):
        email = f"renewed-{number}@{agreement.domain}"
        in_last = data.license(last, email)
        in_second = data.license(second, email, renewed_to=in_last)
        data.license(first, email, renewed_to=in_second)


def _open_renewal(data: Data, agreement: Agreement) -> None:
    waits, bridge = _expired(data, agreement), data.plan(agreement, title="Bridge")
    data.renewal(waits, None, effective=data.now + 7 * DAY)
    _many(data, waits, 3)
    carried_on = f"carried-on@{agreement.domain}"
    data.license(waits, carried_on, renewed_to=data.license(bridge, carried_on))


def _renewed(data: Data, agreement: Agreement) -> None:
    prior, current = _expired(data, agreement, 10), data.plan(agreement, title="Current")
    data.renewal(prior, current, effective=data.now - 10 * DAY)
    for number in range(4):
        email = f"renewed-{number}@{agreement.domain}"
        data.license(prior, email, renewed_to=data.license(current, email))


def _other_case(data: Data, agreement: Agreement) -> None:
    old, current = _expired(data, agreement), data.plan(agreement, title="Current")
    data.license(old, f"Bob.Smith@{agreement.domain}")
    data.license(current, f"bob.smith@{agreement.domain}")
    _many(data, old, 3)


def _changed_email(data: Data, agreement: Agreement) -> None:
    old, current = _expired(data, agreement), data.plan(agreement, title="Current")
    data.license(old, f"maiden.name@{agreement.domain}", lms_user_id=4711)
    data.license(current, f"married.name@{agreement.domain}", lms_user_id=4711)
    data.license(old, lms_user_id=4712)
    _many(data, old, 2)


def _revoked(data: Data, agreement: Agreement) -> None:
    old, current = _expired(data, agreement), data.plan(agreement, title="Current")
    email = f"revoked-since@{agreement.domain}"
    data.license(old, email)
    data.license(current, email, status="revoked")
    _many(data, old, 2)


def _null_email(data: Data, agreement: Agreement) -> None:
    old, current = _expired(data, agreement), data.plan(agreement, title="Current")
    data.license(old, None, status="assigned")
    _many(data, old, 3)
    for _ in range(3):
        data.license(current, status="unassigned")


def _malformed(data: Data, agreement: Agreement) -> None:
    old = _expired(data, agreement)
    _many(data, old, 4)
    data.license(old, MALFORMED_EMAIL, status="assigned")
    _many(data, old, 4)


def _mixed(data: Data, agreement: Agreement) -> None:
    old = _expired(data, agreement, 30)
    for _ in range(5):
        data.license(old, status="unassigned")
        data.license(old, status="revoked")
    data.license(old, status="assigned")
    data.license(old)


def _lay(days: float, licenses: int, processed: bool = False) -> Callable[[Data, Agreement], None]:
    """Return a function that adds one plan expired `days` ago, with this number of activated licenses."""

    def lay(data: Data, agreement: Agreement) -> None:
        _many(data, _expired(data, agreement, days, processed), licenses)

    return lay


def _current(data: Data, agreement: Agreement) -> None:
    _many(data, data.plan(agreement, title="Current"), 5)


CASES = [
    Case("Alder Chain", "Three plans renewed one into the next, all expired: all three are downgraded.", _chain),
    Case(
        "Birch Open Renewal",
        "Its plan waits for a renewal; licenses not renewed within 90 days are downgraded one by one, then unlinked.",
        _open_renewal,
    ),
    Case("Cedar Renewed", "Its plan was renewed into a current one: nothing is due.", _renewed),
    Case(
        "Dogwood Other Case",
        "A learner's e-mail is in a current plan with other capitals: not unlinked.",
        _other_case,
    ),
    Case("Elm Changed Address", "A learner continues under a changed e-mail: not unlinked.", _changed_email),
    Case(
        "Fir Revoked",
        "A learner has a revoked license in a current plan: not unlinked, as in license-manager.",
        _revoked,
    ),
    Case(
        "Ginkgo No Address",
        "A license without an e-mail is downgraded, not unlinked; the others are both.",
        _null_email,
    ),
    Case(
        "Hazel Malformed",
        "The LMS refuses one malformed e-mail: its license is held, the others are unlinked.",
        _malformed,
    ),
    Case("Ilex Not Listed", "It is not on the unlink list: downgraded, nobody unlinked.", _lay(200, 6), False),
    Case("Juniper Thousand", "A plan of 1,000 licenses expired yesterday: ten batches.", _lay(20 / 24, 1000)),
    Case("Katsura Large", "450 learners expired 100 days ago: downgraded, then unlinked.", _lay(100, 450)),
    Case("Larch Empty", "Its expired plan has no licenses: marked processed, no LMS call.", _lay(40, 0)),
    Case("Maple Mixed", "Only assigned and activated licenses of a plan are downgraded.", _mixed),
    Case("Nutmeg Processed", "Downgraded long ago: its learners are unlinked.", _lay(150, 8, True)),
    Case("Oak Current", "Its only plan is current: nothing is due.", _current),
]
