"""license-manager's data for a night of any size, made within the database."""

from datetime import UTC, datetime
from uuid import UUID

from million import analyze, in_bulk, numbering
from sqlalchemy import Engine, text

from simulator.data import DAY, Data

# `n` counts the licences of a plan; each is another learner's.
LICENSES = """
INSERT INTO subscriptions_license
  (uuid, created, modified, status, subscription_plan_id, user_email, lms_user_id)
SELECT {uuid}, plan.created, plan.modified, 'activated', plan.uuid,
  concat('Learner-', n, '@', plan.title, '.', customer.enterprise_customer_slug, '.example'),
  n + 1000000 * customer.auto_scaling_max_licenses + CASE WHEN plan.title = 'current' THEN 500000 ELSE 0 END
FROM subscriptions_subscriptionplan plan
JOIN subscriptions_customeragreement customer ON customer.uuid = plan.customer_agreement_id
JOIN {numbers} ON n <= plan.desired_num_licenses
"""


def lay_down(engine: Engine, enterprises: int, licenses: int) -> list[UUID]:
    """Give each enterprise so many licences: half in a plan that expired 100 days ago, half in a current one."""
    data = Data(engine, now=datetime.now(UTC))
    customers = []
    for number in range(enterprises):
        agreement = data.agreement(slug=f"enterprise-{number}", auto_scaling_max_licenses=number)
        for title, ends in (("expired", -100), ("current", 100)):
            expires = data.now + ends * DAY
            data.plan(agreement, expires - 365 * DAY, expires, title=title, desired_num_licenses=licenses // 2)
        customers.append(agreement.enterprise_customer_uuid)
    data.flush()
    uuid_of, numbers = numbering(engine.dialect.name, licenses // 2)
    filled = LICENSES.format(uuid=uuid_of.format("plan"), numbers=numbers)
    with engine.begin() as connection, in_bulk(connection):
        connection.execute(text(filled))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        analyze(connection)
    return customers
