"""Inserts license events: license-manager's records of actions on a license."""

from collections.abc import Sequence
from typing import cast
from uuid import UUID

from sqlalchemy import String, Table, bindparam, insert, select, true
from sqlalchemy.orm import Session

from worker.db.license_manager_tables import LicenseEvent
from worker.db.sql import DatabaseNow, of_licenses

_NOW = select(DatabaseNow().label("now")).offset(0).subquery()  # evaluated once, the same for all rows
_INSERT_EVENTS = insert(cast(Table, LicenseEvent.__table__)).from_select(
    ["license_id", "event_name", "created", "modified"],
    of_licenses(bindparam("event_name", None, String()), _NOW.c.now, _NOW.c.now.label("modified")).join(_NOW, true()),
)


def insert_events(session: Session, licenses: Sequence[UUID], name: str) -> None:
    """Insert an event with this name for each of these licenses, at the database's present time."""
    session.execute(_INSERT_EVENTS, {"event_name": name, "licenses": licenses})
