"""license-manager's data for a night of any size, made within the database."""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import Engine, text
from support.million_licenses import analyze, in_bulk, numbering

from simulator.data.rows import DAY, UNLINKED_EVENT, Data

# `n` counts the licenses of a plan; each is another learner's.
LICENSES = """
INSERT INTO subscriptions_license
  (uuid, created, modified, status, subscription_plan_id, user_email, lms_user_id)
SELECT {uuid}, plan.created, plan.modified, 'activated', plan.uuid,
  concat('Learner-', n, '@', plan.title, '.', customer.enterprise_customer_slug, '.example'),
  n + 200000 * customer.auto_scaling_max_licenses + CASE WHEN plan.title = '{others}' THEN 100000 ELSE 0 END
FROM subscriptions_subscriptionplan plan
JOIN subscriptions_customeragreement customer ON customer.uuid = plan.customer_agreement_id
JOIN {numbers} ON n <= plan.desired_num_licenses
"""

DONE = (
    "UPDATE subscriptions_subscriptionplan SET expiration_processed = true WHERE title = 'expired'",
    """INSERT INTO subscriptions_licenseevent (created, modified, event_name, license_id)
       SELECT plan.modified, plan.modified, :event, license.uuid FROM subscriptions_license license
       JOIN subscriptions_subscriptionplan plan ON plan.uuid = license.subscription_plan_id
       WHERE plan.title = 'expired'""",
)


def lay_down(engine: Engine, enterprises: int, licenses: int, *, large: int = 0, protected: bool = False) -> list[UUID]:
    """Give each enterprise so many licenses: half in a plan that expired 100 days ago, half in a current one.

    One has `large` ones instead, if given. When `protected`, the learners of both plans are the same, and the expired
    plans are processed.
    """
    data = Data(engine, now=datetime.now(UTC))
    customers = []
    for number in range(enterprises):
        size = ((number == 0 and large) or licenses) // 2
        agreement = data.agreement(slug=f"enterprise-{number}", auto_scaling_max_licenses=number)
        for title, ends in (("expired", -100), ("current", 100)):
            expires = data.now + ends * DAY
            data.plan(agreement, expires - 365 * DAY, expires, title=title, desired_num_licenses=size)
        customers.append(agreement.enterprise_customer_uuid)
    data.flush()
    uuid_of, numbers = numbering(engine.dialect.name)
    others = "none" if protected else "current"
    filled = LICENSES.format(uuid=uuid_of.format("plan"), numbers=numbers, others=others)
    with engine.begin() as connection, in_bulk(connection, max(licenses, large) // 2):
        connection.execute(text(filled))
        if protected:
            connection.execute(text(DONE[0]))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        analyze(connection)
    return customers


def finish(engine: Engine) -> None:
    """Leave it as a night does: the expired plans processed, each of their learners unlinked."""
    with engine.begin() as connection:
        for statement in DONE:
            connection.execute(text(statement), {"event": UNLINKED_EVENT} if ":event" in statement else {})
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        analyze(connection)
