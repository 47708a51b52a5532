"""Batches of licenses on their way through the LMS: pages, calls in flight, splitting, recording.

No transaction is open while a call is in flight. Everything is recorded by the one thread that runs the step.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy.orm import Session

from worker import shutdown
from worker.deps import Deps
from worker.errors import BatchRefused
from worker.ledger import confirmations
from worker.ledger.claims import Claim
from worker.lms.host_slots import LOOK_AGAIN_SECONDS
from worker.logs import get_logger

log = get_logger(__name__)

# A page is read for so many batches at once: for more where reading takes long, which it does as long for one.
PAGE_BATCHES = 10
SLOW_PAGE_BATCHES = 100
SLOW_SECONDS = 0.1
# What is left of a page is asked for again after so many seconds, or so many times as long as reading it took.
FRESH_SECONDS = 2.0
FRESH_READINGS = 10
# Batches whose answers come within so many seconds are recorded together, if they are the last ones.
TOGETHER_SECONDS = 0.02


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


Page: TypeAlias = Callable[[UUID | None, int], Sequence[Any]]
"""Reads a page: the rows after this license, so many at most."""
Source: TypeAlias = tuple[Plan | None, Page]
Send: TypeAlias = Callable[[Batch], None]
Confirm: TypeAlias = Callable[[Session, Sequence[Batch]], None]


class Pages:
    """The batches of each source, a plan and its pages by key, one source after the other.

    A page is selected just before its calls, and begins where the one before ended. What has not been sent of it is
    asked for again when it is not fresh any more, and when a license was held since: meanwhile a learner may have got
    another license, or is to be kept linked.
    """

    def __init__(self, claim: Claim, size: int, sources: Iterable[Source]) -> None:
        self._claim, self._size, self._sources = claim, size, iter(sources)
        self._plan: Plan | None = None
        self._page: Page = lambda after, limit: ()
        self._last = True
        self._after: UUID | None = None
        self._rows: Sequence[Any] = ()
        self._fresh_until, self._held, self._batches = -inf, 0, PAGE_BATCHES

    def ready(self) -> bool:
        """Is there another batch? Reads a page where none is at hand."""
        if self._rows and (time.monotonic() > self._fresh_until or self._held != self._claim.held):
            self._read()
        while not self._rows:
            if self._last:
                following = next(self._sources, None)
                if following is None:
                    return False
                (self._plan, self._page), self._after = following, None
            self._read()
        return True

    def _read(self) -> None:
        began, self._held, limit = time.monotonic(), self._claim.held, self._batches * self._size
        self._rows = self._page(self._after, limit)
        self._last = len(self._rows) < limit
        took = time.monotonic() - began
        self._fresh_until = began + max(FRESH_SECONDS, FRESH_READINGS * took)
        self._batches = SLOW_PAGE_BATCHES if took > SLOW_SECONDS else PAGE_BATCHES

    def pop(self) -> Batch:
        """Give the batch that is `ready`."""
        batch, self._rows = Batch(self._rows[: self._size], self._plan), self._rows[self._size :]
        self._after = batch.rows[-1][0]
        return batch


def drive(deps: Deps, claim: Claim, pages: Pages, send: Send, confirm: Confirm, count: str, deadline: float) -> bool:
    """Keep calls in flight until the batches are used up, something fails for good, or the deadline comes.

    A shutdown of the worker counts as the deadline. A failure stops what has not been sent; what is in flight is
    awaited and recorded before the failure is raised. Returns whether the batches are used up.
    """
    flight = _Flight(deps, pages, send, deadline)
    while not flight.ended:
        for part in (
            lambda: _record(claim, flight, confirm, count),
            flight.fill,
            flight.wait,
            lambda: claim.guard(deps.settings.LEASE_SECONDS / 3),
        ):
            try:
                part()
            except Exception as error:
                flight.failure = flight.failure or error
    if flight.failure:
        raise flight.failure
    return flight.used_up


class _Flight:
    """The batches on their way: split and to be sent again, in flight, and answered but not recorded."""

    def __init__(self, deps: Deps, pages: Pages, send: Send, deadline: float) -> None:
        self._deps, self._pages, self._send, self._deadline = deps, pages, send, deadline
        self._in_flight: dict[Future[None], Batch] = {}
        self._short_of_slots = self._stopped = False
        self.split: deque[Batch] = deque()
        self.answered: list[tuple[Batch, Future[None]]] = []
        self.used_up = False
        self.failure: Exception | None = None

    @property
    def ended(self) -> bool:
        """Is there nothing left to wait for?"""
        over = self.failure or self._stopped or (self.used_up and not self.split)
        return bool(over) and not self._in_flight and not self.answered

    def fill(self) -> None:
        """Send batches while this run and this host may have more in flight."""
        self._short_of_slots = False
        while not self.failure and len(self._in_flight) < self._deps.settings.LMS_PARALLEL_REQUESTS:
            self._stopped = shutdown.stopping() or time.monotonic() >= self._deadline
            self.used_up = not self.split and not self._stopped and not self._pages.ready()
            if self._stopped or self.used_up:
                return
            slot = self._deps.slots.take()
            self._short_of_slots = slot is None
            if slot is None:
                return
            batch = self.split.popleft() if self.split else self._pages.pop()
            self._in_flight[self._deps.executor.submit(self._carry, slot, batch)] = batch

    def _carry(self, slot: int, batch: Batch) -> None:
        try:
            self._send(batch)
        finally:
            self._deps.slots.give_back(slot)

    def wait(self) -> None:
        """Wait until a batch is answered, or a slot may be free where one is wanted."""
        if self._in_flight:
            seconds = LOOK_AGAIN_SECONDS if self._short_of_slots else self._deps.settings.LEASE_SECONDS / 3
            done, _ = wait(self._in_flight, seconds, FIRST_COMPLETED)
            if done and self.used_up:  # nothing more to send meanwhile, so that more may be recorded at once
                done, _ = wait(self._in_flight, TOGETHER_SECONDS)
            self.answered = [(self._in_flight.pop(future), future) for future in done]
        elif self._short_of_slots:
            self._deps.slots.wait()


def _record(claim: Claim, flight: _Flight, confirm: Confirm, count: str) -> None:
    """Record what became of the batches that were answered; split those that were refused."""
    answered, flight.answered = flight.answered, []
    confirmed: list[Batch] = []
    held: list[tuple[UUID, str]] = []
    for batch, future in answered:
        try:
            future.result()
            confirmed.append(batch)
        except BatchRefused as refused:
            if len(batch.rows) > 1:
                flight.split.extendleft(reversed(batch.halves))
            else:
                log.debug("held", license=batch.licenses[0], reason=refused.reason)
                held.append((batch.licenses[0], refused.reason))
        except Exception as error:
            flight.failure = flight.failure or error

    def write(session: Session) -> None:
        for license_uuid, reason in held:
            confirmations.hold(session, claim.run, claim.step, license_uuid, reason)
        if confirmed:
            confirm(session, confirmed)
            confirmations.unhold(session, [row[0] for batch in confirmed for row in batch.rows if row[1]])

    if confirmed or held:
        counts = {count: sum(len(batch.rows) for batch in confirmed), "licenses_held": len(held)}
        claim.record(write, **counts)
