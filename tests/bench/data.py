"""license-manager's data for a night of any size, made within the database."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import Engine, text
from support.million_licenses import analyze, in_bulk, numbering

from simulator.data.rows import DAY, UNLINKED_EVENT, Data

# `n` counts the licenses of a plan. num_revocations_applied holds how many people earlier plans have, so that nobody
# has licenses in two plans; auto_scaling_max_licenses is 0 where all licenses of a plan are one learner's.
LICENSES = """
INSERT INTO subscriptions_license
  (uuid, created, modified, status, subscription_plan_id, user_email, lms_user_id)
SELECT {uuid}, plan.created, plan.modified, 'activated', plan.uuid,
  concat('Learner-', plan.num_revocations_applied + n * customer.auto_scaling_max_licenses,
         '@', customer.enterprise_customer_slug, '.example'),
  plan.num_revocations_applied + n * customer.auto_scaling_max_licenses
FROM subscriptions_subscriptionplan plan
JOIN subscriptions_customeragreement customer ON customer.uuid = plan.customer_agreement_id
JOIN {numbers} ON n <= plan.desired_num_licenses
"""

DONE = (
    "UPDATE subscriptions_subscriptionplan SET expiration_processed = true WHERE title LIKE 'expired%'",
    """INSERT INTO subscriptions_licenseevent (created, modified, event_name, license_id)
       SELECT plan.modified, plan.modified, :event, license.uuid FROM subscriptions_license license
       JOIN subscriptions_subscriptionplan plan ON plan.uuid = license.subscription_plan_id
       WHERE plan.title LIKE 'expired%'""",
)


@dataclass(frozen=True)
class Layout:
    """How many enterprises, the licenses of each, and the plans of each: half of them expired.

    The first enterprise has `large` licenses instead, if not 0. With `one_person`, all licenses of a plan are one
    learner's.
    """

    enterprises: int
    licenses: int
    plans: int = 2
    large: int = 0
    one_person: bool = False

    def __str__(self) -> str:
        """Enterprises x licenses, and what is unusual."""
        plans = f", {self.plans} plans" if self.plans > 2 else ""
        large = f", one with {self.large}" if self.large else ""
        return f"{self.enterprises}x{self.licenses}{plans}{large}{', one learner' if self.one_person else ''}"

    def sizes(self) -> Iterator[int]:
        """Yield the licenses of each plan of each enterprise."""
        for number in range(self.enterprises):
            yield ((number == 0 and self.large) or self.licenses) // self.plans

    @property
    def all_licenses(self) -> int:
        """All licenses, those that are not due included."""
        return sum(self.sizes()) * self.plans

    @property
    def due(self) -> int:
        """Licenses to be downgraded, all of them to be unlinked too."""
        return self.all_licenses // 2

    @property
    def people(self) -> int:
        """Learners, all of them linked at first; half of them are due to be unlinked."""
        return self.enterprises * self.plans if self.one_person else self.all_licenses

    def lay_down(self, engine: Engine) -> list[UUID]:
        """Fill an empty database; return the enterprises' UUIDs."""
        return lay_down(engine, **asdict(self))


def lay_down(
    engine: Engine,
    enterprises: int,
    licenses: int,
    *,
    plans: int = 2,
    large: int = 0,
    one_person: bool = False,
    protected: bool = False,
) -> list[UUID]:
    """Give each enterprise licenses: half in plans that expired 100 days ago, half in current ones; return the UUIDs.

    The numbers are those of `Layout`. When `protected`, each learner of an expired plan also has a license in a current
    one, and the expired plans are processed.
    """
    data = Data(engine, now=datetime.now(UTC))
    customers, people = [], 0
    sizes = list(Layout(enterprises, licenses, plans, large).sizes())
    for number, size in enumerate(sizes):
        agreement = data.agreement(slug=f"enterprise-{number}", auto_scaling_max_licenses=int(not one_person))
        for plan in range(plans):
            is_current = plan >= plans // 2
            expires = data.now + (100 if is_current else -100) * DAY
            first = people + (plan % (plans // 2) if protected else plan) * size
            data.plan(
                agreement,
                expires - 365 * DAY,
                expires,
                title=f"{'current' if is_current else 'expired'} {plan}",
                desired_num_licenses=size,
                num_revocations_applied=first,
            )
        people += plans * size
        customers.append(agreement.enterprise_customer_uuid)
    data.flush()
    uuid_of, numbers = numbering(engine.dialect.name)
    with engine.begin() as connection, in_bulk(connection, max(sizes)):
        connection.execute(text(LICENSES.format(uuid=uuid_of.format("plan"), numbers=numbers)))
        if protected:
            connection.execute(text(DONE[0]))
    _analyze(engine)
    return customers


def finish(engine: Engine) -> None:
    """Leave it as a night does: the expired plans processed, each of their learners unlinked."""
    with engine.begin() as connection:
        for statement in DONE:
            connection.execute(text(statement), {"event": UNLINKED_EVENT} if ":event" in statement else {})
    _analyze(engine)


def _analyze(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        analyze(connection)
