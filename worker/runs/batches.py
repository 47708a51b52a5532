"""Reads the licenses of a step from the database page by page, and splits them into batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import inf
from operator import length_hint
from typing import Any, TypeAlias
from uuid import UUID

from worker.clock import steady
from worker.ledger.claims import Claim

# The batches in a page. Pages are longer if a read takes over SLOW_SECONDS: its duration hardly depends on the length.
PAGE_BATCHES = 10
SLOW_PAGE_BATCHES = 100
SLOW_SECONDS = 0.1
# Rows are read again FRESH_SECONDS after their query began, but not within USABLE_SECONDS of its end.
FRESH_SECONDS = 2.0
USABLE_SECONDS = 1.0


@dataclass(frozen=True)
class DuePlan:
    """A plan of a run. With `with_work` false, it has no downgrades left and is only to be marked.

    A `waiting` plan waits for its renewals: its downgrades are recorded license by license. Dates are UTC.
    """

    uuid: UUID
    expiration_date: datetime
    waiting: bool
    with_work: bool = True


@dataclass(frozen=True)
class Batch:
    """The licenses of one LMS call, or a part of them after splitting.

    A row is (license uuid, whether it is on the held list, ...). Rows are not in the repr, because they contain e-mail
    addresses. They must be selected again after `fresh_until` (on clock.steady, seconds).
    """

    rows: Sequence[Any] = field(repr=False)
    fresh_until: float
    plan: DuePlan | None = None

    @property
    def licenses(self) -> list[UUID]:
        """The UUIDs of the batch's licenses."""
        return [row[0] for row in self.rows]

    @property
    def halves(self) -> list["Batch"]:
        """The two halves of the batch."""
        middle = len(self.rows) // 2
        return [replace(self, rows=self.rows[:middle]), replace(self, rows=self.rows[middle:])]


class Fresh:
    """Keeps a batch fresh: selects it again if it has waited for a throttle, a retry or a free slot.

    While it waited, a learner may have got another license, or the plan may have been renewed.
    """

    def __init__(self, batch: Batch, select_again: Callable[[Batch], Sequence[Any]]) -> None:
        self.batch, self._select_again = batch, select_again

    def now(self) -> Batch:
        """Return the batch with only the licenses that were still due at most FRESH_SECONDS ago."""
        if steady() >= self.batch.fresh_until:
            began = steady()
            rows = self._select_again(self.batch)
            self.batch = replace(self.batch, rows=rows, fresh_until=fresh_until(began))
        return self.batch


def fresh_until(began: float) -> float:
    """Return until when (on clock.steady) rows may be used whose query began at `began` and has just ended."""
    return max(began + FRESH_SECONDS, steady() + USABLE_SECONDS)


ReadPage: TypeAlias = Callable[[UUID | None, int], Sequence[Any]]
"""Reads at most this many rows, after this license."""
Source: TypeAlias = tuple[DuePlan | None, ReadPage]


class BatchReader:
    """Returns batches from one source after another. A source is a plan and a function that reads its pages.

    Each page is read just before its calls and begins where the last one ended. The rest of a page is read again if it
    is no longer fresh, or if a license was held since: that license's learner must stay linked.
    """

    def __init__(
        self, claim: Claim, size: int, sources: Sequence[Source], check: Callable[[int], None] = lambda rows: None
    ) -> None:
        """Take these sources and the batch `size`. `check` gets the number of rows so far and raises if too many."""
        self._claim, self._size, self._sources, self._check = claim, size, iter(sources), check
        self._taken = 0
        self.exhausted = False
        self._plan: DuePlan | None = None
        self._read_page: ReadPage = lambda after, limit: ()
        self._last = True
        self._after: UUID | None = None
        self._rows: Sequence[Any] = ()
        self._fresh_until, self._held, self._batches = -inf, 0, PAGE_BATCHES

    @property
    def at_hand(self) -> bool:
        """True if the next batch is in memory and still fresh."""
        return bool(self._rows) and steady() < self._fresh_until and self._held == self._claim.held_count

    @property
    def left(self) -> int:
        """Estimated number of batches left; reads nothing."""
        return -(-len(self._rows) // self._size) + (0 if self._last else self._batches) + length_hint(self._sources)

    def has_next(self) -> bool:
        """Return whether `take` can return a batch. Reads at most one page; if false, call again until `exhausted`."""
        if not self._rows and self._last:
            following = next(self._sources, None)
            self.exhausted = following is None
            if following is None:
                return False
            (self._plan, self._read_page), self._after = following, None
        if not self.at_hand:
            self._read()
        return bool(self._rows)

    def take(self) -> Batch:
        """Return the batch that `has_next` has found."""
        batch = Batch(self._rows[: self._size], self._fresh_until, self._plan)
        self._rows = self._rows[self._size :]
        self._after = batch.rows[-1][0]
        self._taken += len(batch.rows)
        return batch

    def _read(self) -> None:
        began, self._held, limit = steady(), self._claim.held_count, self._batches * self._size
        self._rows = self._read_page(self._after, limit)
        self._check(self._taken + len(self._rows))
        self._last = len(self._rows) < limit
        self._batches = SLOW_PAGE_BATCHES if steady() - began > SLOW_SECONDS else PAGE_BATCHES
        self._fresh_until = fresh_until(began)
