"""Sends license-manager's `expired` lifecycle events with Segment's own library, which no other module imports.

The events are optional. An error in sending them never fails a night, and delays it only by a bounded time.
"""

import atexit
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from threading import Thread
from typing import Any
from uuid import UUID

from sqlalchemy import Boolean, ColumnElement, Select, String, func, inspect, literal_column, select
from sqlalchemy.orm import Session, aliased

from worker.db.license_manager_tables import CustomerAgreement, License, SubscriptionPlan
from worker.db.transactions import Database
from worker.db.types import DjangoUUID, UTCDateTime
from worker.errors import LicenseExpiryError, Unavailable
from worker.logs import get_logger

log = get_logger(__name__)

EXPIRED_EVENT = "edx.server.license-manager.license-lifecycle.expired"
UPLOAD_SIZE = 100
# The longest time for one upload, shorter than the shortest lease that the settings allow.
WAIT_SECONDS = 10.0
_LIMITS = {"timeout": 4, "max_retries": 2, "max_total_backoff_duration": 3, "max_rate_limit_duration": 5}
_OPTIONS: dict[str, Any] = {"upload_size": UPLOAD_SIZE, "upload_interval": 0.05, **_LIMITS}
# Columns that only these events need and that some releases of license-manager lack.
_EXTRA: dict[Any, dict[str, Any]] = {
    License: {"activation_key": DjangoUUID(), "auto_applied": Boolean()}
    | dict.fromkeys(("assigned_date", "activation_date"), UTCDateTime()),
    CustomerAgreement: {"enterprise_customer_slug": String()},
}


@dataclass(frozen=True)
class Lifecycle:
    """Sends lifecycle events to Segment; does nothing without a `key`.

    No upload begins after `seconds`. `host` None means Segment's default.
    """

    key: str = field(repr=False)
    include_email: bool
    seconds: float
    host: str | None = None

    def tell(self, database: Database, guard: Callable[[], object], plans: Sequence[UUID]) -> None:
        """Send the events of these plans, whose marks are committed, upload by upload; stop at the first error.

        `guard` is called before each upload; an error it raises stops the sending. Raises nothing: logs one warning
        with the number of events that were not sent.
        """
        if not self.key or not plans:
            return
        sent, events = 0, None
        end = time.monotonic() + self.seconds
        try:
            events = database.transact(lambda session: session.execute(_count(plans)).scalar_one())
            for rows in _uploads(database, plans):
                guard()
                if time.monotonic() >= end:
                    raise Unavailable("too_slow", f"Segment did not take them within {self.seconds:.0f} s")
                self._send(rows)
                sent += len(rows)
        except Exception as error:
            # The text of a library's error may contain an e-mail address, so only its type is logged.
            why = str(error) if isinstance(error, LicenseExpiryError) else type(error).__name__
            unsent = None if events is None else max(0, events - sent)
            log.warning("lifecycle events not sent", events=unsent, sent=sent, plans=len(plans), error=why)
        else:
            log.info("lifecycle events sent", events=sent, plans=len(plans))

    def _send(self, rows: Sequence[Any]) -> None:
        """Send one upload with a new client, so that a fork inherits none. Raises Unavailable if it is not accepted."""
        from segment.analytics.client import Client

        logging.getLogger("segment").disabled = True  # it logs whole events
        failures: list[Exception] = []
        client = Client(self.key, self.host, on_error=lambda error, _: failures.append(error), **_OPTIONS)
        atexit.unregister(client.join)  # would wait for a call that gets no answer
        # The library's time-out restarts with each byte, so a flush may never end: a daemon thread does it.
        flushing = Thread(target=client.shutdown, daemon=True)
        try:
            for row in rows:
                client.track(user_id=row.lms_user_id, event=EXPIRED_EVENT, properties=self._properties(row))
        finally:
            flushing.start()
        flushing.join(WAIT_SECONDS)
        if flushing.is_alive():
            raise Unavailable("timeout", f"Segment did not take an upload within {WAIT_SECONDS:.0f} s")
        if failures:
            raise _unavailable(failures[0])

    def _properties(self, row: Any) -> dict[str, Any]:
        return {
            "license_uuid": str(row.uuid),
            "license_activation_key": str(row.activation_key or ""),
            "previous_license_uuid": str(row.previous or ""),
            "assigned_date": _text(row.assigned_date),
            "activation_date": _text(row.activation_date),
            "assigned_lms_user_id": row.lms_user_id,
            "assigned_email": (row.user_email or "") if self.include_email else "",
            "expiration_processed": True,
            "auto_applied": bool(row.auto_applied),
            "enterprise_customer_uuid": str(row.enterprise_customer_uuid),
            "customer_agreement_uuid": str(row.agreement),
            "enterprise_customer_slug": row.enterprise_customer_slug,
            "enterprise_customer_name": row.enterprise_customer_name,
        }


def _unavailable(error: Exception) -> Unavailable:
    """Return the reason why an upload failed, without the answer's text, which may repeat an e-mail address."""
    if status := getattr(error, "status", None):
        return Unavailable(f"http_{status}", f"Segment answered {status}")
    if type(error) is Exception:  # raised by the library for a Retry-After longer than its limits
        return Unavailable("throttled", "Segment's Retry-After is longer than the limit")
    return Unavailable("connection_error", f"Segment cannot be reached ({type(error).__name__})")


def _text(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ") if moment else ""


def _sendable(query: Select[Any], plans: Sequence[UUID]) -> Select[Any]:
    """Narrow to the licenses with an event: as in license-manager, not if the learner's LMS user id is NULL or 0."""
    return query.where(
        License.subscription_plan_id.in_(plans), License.renewed_to_id.is_(None), License.lms_user_id != 0
    )


def _count(plans: Sequence[UUID]) -> Select[Any]:
    return _sendable(select(func.count()).select_from(License), plans)


def _uploads(database: Database, plans: Sequence[UUID]) -> Iterator[Sequence[Any]]:
    """Yield the rows of each upload, UPLOAD_SIZE at most, plan by plan in the order of license UUIDs."""
    extra = database.transact(_extra)
    previous = aliased(License)
    columns = (
        License.uuid,
        License.lms_user_id,
        License.user_email,
        previous.uuid.label("previous"),
        CustomerAgreement.uuid.label("agreement"),
        CustomerAgreement.enterprise_customer_uuid,
        CustomerAgreement.enterprise_customer_name,
        *extra,
    )
    query = (
        select(*columns)
        .join(SubscriptionPlan, SubscriptionPlan.uuid == License.subscription_plan_id)
        .join(CustomerAgreement, CustomerAgreement.uuid == SubscriptionPlan.customer_agreement_id)
        .outerjoin(previous, previous.renewed_to_id == License.uuid)
    )
    query = query.order_by(License.uuid).limit(UPLOAD_SIZE)
    for plan in plans:
        upload = _sendable(query, [plan])
        while rows := database.transact(partial(_fetch, query=upload)):
            yield rows
            upload = _sendable(query, [plan]).where(License.uuid > rows[-1].uuid)


def _fetch(session: Session, query: Select[Any]) -> Sequence[Any]:
    return session.execute(query).all()


def _extra(session: Session) -> list[ColumnElement[Any]]:
    """Return the columns of _EXTRA, with '' for each that the database lacks."""
    inspector = inspect(session.connection())
    found: list[ColumnElement[Any]] = []
    for model, columns in _EXTRA.items():
        table = model.__tablename__
        there = {column["name"] for column in inspector.get_columns(table)}
        for name, kind in columns.items():
            value = literal_column(f"{table}.{name}", kind) if name in there else literal_column("''", String())
            found.append(value.label(name))
    return found
