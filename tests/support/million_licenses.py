"""A license-manager's database of 1,000,000 licenses, made within the database: for the tests that read its plans.

Of 400 customers one has 60,000 licenses. Most plans are current, or expired and processed; a few are due, some wait for
their renewal. Learner `n` of a customer is the same person in each plan that has as many licenses. Of those whose plan
was processed, three in four are unlinked.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Connection, Engine, text
from sqlalchemy.schema import CreateIndex, DropIndex

from simulator.data.rows import DAY, DOWNGRADED_EVENT, UNLINKED_EVENT, Data
from simulator.data.schema import table

LICENSES = 1_000_000
CUSTOMERS = 400
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Kind:
    """Of plans: expired how many days ago, whether processed, and what renews it ("next": the plan after it)."""

    ago: int
    processed: bool = False
    renewal: str = ""


OLDEST, OLD, ENDED = Kind(800, True, "next"), Kind(435, True), Kind(95, True)
RENEWED, CURRENT, LATER = Kind(95, True, "next"), Kind(-270), Kind(-500)
PRIOR, DUE, WAITING = Kind(366, renewal="next"), Kind(1), Kind(100, renewal="open")
OF_BIG = (OLDEST, ENDED, OLDEST, ENDED, OLDEST, ENDED, CURRENT, CURRENT, DUE, DUE, WAITING, WAITING)
SIZES = (*[5_500] * 6, 2_500, 2_500, *[5_500] * 4)
OF_ALL = (OLDEST, OLD, RENEWED, CURRENT, CURRENT, LATER)
OF_GONE = (OLDEST, OLD, ENDED, ENDED, ENDED, ENDED)  # every fourth customer has no current plan
MORE = {1: (PRIOR, DUE), 2: (DUE,), 3: (WAITING,)}  # of every twentieth customer

# One row for each license: `n` counts those of a plan. Of ten, one is nobody's and one is revoked; the others of a
# renewed plan go on in the next one, as far as that has as many.
EACH = """
FROM subscriptions_subscriptionplan plan
JOIN subscriptions_customeragreement customer ON customer.uuid = plan.customer_agreement_id
JOIN {numbers} ON n <= plan.desired_num_licenses
LEFT JOIN subscriptions_subscriptionplanrenewal renewal ON renewal.prior_subscription_plan_id = plan.uuid
LEFT JOIN subscriptions_subscriptionplan following ON following.uuid = renewal.renewed_subscription_plan_id
  AND n <= following.desired_num_licenses AND n % 10 > 1
"""
LICENSE = """
INSERT INTO subscriptions_license
  (uuid, created, modified, status, subscription_plan_id, user_email, lms_user_id, renewed_to_id, auto_applied)
SELECT {uuid_of_plan}, plan.created, plan.modified,
  CASE n % 10 WHEN 0 THEN 'unassigned' WHEN 1 THEN 'revoked' WHEN 2 THEN 'assigned' ELSE 'activated' END, plan.uuid,
  CASE WHEN n % 10 > 0 THEN concat('Learner-', n, '@', customer.enterprise_customer_slug, '.example') END,
  CASE WHEN n % 10 > 2 THEN n * 1000 + customer.auto_scaling_max_licenses END,
  CASE WHEN following.uuid IS NOT NULL THEN {uuid_of_following} END, plan.is_active
"""
EVENT = """
INSERT INTO subscriptions_licenseevent (created, modified, event_name, license_id)
SELECT plan.expiration_date, plan.expiration_date, '{name}', {uuid_of_plan}
"""
DOWNGRADE = """
INSERT INTO license_expiry_downgrade (license_uuid, run_id, enterprise_customer_uuid, confirmed_at)
SELECT {uuid_of_plan}, customer.uuid, customer.enterprise_customer_uuid, :as_of
"""
HELD = """
INSERT INTO license_expiry_held
  (license_uuid, enterprise_customer_uuid, run_id, step, reason, tries, first_held_at, as_of)
SELECT {uuid_of_plan}, customer.enterprise_customer_uuid, customer.uuid, 'unlink', 'refused', 1, :held_at, :held_at
"""
PLAN_HISTORY = """
INSERT INTO subscriptions_historicalsubscriptionplan ({columns}, history_type, history_date)
SELECT {of_plan}, '~', plan.expiration_date FROM subscriptions_subscriptionplan plan WHERE plan.expiration_processed
"""
LICENSE_HISTORY = """
INSERT INTO subscriptions_historicallicense ({columns}, history_type, history_date)
SELECT {columns}, '+', created FROM subscriptions_license
"""
THOSE = "WHERE plan.expiration_date < :as_of AND following.uuid IS NULL AND n % 10 > 1 AND "
PROCESSED, NOT_PROCESSED = (f"{THOSE} {which} plan.expiration_processed AND " for which in ("", "NOT"))


@dataclass(frozen=True)
class Customer:
    """An enterprise customer, its agreement, and its plans by kind."""

    uuid: UUID
    agreement: UUID
    plans: dict[Kind, UUID]


def lay_down_a_million(engine: Engine, as_of: datetime, licenses: int = LICENSES) -> list[Customer]:
    """Fill license-manager's tables and the ledger's, all empty; give the customers, the biggest first.

    With fewer licenses than a million, all customers have fewer.

    SQLite cannot do it.
    """
    data, drawn = Data(engine, now=as_of), random.Random(1)
    sizes = [size * licenses // LICENSES for size in SIZES]
    customers = [add_customer(data, 0, OF_BIG, sizes)]
    rest = licenses - sum(sizes)
    for left in range(CUSTOMERS - 1, 0, -1):
        mine = rest if left == 1 else int(rest / left * drawn.uniform(0.4, 1.6))
        rest -= mine
        kinds = (*(OF_GONE if left % 4 == 0 else OF_ALL), *MORE.get(left % 20, ()))
        share, over = divmod(mine, len(kinds))
        customers.append(add_customer(data, left, kinds, [share + over, *[share] * (len(kinds) - 1)]))
    data.flush()
    with engine.begin() as connection, in_bulk(connection, max(SIZES)):
        fill(connection, as_of)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        analyze(connection)
    return customers


def add_customer(data: Data, number: int, kinds: Sequence[Kind], sizes: Sequence[int]) -> Customer:
    agreement = data.agreement(slug=f"enterprise-{number}", auto_scaling_max_licenses=number)
    plans = []
    for title, (kind, size) in enumerate(zip(kinds, sizes, strict=True)):
        expires = data.now - kind.ago * DAY
        plan = data.plan(
            agreement,
            expires - 365 * DAY,
            expires,
            expiration_processed=kind.processed,
            title=str(title),
            desired_num_licenses=size,
        )
        plans.append(plan)
    for plan, following, kind in zip(plans, [*plans[1:], None], kinds, strict=True):
        if kind.renewal:
            data.renewal(plan, following if kind.renewal == "next" else None)
    return Customer(agreement.enterprise_customer_uuid, agreement.uuid, dict(zip(kinds, plans, strict=True)))


@contextmanager
def in_bulk(connection: Connection, most: int) -> Iterator[None]:
    """Check no key while rows go in, and build indexes when all are there. No plan has more than so many licenses."""
    indexes = [index for name in ("license", "historicallicense") for index in table(connection.engine, name).indexes]
    if connection.dialect.name == "postgresql":
        for name in ("licenseevent", "license"):
            connection.execute(text(f"ALTER TABLE subscriptions_{name} SET UNLOGGED"))
        connection.execute(text("SET LOCAL session_replication_role = replica"))
    else:
        connection.execute(text("SET unique_checks = 0, foreign_key_checks = 0"))
        connection.execute(text("CREATE TEMPORARY TABLE numbers (n int PRIMARY KEY)"))
        connection.execute(text("INSERT INTO numbers VALUES (:n)"), [{"n": 1 + n} for n in range(most)])
        # Those of its foreign keys InnoDB does not let go.
        indexes = [index for index in indexes if not any(column.foreign_keys for column in index.columns)]
    for index in indexes:
        connection.execute(DropIndex(index))
    yield
    for index in indexes:
        connection.execute(CreateIndex(index))


def fill(connection: Connection, as_of: datetime) -> None:
    uuid_of, numbers = numbering(connection.dialect.name)
    parts = {"uuid_of_plan": uuid_of.format("plan"), "uuid_of_following": uuid_of.format("following")}
    at = as_of.replace(tzinfo=None)
    for into, name, which in (
        (LICENSE, "", ""),
        (EVENT, UNLINKED_EVENT, f"{PROCESSED} n % 4 > 0"),
        (EVENT, DOWNGRADED_EVENT, f"{NOT_PROCESSED} n % 1000 < 100"),
        (DOWNGRADE, "", f"{NOT_PROCESSED} n % 1000 BETWEEN 100 AND 299"),
        (HELD, "", f"{NOT_PROCESSED} n % 1000 BETWEEN 300 AND 349"),
    ):
        statement = into.format(name=name, **parts) + EACH.format(numbers=numbers) + which
        used = {name: value for name, value in (("as_of", at), ("held_at", at - 2 * HOUR)) if f":{name}" in statement}
        connection.execute(text(statement), used)
    for name, statement in (("subscriptionplan", PLAN_HISTORY), ("license", LICENSE_HISTORY)):
        both = {it.name for it in table(connection.engine, f"historical{name}").columns}
        columns = [it.name for it in table(connection.engine, name).columns if it.name in both]
        listed = {"columns": ", ".join(columns), "of_plan": ", ".join(f"plan.{column}" for column in columns)}
        connection.execute(text(statement.format(**listed)))


def numbering(dialect: str) -> tuple[str, str]:
    """SQL for the uuid of license `n` of a plan (whose table is to be named), and for a table of `n`."""
    if dialect == "postgresql":
        return "md5(concat({}.uuid, n))::uuid", "LATERAL generate_series(1, plan.desired_num_licenses) numbers(n)"
    # MariaDB's own uuid type takes no digits without a version and a variant.
    uuid_of = "insert(insert(left(sha2(concat({}.uuid, n), 256), 32), 13, 1, '4'), 17, 1, '8')"
    return uuid_of, "numbers"


def analyze(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("ANALYZE"))
    else:
        names = [
            *table(connection.engine, "license").metadata.tables,
            "license_expiry_downgrade",
            "license_expiry_held",
        ]
        connection.execute(text(f"ANALYZE TABLE {', '.join(names)}"))
