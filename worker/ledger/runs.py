"""Opening runs: many at once, and never a second one of an enterprise that has a live one."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from worker.db.ledger_tables import Phase, Run
from worker.db.transactions import Database
from worker.db.types import DatabaseNow
from worker.ledger import claims


@dataclass(frozen=True)
class Opened:
    """What became of opening a run: the id of the enterprise's live run, and whether it is a new one."""

    run_id: UUID
    new: bool


def open_runs(database: Database, enterprises: Sequence[UUID], as_of: datetime, **request: Any) -> dict[UUID, Opened]:
    """Open a run for each of these, or learn which live one an enterprise has; the unique key decides between rivals.

    `request` holds the columns of Run that say what is asked for (dry_run, force, reason, plan_uuids, ...).
    """
    ids = {enterprise: uuid4() for enterprise in enterprises}
    asked = {"force": False, "dry_run": False, **request, "as_of": as_of, "phase": Phase.QUEUED}
    # Our own too, where only the answer to the commit was lost.
    taken = or_(Run.live.in_(enterprises), Run.id.in_(ids.values()))
    live = select(Run.enterprise_customer_uuid, Run.id).where(taken)

    def work(session: Session) -> dict[UUID, UUID]:
        found = {row.enterprise_customer_uuid: row.id for row in session.execute(live)}
        now, until = session.execute(select(DatabaseNow(), DatabaseNow(claims.QUEUED_SECONDS))).one()
        asked.update(opened_at=now, lease_until=until)
        rows = [
            {"id": run_id, "enterprise_customer_uuid": enterprise, "live": enterprise, **asked}
            for enterprise, run_id in ids.items()
            if enterprise not in found
        ]
        if rows:
            session.execute(insert(Run), rows)
        return ids | found

    for rest in range(5, -1, -1):
        try:
            opened = database.transact(work)
            return {each: Opened(run_id, new=run_id == ids[each]) for each, run_id in opened.items()}
        except IntegrityError:  # a rival has one of them; or had it, when it is gone by now
            if not rest:
                raise
    raise AssertionError("unreachable")


def record_refusal(
    database: Database, enterprise: UUID, as_of: datetime, error: str, scheduled_for: datetime | None = None
) -> UUID:
    """Keep a run that could not even begin, with the reason; return its id."""
    run_id = uuid4()
    row: dict[str, Any] = {"id": run_id, "enterprise_customer_uuid": enterprise, "as_of": as_of}
    row["scheduled_for"] = scheduled_for
    row |= {"phase": Phase.FAILED, "error": error}
    row |= {"dry_run": False, "force": False, "opened_at": DatabaseNow(), "ended_at": DatabaseNow()}
    database.transact(lambda session: session.execute(insert(Run).values(row)))
    return run_id


def let_lapse(database: Database, run_ids: Collection[UUID]) -> None:
    """Let `reconcile` publish these runs, which were opened and not published, when it comes next."""
    unclaimed = update(Run).where(Run.id.in_(run_ids), Run.phase == Phase.QUEUED)
    database.transact(lambda session: session.execute(unclaimed.values(lease_until=DatabaseNow(-1))))
