"""Builds rows of license-manager's tables with few words, for the tests, the demo and the benchmarks.

The same seed, the same `now` and the same calls give the same rows on every engine, UUIDs included.
"""

import random
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import Connection, Engine

from simulator.data.schema import table

Status = Literal["unassigned", "assigned", "activated", "revoked"]
Row = dict[str, Any]

UNLINKED_EVENT = "edx.server.license-manager.expired.license.unlinked"
DOWNGRADED_EVENT = "edx.server.license-manager.expired.license.downgraded"
NEXT_EMAIL = "<the next one>"
DAY = timedelta(days=1)
CHUNK = 5_000

# In the order of the foreign keys: a referenced table comes first.
ORDER = (
    "customeragreement",
    "subscriptionplan",
    "subscriptionplanrenewal",
    "license",
    "licenseevent",
    "historicalsubscriptionplan",
    "historicallicense",
)


@dataclass(frozen=True)
class Agreement:
    """A customer agreement: its id, its enterprise's id, and the domain of its learners' addresses."""

    uuid: UUID
    enterprise_customer_uuid: UUID
    domain: str


class Data:
    """Collects rows and inserts them in one transaction.

    Any column can be given by name, including `uuid` and `created`; the others get sensible values.
    """

    def __init__(self, engine: Engine, seed: int = 1, now: datetime | None = None) -> None:
        """`seed` determines all UUIDs; default dates are relative to `now`.

        Two `Data` on one database need different seeds. `now` defaults to the wall clock.
        """
        self.engine = engine
        self.now = now or datetime.now(UTC)
        self.random = random.Random(seed)
        self._rows: dict[str, list[Row]] = {name: [] for name in ORDER}
        self._domains: dict[UUID, str] = {}
        self._count = 0

    def uuid(self) -> UUID:
        """Return the next UUID of the seed."""
        return UUID(int=self.random.getrandbits(128), version=4)

    def agreement(
        self,
        enterprise_customer_uuid: UUID | None = None,
        name: str | None = None,
        slug: str | None = None,
        purge_after: timedelta = 90 * DAY,
        **columns: Any,
    ) -> Agreement:
        """Add an enterprise's agreement; return its ids."""
        own, enterprise = self._own(columns), self.uuid()
        enterprise = enterprise_customer_uuid or enterprise
        slug = slug or f"enterprise-{enterprise.hex[:8]}"
        self._add(
            "customeragreement",
            columns,
            uuid=own,
            enterprise_customer_uuid=enterprise,
            enterprise_customer_slug=slug,
            enterprise_customer_name=name or slug.replace("-", " ").title(),
            disable_expiration_notifications=False,
            license_duration_before_purge=purge_after,
            disable_onboarding_notifications=False,
            has_custom_license_expiration_messaging=False,
            enable_auto_applied_subscriptions_with_universal_link=False,
            enable_auto_scaling_of_current_plan=False,
        )
        return Agreement(own, enterprise, f"{slug}.example")

    def plan(
        self,
        agreement: Agreement,
        starts: datetime | None = None,
        expires: datetime | None = None,
        is_active: bool = True,
        expiration_processed: bool = False,
        title: str | None = None,
        **columns: Any,
    ) -> UUID:
        """Add a plan of an agreement, by default current for another 180 days; return its id."""
        own, catalog = self._own(columns), self.uuid()
        expires = expires or self.now + 180 * DAY
        self._domains[own] = agreement.domain
        self._add(
            "subscriptionplan",
            columns,
            uuid=own,
            customer_agreement_id=agreement.uuid,
            start_date=starts or min(expires, self.now) - 365 * DAY,
            expiration_date=expires,
            is_active=is_active,
            expiration_processed=expiration_processed,
            title=title or f"Plan {len(self._domains)}",
            enterprise_catalog_uuid=catalog,
            for_internal_use_only=False,
            num_revocations_applied=0,
            revoke_max_percentage=5,
            is_revocation_cap_enabled=False,
            can_freeze_unused_licenses=False,
        )
        return own

    def renewal(
        self, prior: UUID, renewed: UUID | None = None, effective: datetime | None = None, **columns: Any
    ) -> None:
        """Add the renewal of a plan; it is processed if the renewed plan is given."""
        effective = effective or self.now
        self._add(
            "subscriptionplanrenewal",
            columns,
            prior_subscription_plan_id=prior,
            renewed_subscription_plan_id=renewed,
            effective_date=effective,
            renewed_expiration_date=effective + 365 * DAY,
            number_of_licenses=1,
            processed=renewed is not None,
            processed_datetime=effective if renewed is not None else None,
            license_types_to_copy="assigned_and_activated",
            disable_auto_apply_licenses=False,
            exempt_from_batch_processing=False,
        )

    def license(
        self,
        plan: UUID,
        email: str | None = NEXT_EMAIL,
        lms_user_id: int | None = None,
        status: Status = "activated",
        renewed_to: UUID | None = None,
        **columns: Any,
    ) -> UUID:
        """Add a license of a plan; return its id.

        By default it gets an e-mail of its own in the enterprise's domain, unless it is unassigned.
        """
        own = self._own(columns)
        self._count += 1
        if email == NEXT_EMAIL:
            email = (
                None
                if status == "unassigned"
                else f"learner-{self._count}@{self._domains.get(plan, 'learners.example')}"
            )
        since = self.now - 365 * DAY
        self._add(
            "license",
            columns,
            uuid=own,
            subscription_plan_id=plan,
            status=status,
            user_email=email,
            lms_user_id=lms_user_id,
            renewed_to_id=renewed_to,
            activation_key=None if status == "unassigned" else uuid.uuid5(own, "activation key"),
            assigned_date=None if status == "unassigned" else since,
            activation_date=since if status == "activated" else None,
            revoked_date=since if status == "revoked" else None,
            auto_applied=False,
        )
        return own

    def event(self, license: UUID, event_name: str = UNLINKED_EVENT, created: datetime | None = None) -> None:
        """Add an event of a license, by default the one for an unlinked learner."""
        created = created or self.now
        times = {"created": created, "modified": created}
        self._add("licenseevent", {}, license_id=license, event_name=event_name, **times)

    def plan_history(self, plan: UUID, moment: datetime, processed: bool, **columns: Any) -> None:
        """Add a row to the history of a plan that is not flushed yet: its state from this moment on."""
        self._add_history("subscriptionplan", plan, moment, {"expiration_processed": processed, **columns})

    def license_history(self, license: UUID, moment: datetime, plan: UUID, **columns: Any) -> None:
        """Add a row to the history of a license that is not flushed yet: its plan from this moment on."""
        self._add_history("license", license, moment, {"subscription_plan_id": plan, **columns})

    def flush(self) -> None:
        """Insert all rows added since the last flush, in one transaction."""
        with self.engine.begin() as connection:
            self.write(connection)

    def write(self, connection: Connection) -> None:
        """Insert all rows added since the last flush, in the connection's transaction."""
        for name in ORDER:
            rows, into = self._rows[name], table(self.engine, name)
            # Like Django, name every column except the id that the database assigns.
            blank = {column.name: None for column in into.c if column.name not in ("id", "history_id")}
            for start in range(0, len(rows), CHUNK):
                chunk = [blank | row for row in rows[start : start + CHUNK]]
                connection.execute(into.insert(), chunk)
        self._rows = {name: [] for name in ORDER}

    def _own(self, columns: Row) -> UUID:
        # Drawn even if one is given, so that the following UUIDs stay the same.
        drawn = self.uuid()
        given: UUID = columns.get("uuid", drawn)
        return given

    def _add_history(self, table_name: str, own: UUID, moment: datetime, changed: Row) -> None:
        row = next(row for row in reversed(self._rows[table_name]) if row["uuid"] == own)
        of_history = {"history_type": "~", "history_date": moment}
        self._rows[f"historical{table_name}"].append(row | of_history | changed)

    def _add(self, table_name: str, given: Row, **usual: Any) -> None:
        since = self.now - 365 * DAY
        self._rows[table_name].append({"created": since, "modified": since, **usual, **given})
