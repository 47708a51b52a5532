"""Batches of licenses on their way through the LMS: pages, calls in flight, splitting, recording.

No transaction is open while a call is in flight. Everything is recorded by the one thread that runs the step.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from worker import records, waits
from worker.database import Database
from worker.deps import Deps
from worker.errors import BatchRefused
from worker.ledger import Claim
from worker.logs import get_logger
from worker.policy import Rows

log = get_logger(__name__)


@dataclass(frozen=True)
class Plan:
    """A plan with downgrades to be done; those of a `waiting` one are recorded license by license."""

    uuid: UUID
    expiration_date: datetime
    waiting: bool


@dataclass(frozen=True)
class Batch:
    """The licenses of one LMS call, or what is left of them after splitting.

    A row is (license uuid, whether it is on the held list[, e-mail]); rows stay out of the repr for the e-mail's sake.
    """

    rows: Sequence[Any] = field(repr=False)
    plan: Plan | None = None

    @property
    def licenses(self) -> list[UUID]:
        """The UUIDs of its licenses."""
        return [row[0] for row in self.rows]

    @property
    def halves(self) -> list["Batch"]:
        """The batch in two parts."""
        middle = len(self.rows) // 2
        return [Batch(self.rows[:middle], self.plan), Batch(self.rows[middle:], self.plan)]


def drive(
    deps: Deps,
    claim: Claim,
    batches: Iterator[Batch],
    send: Callable[[Batch], None],
    confirm: Callable[[Session, Batch], None],
    count: str,
    deadline: float,
) -> bool:
    """Keep calls in flight until the batches are used up, something fails for good, or the deadline comes.

    A shutdown of the worker counts as the deadline. A failure stops what has not been sent; what is in flight is
    awaited and recorded before the failure is raised. Returns whether the batches are used up.
    """
    split: deque[Batch] = deque()
    in_flight: dict[Future[None], Batch] = {}
    failure, exhausted = None, False
    while True:
        try:
            while not failure and not exhausted and len(in_flight) < deps.settings.LMS_PARALLEL_REQUESTS:
                if waits.stopping() or time.monotonic() >= deadline:
                    break
                batch = split.popleft() if split else next(batches, None)
                exhausted = batch is None
                if batch is not None:
                    in_flight[deps.executor.submit(send, batch)] = batch
            if not in_flight:
                break
            answered, _ = wait(in_flight, deps.settings.LEASE_SECONDS / 3, FIRST_COMPLETED)
            if not answered:
                claim.guard()
            for future in answered:
                halves = _record(claim, in_flight.pop(future), future, confirm, count)
                split.extendleft(reversed(halves))
                exhausted = exhausted and not split
        except Exception as error:
            failure = failure or error
    if failure:
        raise failure
    return exhausted


def _record(
    claim: Claim, batch: Batch, future: Future[None], confirm: Callable[[Session, Batch], None], count: str
) -> list[Batch]:
    """Record what became of a batch; return the halves in which a refused one is to be sent again."""
    try:
        future.result()
    except BatchRefused as refused:
        if len(batch.rows) > 1:
            return batch.halves
        (license_uuid,) = batch.licenses
        log.debug("held", license=license_uuid, reason=refused.reason)
        hold = partial(records.hold, run=claim.run, step=claim.step, license_uuid=license_uuid, reason=refused.reason)
        claim.record(hold, licenses_held=1)
        return []

    def write(session: Session) -> None:
        confirm(session, batch)
        records.unhold(session, [row[0] for row in batch.rows if row[1]])

    claim.record(write, **{count: len(batch.rows)})
    return []


def pages(
    database: Database, size: int, page: Callable[[UUID | None], Rows], plan: Plan | None = None
) -> Iterator[Batch]:
    """Read pages by key: each is selected just before its call, and begins where the one before ended."""
    after: UUID | None = None
    while True:
        query = page(after)
        rows = database.transact(lambda session: session.execute(query).all())  # noqa: B023, run at once
        if rows:
            yield Batch(rows, plan)
        if len(rows) < size:
            return
        after = rows[-1][0]
