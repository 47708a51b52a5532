"""Runs and claims on them, opened and set as a test wants them."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import update

from support.runs import LONGEST, opened_run, run_of
from worker.db.ledger_tables import Run
from worker.db.sql import DatabaseNow
from worker.db.transactions import Database
from worker.errors import Unavailable
from worker.ledger import claims, stalled
from worker.ledger.claims import Claim
from worker.ledger.order import DOWNGRADE, UNLINK, Phase, Step
from worker.ledger.stalled import MAX_PUBLICATIONS

AS_OF = datetime(2026, 6, 1, 2, 0, tzinfo=UTC)


LEASE = 300


HOUR = 3600


AWAY = Unavailable("http_503", "the LMS is away")


def wait(claim: Claim, seconds: int, error: Unavailable = AWAY, tries: int = 1) -> None:
    claim.wait(seconds, error, tries=tries, left=5 - tries, gives_up_at=AS_OF)


def open_run(database: Database, enterprise: UUID | None = None, **request: Any) -> Run:
    return run_of(database, opened_run(database, enterprise or uuid4(), AS_OF, **request).run_id)


def claim(database: Database, run: Run, step: Step = DOWNGRADE, owner: str = "w1", lease: int = LEASE) -> Claim:
    return claims.claim(database, run.id, run.enterprise_customer_uuid, step, owner, lease)


def set_run(database: Database, run: Run, **values: Any) -> None:
    database.transact(lambda session: session.execute(update(Run).where(Run.id == run.id).values(**values)))


def seconds_left(database: Database, run: Run) -> float:
    until = run_of(database, run.id).lease_until
    assert until is not None
    return (until - database.now()).total_seconds()


def end_well(database: Database, run: Run) -> None:
    claim(database, run).advance()
    claim(database, run, UNLINK).advance()


def _fail(database: Database, run: Run) -> None:
    claim(database, run).fail("the LMS refuses")


def _abandon(database: Database, run: Run) -> None:
    claim(database, run)
    set_run(database, run, publications=MAX_PUBLICATIONS, lease_until=DatabaseNow(-1))
    assert stalled.release_stalled(database, LONGEST, 0) == ([], [run.id])


ENDS = {Phase.FINISHED: end_well, Phase.FAILED: _fail, Phase.ABANDONED: _abandon}
