"""license-manager's two nightly jobs as a plain loop: one LMS call and one statement at a time.

It repeats what its two commands were seen to do, for whoever wants the comparison without installing license-manager.
Where that was left open, it does the least: one token and one connection to the LMS for all calls, one INSERT for the
events of a batch, no Segment, no log, no models. So license-manager itself takes longer than this loop: it was seen to
send 1.3 statements for each due license, this loop sends little more than 1. The first job is given a range of dates:
by default it takes only plans that expired in the last 24 hours.

`python -m bench.license_manager_loop`, with the environment of `bench.stand`; prints JSON.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import requests
from sqlalchemy import Connection, create_engine, event, or_, select

from bench.bare import token
from simulator.data.rows import UNLINKED_EVENT
from simulator.data.schema import table
from worker.lms.client import DOWNGRADE_PATH, UNLINK_PATH

BATCH = 100
UNLINK_AFTER = timedelta(days=90)
HELD = ("assigned", "activated")


def run(latency: float) -> dict[str, Any]:
    """Run the loop in a process of its own; return its figures, for an LMS that takes `latency` seconds for a call.

    The simulated LMS answers it at once; as one call waits for the other, calls x latency is added to its own time.
    """
    command = [sys.executable, "-m", "bench.license_manager_loop"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    calls = found["calls"]
    return {
        "loop_calls": calls,
        "loop_statements_per_call": round(found["statements"] / calls, 1),
        "loop_ms_per_call": round(1000 * found["processor_seconds"] / calls, 1),
        "loop_peak_mib": round(found["peak_mib"]),
        "loop_wall_seconds": round(found["own_seconds"] + calls * latency, 1),
    }


class Loop:
    """A connection to the database, one to the LMS, and the moment that both jobs judge by."""

    def __init__(self, connection: Connection, lms: str) -> None:
        """Take both, and log in."""
        self.connection, self.lms, self.now = connection, lms, datetime.now(UTC)
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"JWT {token(self.session, lms)}"
        names = ("customeragreement", "subscriptionplan", "subscriptionplanrenewal", "license", "licenseevent")
        self.agreement, self.plan, self.renewal, self.license, self.event = (table(connection.engine, n) for n in names)
        self.history = table(connection.engine, "historicalsubscriptionplan")
        self.calls, self.seconds_in_calls = 0, 0.0

    def expire(self) -> None:
        """Downgrade plan by plan: those that have expired, are not processed and have no renewal, and their priors."""
        plan, renewal = self.plan, self.renewal
        due = (
            select(plan)
            .outerjoin(renewal, renewal.c.prior_subscription_plan_id == plan.c.uuid)
            .where(plan.c.expiration_date <= self.now, plan.c.expiration_processed.is_(False), renewal.c.id.is_(None))
        )
        for last in self.connection.execute(due).all():
            for each in self._with_priors(last):
                self._expire_one(each)

    def _with_priors(self, last: Any) -> list[Any]:
        """The plan and those that it renews, the oldest first."""
        chain, plan, renewal = [last], self.plan, self.renewal
        while True:
            prior = (
                select(plan)
                .join(renewal, renewal.c.prior_subscription_plan_id == plan.c.uuid)
                .where(renewal.c.renewed_subscription_plan_id == chain[0].uuid)
            )
            found = self.connection.execute(prior).first()
            if found is None:
                return chain
            chain.insert(0, found)

    def _expire_one(self, plan: Any) -> None:
        license = self.license
        held = select(license).where(license.c.subscription_plan_id == plan.uuid, license.c.status.in_(HELD))
        licenses = self.connection.execute(held).all()
        long_ago = plan.expiration_date < self.now - timedelta(days=1)
        after = plan.expiration_date.isoformat() if long_ago else None
        for start in range(0, len(licenses), BATCH):
            uuids = [str(each.uuid) for each in licenses[start : start + BATCH]]
            self._post(DOWNGRADE_PATH, {"expired_license_uuids": uuids, "ignore_enrollments_modified_after": after})
        saved = {"expiration_processed": True, "modified": self.now}
        self.connection.execute(self.plan.update().where(self.plan.c.uuid == plan.uuid).values(saved))
        kept = {name: value for name, value in plan._mapping.items() if name in self.history.c} | saved
        self.connection.execute(self.history.insert().values(kept | {"history_type": "~", "history_date": self.now}))

    def unlink(self, customers: list[UUID]) -> None:
        """Unlink customer by customer: whose license expired 90 days ago, and who has no other, asked one by one."""
        for customer in customers:
            agreement = self.agreement
            found = select(agreement).where(agreement.c.enterprise_customer_uuid == customer)
            own = self.connection.execute(found).one().uuid
            due = [each for each in self._expired(own) if not self._has_another(own, each)]
            for start in range(0, len(due), BATCH):
                batch = due[start : start + BATCH]
                body = {"user_emails": [each.user_email for each in batch], "is_relinkable": True}
                self._post(UNLINK_PATH.format(enterprise=customer), body)
                times = {"created": self.now, "modified": self.now, "event_name": UNLINKED_EVENT}
                rows = [times | {"license_id": each.uuid} for each in batch]
                self.connection.execute(self.event.insert().values(rows))

    def _expired(self, agreement: UUID) -> list[Any]:
        license, plan, event = self.license, self.plan, self.event
        unlinked = select(event.c.id).where(event.c.license_id == license.c.uuid, event.c.event_name == UNLINKED_EVENT)
        expired = (
            select(license)
            .join(plan, plan.c.uuid == license.c.subscription_plan_id)
            .where(plan.c.customer_agreement_id == agreement, plan.c.expiration_date < self.now - UNLINK_AFTER)
            .where(license.c.status.in_(HELD), license.c.renewed_to_id.is_(None), ~unlinked.exists())
        )
        return list(self.connection.execute(expired))

    def _has_another(self, agreement: UUID, one: Any) -> bool:
        license, plan = self.license, self.plan
        another = (
            select(license.c.uuid)
            .join(plan, plan.c.uuid == license.c.subscription_plan_id)
            .where(plan.c.customer_agreement_id == agreement, plan.c.uuid != one.subscription_plan_id)
            .where(plan.c.is_active.is_(True), plan.c.start_date <= self.now, plan.c.expiration_date >= self.now)
            .where(or_(license.c.user_email == one.user_email, license.c.lms_user_id == one.lms_user_id))
            .limit(1)
        )
        return self.connection.execute(another).first() is not None

    def _post(self, path: str, body: dict[str, Any]) -> None:
        began = time.perf_counter()
        self.session.post(self.lms + path, json=body, timeout=120)  # whose status its second job does not look at
        self.calls += 1
        self.seconds_in_calls += time.perf_counter() - began


def main() -> None:
    """Run both jobs and print what they took."""
    statements = 0

    def count(*_: Any) -> None:
        nonlocal statements
        statements += 1

    listed = json.loads(Path(os.environ["LICENSE_EXPIRY_CFG"]).read_text())
    (customers,) = listed.values()
    engine = create_engine(os.environ["DATABASE_URL"], isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        loop = Loop(connection, os.environ["LMS_URL"])
        event.listen(engine, "before_cursor_execute", count)
        began, processor = time.perf_counter(), time.process_time()
        jobs: list[Callable[[], None]] = [loop.expire, lambda: loop.unlink([UUID(each) for each in customers])]
        for job in jobs:
            job()
        took = {
            "calls": loop.calls,
            "statements": statements,
            "own_seconds": time.perf_counter() - began - loop.seconds_in_calls,
            "processor_seconds": time.process_time() - processor,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    print(json.dumps(took))  # noqa: T201


if __name__ == "__main__":
    main()
