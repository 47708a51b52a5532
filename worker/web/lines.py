"""Describes a run as a line of a night's timeline, with its text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from worker.db.ledger_tables import Retry, Run
from worker.ledger import order
from worker.ledger.order import ENDED, WENT_WRONG, Phase
from worker.ledger.runs import is_waiting
from worker.web import timeline
from worker.web.timeline import Axis, Mark, Piece
from worker.web.words import in_words, plural, reason_of, soon, span, stamp

MOST_SHOWN = 20


@dataclass(frozen=True)
class Line:
    """One run as a line of the timeline. `label` describes the line in words (for screen readers), `note` explains it.

    `worked` and `waited` are the total lengths of its pieces, None if the times of its steps were not recorded. Lines
    are grouped by `cause`.
    """

    run: Run
    name: str
    pieces: Sequence[tuple[Piece, float, float, str]]
    marks: Sequence[tuple[Mark, float, str]]
    label: str
    note: str
    worked: timedelta | None
    waited: timedelta | None
    cause: str


@dataclass(frozen=True)
class Group:
    """The lines with the same cause. `untroubled` lines need no attention and are folded away."""

    heading: str
    lines: Sequence[Line]
    bad: bool = False
    untroubled: bool = False

    @property
    def name(self) -> str:
        """The id of the group's element: the same at each reload, so that an open group stays open."""
        return re.sub(r"\W+", "-", self.heading).lower()

    @property
    def first(self) -> Sequence[Line]:
        """The lines that are shown unfolded."""
        return self.lines if len(self.lines) <= MOST_SHOWN else () if self.untroubled else self.lines[:MOST_SHOWN]

    @property
    def folded(self) -> Sequence[Line]:
        """The lines that are folded away."""
        return self.lines[len(self.first) :]


def line_of(run: Run, name: str, retries: Sequence[Retry], axis: Axis, now: datetime) -> Line:
    """Return the run as a line on this axis."""

    def clock(moment: datetime) -> str:
        near = axis.end - axis.begin < timedelta(days=1)
        return f"{moment:%H:%M:%S} UTC" if near else f"{moment:%d %b %H:%M:%S} UTC"

    def of_piece(piece: Piece) -> str:
        what = str(piece.step) if piece.work else f"waiting to {piece.step}"
        return f"{what} {clock(piece.begin)} to {clock(piece.end)}"

    def of_mark(mark: Mark) -> str:
        if mark.retry:
            why, again = in_words(mark.retry.reason), clock(mark.retry.again_at)
            return f"retry: at {clock(mark.at)} {why}, {mark.step} retried at {again}"
        return f"{plural(mark.count, 'license')} held" if mark.count else f"{run.phase} {clock(mark.at)}"

    pieces, marks = timeline.pieces(run, retries, now), timeline.marks(run, retries, now)
    described = [(piece.begin, of_piece(piece)) for piece in pieces] + [(mark.at, of_mark(mark)) for mark in marks]
    described.sort()
    return Line(
        run,
        name,
        [(piece, axis.x(piece.begin), axis.x(piece.end), of_piece(piece)) for piece in pieces],
        [(mark, axis.x(mark.at), of_mark(mark)) for mark in marks],
        "; ".join(words for _, words in described) or "the times of its steps were not recorded",
        note_of(run, retries, now),
        timeline.length(pieces, work=True),
        timeline.length(pieces, work=False),
        _cause(run, retries),
    )


def grouped(lines: Sequence[Line]) -> list[Group]:
    """Group these lines by cause: failed, stopped, live, finished with problems, finished without."""
    of_cause: dict[str, list[Line]] = {}
    for line in lines:
        of_cause.setdefault(line.cause, []).append(line)
    groups = [
        Group(cause, of_one, bad=of_one[0].run.phase in WENT_WRONG, untroubled=_place(of_one[0]) == _LAST)
        for cause, of_one in of_cause.items()
    ]
    return sorted(groups, key=lambda group: (_place(group.lines[0]), -len(group.lines)))


_LAST = 6


def _place(line: Line) -> int:
    run = line.run
    if run.phase not in ENDED:
        return 2 if is_waiting(run) else 3
    if run.phase in WENT_WRONG:
        return 0
    if run.phase == Phase.STOPPED:
        return 1
    return 4 if run.licenses_held else 5 if run.retries else _LAST


def _cause(run: Run, retries: Sequence[Retry]) -> str:
    """Return the heading under which a run is grouped with others of its night."""
    if run.phase in WENT_WRONG:
        return f"Failed or abandoned, {in_words(reason_of(run.phase, run.error))}"
    if run.phase == Phase.STOPPED:
        return "Stopped by an operator"
    if run.phase not in ENDED:
        return f"Live, waits: {in_words(str(run.waits_for))}" if is_waiting(run) else f"Live, {run.phase}"
    if run.licenses_held:
        return "Finished, with licenses held"
    if run.retries:
        return f"Finished, after retries: {_reasons(retries) or 'reasons not recorded'}"
    return "Finished without problems"


def _reasons(retries: Sequence[Retry]) -> str:
    return ", ".join(dict.fromkeys(in_words(retry.reason) for retry in retries))


def note_of(run: Run, retries: Sequence[Retry], now: datetime) -> str:
    """Return the text beside a run's line; "" if there is nothing to explain."""
    if run.stopped_by and run.phase not in WENT_WRONG:
        return _note_on_stop(run, now)
    if run.phase in WENT_WRONG:
        return f"{str(run.phase).capitalize()}: {run.error or 'no reason was recorded'}"
    if run.phase == Phase.FINISHED:
        reasons = _reasons(retries)
        retried = plural(run.retries, "retry", "retries") + (f": {reasons}" if reasons else "")
        said = [retried] if run.retries else []
        return "; ".join(said + ([f"{plural(run.licenses_held, 'license')} held"] if run.licenses_held else []))
    since = {phase: moment for _, phase, moment in moments(run) if moment}.get(run.phase)
    what = f"{str(run.phase).capitalize()} for {span(now - (since or run.opened_at))}"
    holder = f"by {run.owner}" if run.owner else "no worker has it now"
    what += f", {timeline.lost_worker(run, now) or holder}"
    return what + _wait_of(run, now) + (f"; last: {run.error}" if run.error else "")


def _wait_of(run: Run, now: datetime) -> str:
    """Return the reason and the times of a live run's wait; "" if it does not wait."""
    if not is_waiting(run):
        return ""
    again = f"; retried at {soon(run.queued_at, now)}" if run.queued_at > now else ""
    left = "" if run.tries_left is None else f"; tries left: {run.tries_left}"
    until = f"; fails at {stamp(run.gives_up_at)} if nothing changes" if run.gives_up_at else ""
    return f"; waits: {in_words(str(run.waits_for))}{again}{left}{until}"


def _note_on_stop(run: Run, now: datetime) -> str:
    what = {Phase.STOPPED: "Stopped", Phase.FINISHED: "Finished before it could be stopped"}
    begin = what.get(Phase(run.phase), f"{str(run.phase).capitalize()}, ends before its next LMS call: stopped")
    lost = timeline.lost_worker(run, now)
    return f"{begin} by {run.stopped_by}: {run.stop_reason}" + (f"; {lost}" if lost else "")


def moments(run: Run) -> list[tuple[str, str, datetime | None]]:
    """Return the events of a run in order: (words, the phase from then on, moment in UTC or None)."""
    found: list[tuple[str, str, datetime | None]] = [("opened", Phase.QUEUED, run.opened_at)]
    for step in order.STEPS:
        found.append((f"{step} began", step.runs_as, getattr(run, step.began_at)))
        if step.ends_as not in ENDED:
            found.append((step.ends_as, step.ends_as, getattr(run, step.ended_at)))
    return [*found, (run.phase, run.phase, run.ended_at)]
