"""A night of fixed data, and what it leaves: to compare one database with another, and one server's settings."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Engine

from simulator.data.rows import DAY, Data
from simulator.lms.server import Simulator
from support.databases import with_tables
from support.runs import LICENSE_MANAGERS, Make, Row, batches_of, night, ready, rows, sent, times_sent, unlinking
from worker.db.ledger_tables import Run
from worker.db.license_manager_tables import UNLINKED_EVENT


@dataclass(frozen=True)
class Left:
    """All rows without what no two nights have in common; and the calls, in their order and counted."""

    rows: dict[str, list[Row]]
    sent: list[list[list[str]]]
    times_sent: list[Counter[str]]


def night_left(engine: Engine, lms: Simulator, make_test_deps: Make, now: datetime, url: str = "") -> Left:
    """Lay rows and carry a night through, in this process and over the engine's URL or another one of its database."""
    data = Data(engine, seed=7, now=now)
    enterprises = [lay_night(data) for _ in range(2)]
    ready(data, lms)
    url = url or engine.url.render_as_string(hide_password=False)
    night(make_test_deps(**batches_of(2), **unlinking(*enterprises), DATABASE_URL=url, LMS_URL=lms.url))
    calls = [sent(lms, "downgrade"), sent(lms, "unlink")]
    return Left(without_numbers(normalised(engine)), calls, [times_sent(lms, "downgrade"), times_sent(lms, "unlink")])


def night_on_sqlite(folder: Path, make_test_deps: Make, now: datetime) -> Left:
    """The same on a database of its own in this folder, with an LMS of its own."""
    with with_tables(f"sqlite:///{folder}/here.sqlite3") as engine, Simulator(engine) as lms:
        return night_left(engine, lms, make_test_deps, now)


def lay_night(data: Data) -> UUID:
    """An enterprise with every kind of work but held licenses, and with rows that a night must leave alone."""
    agreement = data.agreement()
    filled: Row = {
        "salesforce_opportunity_id": "0061W00001abcdefGH",
        "salesforce_opportunity_line_item": "00k1W00001abcdefGH",
        "last_freeze_timestamp": data.now - 40 * DAY,
        "should_auto_apply_licenses": True,
        "desired_num_licenses": 12,
        "product_id": 3,
        "num_revocations_applied": 2,
        "is_revocation_cap_enabled": True,
    }
    old = data.plan(agreement, expires=data.now - 120 * DAY, title="Old: 5%, “quoted”", **filled)
    empty = data.plan(agreement, expires=data.now - 40 * DAY, is_active=False, title="Empty")
    done = data.plan(agreement, expires=data.now - 130 * DAY, expiration_processed=True, title="Done")
    waiting = data.plan(agreement, expires=data.now - 110 * DAY, title="Waiting")
    current = data.plan(agreement, title="Current")
    data.renewal(waiting, None)
    data.license(empty, status="unassigned")
    for plan, learners in ((old, 5), (done, 2), (waiting, 3), (current, 2)):
        for _ in range(learners):
            data.license(plan)
    data.event(data.license(done), UNLINKED_EVENT, created=data.now - DAY)
    return agreement.enterprise_customer_uuid


def normalised(engine: Engine) -> dict[str, list[Row]]:
    """All rows that a night can leave, but for what no two nights have in common: the moment, and the run's id."""
    found: dict[str, list[Row]] = {name: rows(engine, name) for name in LICENSE_MANAGERS} | {"run": rows(engine, Run)}
    runs = {row["id"]: "the run" for row in found["run"]}
    start = min(row["opened_at"] for row in found["run"])
    return {
        name: sorted(({key: _plain(value, start, runs) for key, value in row.items()} for row in many), key=repr)
        for name, many in found.items()
    }


def _plain(value: Any, start: datetime, runs: dict[UUID, str]) -> Any:
    if isinstance(value, datetime):
        return "this night" if value >= start - timedelta(seconds=60) else value
    if isinstance(value, str) and value.startswith("license-expiry, run "):
        return "of the run"
    return runs.get(value, value) if isinstance(value, UUID) else value


def without_numbers(found: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Without what the database numbers: the order in a batch is that of the UUIDs, which MariaDB sorts its own way."""
    numbers = ("id", "history_id")
    return {
        name: sorted(({key: row[key] for key in row if key not in numbers} for row in many), key=repr)
        for name, many in found.items()
    }
