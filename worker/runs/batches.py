"""The licenses of a step, read from the database page by page and handed out as batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from math import inf
from operator import length_hint
from typing import Any, TypeAlias
from uuid import UUID

from worker.clock import steady
from worker.ledger.claims import Claim

# A page is read for so many batches at once: for more where reading takes long, because it takes as long for one.
PAGE_BATCHES = 10
SLOW_PAGE_BATCHES = 100
SLOW_SECONDS = 0.1
# What was read so long ago is read again; but for so long after its answer it may be used, however long that took.
FRESH_SECONDS = 2.0
USABLE_SECONDS = 1.0


@dataclass(frozen=True)
class DuePlan:
    """A plan of a run: one with downgrades to be done, or `with_work` false: one that is only to be marked.

    The downgrades of a `waiting` one are recorded license by license.
    """

    uuid: UUID
    expiration_date: datetime
    waiting: bool
    with_work: bool = True


@dataclass(frozen=True)
class Batch:
    """The licenses of one LMS call, or what is left of them after splitting.

    A row is (license uuid, whether it is on the held list, and more); rows stay out of the repr for the e-mail's sake.
    `fresh_until`, on clock.steady, is when it is to be selected anew.
    """

    rows: Sequence[Any] = field(repr=False)
    fresh_until: float
    plan: DuePlan | None = None

    @property
    def licenses(self) -> list[UUID]:
        """The UUIDs of its licenses."""
        return [row[0] for row in self.rows]

    @property
    def halves(self) -> list["Batch"]:
        """The batch in two parts."""
        middle = len(self.rows) // 2
        return [replace(self, rows=self.rows[:middle]), replace(self, rows=self.rows[middle:])]


class Fresh:
    """A batch as it is now: selected anew when it has waited, for a throttle, a retry or its turn.

    Meanwhile a learner may have got another license, or the plan may have been renewed.
    """

    def __init__(self, batch: Batch, select_again: Callable[[Batch], Sequence[Any]]) -> None:
        self.batch, self._select_again = batch, select_again

    def now(self) -> Batch:
        """Those of its licenses that were still due at most FRESH_SECONDS ago."""
        if steady() >= self.batch.fresh_until:
            began = steady()
            rows = self._select_again(self.batch)
            self.batch = replace(self.batch, rows=rows, fresh_until=fresh_until(began))
        return self.batch


def fresh_until(began: float) -> float:
    """Until when, on clock.steady, rows may be used whose selection began then and has ended now."""
    return max(began + FRESH_SECONDS, steady() + USABLE_SECONDS)


ReadPage: TypeAlias = Callable[[UUID | None, int], Sequence[Any]]
"""Reads the rows after this license, at most this many."""
Source: TypeAlias = tuple[DuePlan | None, ReadPage]


class BatchReader:
    """Hands out the batches of one source after the other, a source being a plan and what reads its pages.

    A page is read just before its calls, and begins where the one before ended. The rest of a page is read again when
    it is not fresh any more, and when a license was held since: its learner must stay linked.
    """

    def __init__(
        self, claim: Claim, size: int, sources: Sequence[Source], check: Callable[[int], None] = lambda rows: None
    ) -> None:
        """Read these sources. `check` is told how many rows there are so far, and raises when these are too many."""
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
        """Is there another batch that need not be read anew?"""
        return bool(self._rows) and steady() < self._fresh_until and self._held == self._claim.held_count

    @property
    def left(self) -> int:
        """How many batches there are at least, as far as is known without reading."""
        return -(-len(self._rows) // self._size) + (0 if self._last else self._batches) + length_hint(self._sources)

    def has_next(self) -> bool:
        """Is another batch at hand? Reads one page at most. If not, ask again until `exhausted`."""
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
        """Give the batch that `has_next` has found."""
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
