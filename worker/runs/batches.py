"""The licenses of a step, read from the database page by page and handed out as batches."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from typing import Any, TypeAlias
from uuid import UUID

from worker.ledger.claims import Claim

# A page is read for so many batches at once: for more where reading takes long, because it takes as long for one.
PAGE_BATCHES = 10
SLOW_PAGE_BATCHES = 100
SLOW_SECONDS = 0.1
# The rest of a page is read again after this many seconds, or this many times as long as reading it took.
FRESH_SECONDS = 2.0
FRESH_READINGS = 10


@dataclass(frozen=True)
class DuePlan:
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
    plan: DuePlan | None = None

    @property
    def licenses(self) -> list[UUID]:
        """The UUIDs of its licenses."""
        return [row[0] for row in self.rows]

    @property
    def halves(self) -> list["Batch"]:
        """The batch in two parts."""
        middle = len(self.rows) // 2
        return [Batch(self.rows[:middle], self.plan), Batch(self.rows[middle:], self.plan)]


ReadPage: TypeAlias = Callable[[UUID | None, int], Sequence[Any]]
"""Reads the rows after this license, at most this many."""
Source: TypeAlias = tuple[DuePlan | None, ReadPage]


class BatchReader:
    """Hands out the batches of one source after the other, a source being a plan and what reads its pages.

    A page is read just before its calls, and begins where the one before ended. The rest of a page is read again when
    it is not fresh any more, and when a license was held since: meanwhile a learner may have got another license, or
    must stay linked.
    """

    def __init__(self, claim: Claim, size: int, sources: Iterable[Source]) -> None:
        self._claim, self._size, self._sources = claim, size, iter(sources)
        self._plan: DuePlan | None = None
        self._read_page: ReadPage = lambda after, limit: ()
        self._last = True
        self._after: UUID | None = None
        self._rows: Sequence[Any] = ()
        self._fresh_until, self._held, self._batches = -inf, 0, PAGE_BATCHES

    def has_next(self) -> bool:
        """Is there another batch? Reads a page where none is at hand."""
        if self._rows and (time.monotonic() > self._fresh_until or self._held != self._claim.held_count):
            self._read()
        while not self._rows:
            if self._last:
                following = next(self._sources, None)
                if following is None:
                    return False
                (self._plan, self._read_page), self._after = following, None
            self._read()
        return True

    def take(self) -> Batch:
        """Give the batch that `has_next` has found."""
        batch, self._rows = Batch(self._rows[: self._size], self._plan), self._rows[self._size :]
        self._after = batch.rows[-1][0]
        return batch

    def _read(self) -> None:
        began, self._held, limit = time.monotonic(), self._claim.held_count, self._batches * self._size
        self._rows = self._read_page(self._after, limit)
        self._last = len(self._rows) < limit
        took = time.monotonic() - began
        self._fresh_until = began + max(FRESH_SECONDS, FRESH_READINGS * took)
        self._batches = SLOW_PAGE_BATCHES if took > SLOW_SECONDS else PAGE_BATCHES
