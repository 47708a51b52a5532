"""Nights of the past, laid into the ledger in bulk: as many enterprises and days as a page can be asked for."""

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, insert, text, update

from simulator.data.rows import DAY, Data
from worker.db.ledger_tables import Heartbeat, HeldLicense, LmsCall, Night, Retry, Run
from worker.db.sql import Rows
from worker.ledger.order import Phase

NAMES = ("Harbour", "Meadow", "Lantern", "Juniper", "Cobalt", "Saffron", "Orchard", "Granite", "Willow", "Beacon")
KINDS = ("University", "Logistics", "Health", "Foundation", "Energy", "Bank", "Institute", "Museum")


@dataclass(frozen=True)
class Past:
    """What was laid: the enterprises, and when the last of the nights was scheduled for."""

    enterprises: list[UUID]
    last: datetime
    now: datetime


def lay_past(engine: Engine, enterprises: int, nights: int = 1, trouble: float = 0.02, live: int = 0) -> Past:
    """Lay so many nightly runs; of each night's a share had trouble, and of the last night's `live` have not ended.

    The last night began forty minutes ago; `trouble` is the share that failed, and twice that the share that retried.
    """
    data, dice = Data(engine, seed=enterprises), random.Random(1)
    ids = sorted(
        data.agreement(name=f"{NAMES[n % 10]} {KINDS[n // 10 % 8]} {n}").enterprise_customer_uuid
        for n in range(enterprises)
    )
    data.flush()
    last = (data.now - timedelta(minutes=40)).replace(microsecond=0)
    rows: dict[type[Any], list[dict[str, Any]]] = {Night: [], Run: [], Retry: [], HeldLicense: [], LmsCall: []}
    for number in range(nights):
        scheduled = last - number * DAY
        rows[Night].append({"scheduled_for": scheduled, "opened_at": scheduled, "lease_until": None, "tries": 1})
        for place, enterprise in enumerate(ids):
            is_live = number == 0 and place >= enterprises - live
            _lay_run(rows, data, dice, (scheduled, enterprise, place / enterprises, trouble, is_live))
    with engine.begin() as connection:
        for table, made in rows.items():
            for first in range(0, len(made), 5_000):
                connection.execute(insert(table), made[first : first + 5_000])
        connection.execute(update(Heartbeat).values(reconciled_at=data.now))
    return Past(ids, last, data.now)


def _lay_run(rows: Any, data: Data, dice: random.Random, what: tuple[datetime, UUID, float, float, bool]) -> None:
    scheduled, enterprise, place, trouble, live = what

    def later(moment: datetime, least: float, most: float) -> datetime:
        return moment + timedelta(seconds=dice.uniform(least, most))

    opened = later(scheduled, 0.1, 2)
    began = later(opened, 1, 3) + timedelta(minutes=25 * place)
    failed, retried = dice.random() < trouble, dice.random() < 2 * trouble
    downgraded = later(began, 5, 120) + timedelta(minutes=4 if retried else 0)
    unlinking = later(downgraded, 0.1, 20)
    ended = later(unlinking, 2, 60)
    run: dict[str, Any] = {"id": data.uuid(), "enterprise_customer_uuid": enterprise, "as_of": opened, "dry_run": False}
    run["triggered_at"] = opened
    run |= {"scheduled_for": scheduled, "opened_at": opened, "force": False, "live": None, "retries": int(retried)}
    run |= {"downgrade_began_at": began, "downgraded_at": downgraded, "unlink_began_at": unlinking, "ended_at": ended}
    run |= {"phase": Phase.FINISHED, "error": None, "plans_processed": 1, "licenses_downgraded": dice.randint(1, 400)}
    run |= {"learners_unlinked": dice.randint(0, 300), "learners_protected": dice.randint(0, 9), "licenses_held": 0}
    run |= {"owner": None, "fence": 2 + retried}
    if retried:
        at = later(began, 1, 4)
        retry = {"step": "downgrade", "reason": "http_503", "at": at, "again_at": at + timedelta(minutes=3)}
        rows[Retry].append({"run_id": run["id"], "fence": 1, **retry})
    if live:
        run |= {"phase": Phase.UNLINKING, "live": enterprise, "owner": "worker@night (1a2b3c4d)", "ended_at": None}
    elif failed:
        error = "the LMS answered 403: the service user lacks the permission: give license-manager's service user the "
        run |= {"phase": Phase.FAILED, "downgraded_at": None, "unlink_began_at": None, "ended_at": later(began, 3, 9)}
        run |= {"error": error + "enterprise operator role in the LMS [http_403]", "learners_unlinked": 0}
    elif dice.random() < trouble:
        run["licenses_held"] = 1
        held = {"license_uuid": data.uuid(), "enterprise_customer_uuid": enterprise, "run_id": run["id"], "tries": 2}
        held |= {"step": "downgrade", "reason": "http_400", "first_held_at": scheduled, "as_of": opened}
        rows[HeldLicense].append(held)
    if scheduled < data.now - DAY:
        rows[Run].append(run)
        return
    call = {"step": "downgrade", "outcome": "http_200", "le": "2.5", "calls": 4, "seconds": 6.1}
    rows[LmsCall].append({"run_id": run["id"], "fence": 1, **call})
    rows[Run].append(run)


def explained(engine: Engine, query: Rows) -> str:
    """What the database says of a query's plan, once it knows how the runs are spread."""
    statement = str(query.compile(engine, compile_kwargs={"literal_binds": True}))
    with engine.connect() as connection:
        connection.execute(
            text("ANALYZE" if engine.dialect.name == "postgresql" else "ANALYZE TABLE license_expiry_run")
        )
        connection.commit()
        return repr(list(map(tuple, connection.execute(text(f"EXPLAIN {statement}".replace(":", r"\:"))))))
