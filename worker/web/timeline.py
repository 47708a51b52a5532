"""Computes the timeline of a night: the pieces and marks of a run on the time axis. Contains no SQL and no HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from worker.db.ledger_tables import Retry, Run
from worker.ledger import order
from worker.ledger.order import WENT_WRONG, Phase

# The axis is a little shorter than the picture, to leave room for a mark at its end. In percent.
_FIRST, _WIDTH = 0.6, 91.4
_MOST_TICKS = 7
_SPANS = [1, 2, 5, 10, 15, 30, *(60 * n for n in (1, 2, 5, 10, 15, 30)), *(3600 * n for n in (1, 2, 3, 6, 12))]
_DAY = 86_400


@dataclass(frozen=True)
class Piece:
    """A segment of a run: working in a step, or waiting for it."""

    step: str
    work: bool
    begin: datetime
    end: datetime


@dataclass(frozen=True)
class Mark:
    """An event on the timeline: a retry, held licenses (`count`), or the failure or stop of the run."""

    kind: str
    step: str
    at: datetime
    retry: Retry | None = None
    count: int = 0


@dataclass(frozen=True)
class Axis:
    """Time from left to right."""

    begin: datetime
    end: datetime

    def x(self, moment: datetime) -> float:
        """Return the position of a moment, in percent of the picture's width."""
        share = (moment - self.begin) / max(self.end - self.begin, timedelta(microseconds=1))
        return round(_FIRST + _WIDTH * min(1.0, max(0.0, share)), 2)

    def ticks(self) -> list[tuple[float, str]]:
        """Return the labels of the axis as (position, text): at most 7 round moments, in UTC."""
        length = (self.end - self.begin).total_seconds()
        days = [_DAY * n for n in range(1, 2 + int(length // _DAY))]
        span = next(span for span in _SPANS + days if length <= span * (_MOST_TICKS - 1))
        form = "%H:%M:%S" if span < 60 else "%H:%M" if span < _DAY else "%d %b"
        first = -(-self.begin.timestamp() // span) * span
        count = int((self.end.timestamp() - first) // span) + 1
        moments = [datetime.fromtimestamp(first + number * span, UTC) for number in range(count)]
        return [(self.x(moment), moment.strftime(form)) for moment in moments]


def axis_of(runs: Sequence[Run], now: datetime) -> Axis:
    """Return the axis that covers all of these runs; live runs extend to `now`."""
    return Axis(min(run.opened_at for run in runs), max(run.ended_at or now for run in runs))


def lost_worker(run: Run, now: datetime) -> str:
    """Return a text that the run's worker was lost and what happens to the run; "" if it was not lost."""
    if run.phase in order.ENDED or not (run.owner and run.lease_until and run.lease_until < now):
        return ""
    then = "ends the run, which was stopped" if run.stopped_by else "resumes the run"
    lost = f"its worker was lost ({run.owner}): its lease ended at {run.lease_until:%H:%M:%S} UTC"
    return f"{lost}; reconcile, which beat sends every 5 minutes, {then}"


def pieces(run: Run, retries: Sequence[Retry], now: datetime) -> list[Piece]:
    """Return the run's segments in order; [] for runs recorded before step times were stored (migration 0003)."""
    end, waits_since = run.ended_at or now, run.opened_at
    at_work_until = min(end, run.lease_until) if lost_worker(run, now) and run.lease_until else end
    never_begun = (Phase.QUEUED, Phase.ABANDONED, Phase.STOPPED)
    if getattr(run, order.STEPS[0].began_at) is None and run.phase not in never_begun:
        return []
    found: list[Piece] = []
    for step in order.STEPS:
        began, ended = getattr(run, step.began_at), getattr(run, step.ended_at)
        found += _some(Piece(step.name, False, waits_since, began or end))
        if began:
            found += _worked(step.name, began, ended or max(began, at_work_until), retries)
        if not (began and ended):
            found += _some(Piece(step.name, False, max(began, at_work_until), end)) if began else []
            break
        waits_since = ended
    return found


def length(pieces: Sequence[Piece], *, work: bool) -> timedelta | None:
    """Return how long a run worked, or waited if `work` is false; None for a run without pieces."""
    return sum((each.end - each.begin for each in pieces if each.work is work), timedelta()) if pieces else None


def marks(run: Run, retries: Sequence[Retry], now: datetime) -> list[Mark]:
    """Return the marks of a run: its retries, its failure or stop, its held licenses."""
    begun = [step.name for step in order.STEPS if getattr(run, step.began_at)]
    found = [Mark("retry", retry.step, retry.at, retry=retry) for retry in retries]
    if run.phase in (*WENT_WRONG, Phase.STOPPED):
        kind = "failed" if run.phase in WENT_WRONG else "stopped"
        found.append(Mark(kind, begun[-1] if begun else order.STEPS[0].name, run.ended_at or now))
    if run.licenses_held:
        found.append(Mark("held", order.STEPS[-1].name, run.ended_at or now, count=run.licenses_held))
    return found


def _worked(step: str, begin: datetime, end: datetime, retries: Sequence[Retry]) -> list[Piece]:
    """Return a step's segments from its begin to its end; it waits between a retry's `at` and `again_at`."""
    found, at = [], begin
    own = [retry for retry in retries if retry.step == step and retry.at >= begin]  # earlier waits precede the step
    for retry, following in zip(own, [*(later.at for later in own[1:]), end], strict=False):
        again = min(retry.again_at, following)  # a message posted by hand may have resumed it earlier
        found += [Piece(step, True, at, retry.at), *_some(Piece(step, False, retry.at, again))]
        at = again
    return [*found, Piece(step, True, at, end)] if at < end or not found else found


def _some(piece: Piece) -> list[Piece]:
    return [piece] if piece.begin < piece.end else []
