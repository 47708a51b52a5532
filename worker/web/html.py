"""Makes the pages: the nights, one night as a picture, one run. They need no script and nothing from elsewhere."""

import re
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

from tornado.template import Loader

from worker.db.ledger_tables import Retry, Run
from worker.db.transactions import Database
from worker.errors import BadArgument
from worker.ledger import order
from worker.ledger.order import ENDED, WENT_WRONG, Phase
from worker.ledger.runs import is_waiting
from worker.web import history, timeline
from worker.web.timeline import Axis, Mark, Piece

REFRESH_SECONDS = 10
# `reconcile`, which beat sends every five minutes, has then been missed three times.
SILENT = timedelta(minutes=16)

_TEMPLATES = Path(__file__).parent / "templates"
_CSS = (_TEMPLATES / "style.css").read_text("utf-8")
_STYLE = f"style-src 'sha256-{b64encode(sha256(_CSS.encode()).digest()).decode()}'"
CSP = f"default-src 'none'; {_STYLE}; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_REASONS = {
    "connection_error": "no connection to the LMS",
    "timeout": "the LMS did not answer in time",
    "throttled": "the LMS's throttle",
    "database": "the database did not answer",
    "bad_token": "the LMS gave no usable token",
    "not_the_lms": "the answer was not the LMS's",
    "clocks": "the clocks are too far apart",
    "too_late": "a selection grew too old before it was sent",
    "booked": "others call first, under the limit of calls in a minute",
    "paused": "everything is paused",
    "needs_approval": "more learners to be unlinked than UNLINK_LIMIT",
}
_GROUPS = {
    "failed": "Failed or given up",
    "stopped": "Stopped by an operator",
    "live": "Live",
    "marked": "Finished, with retries or held licenses",
    "quiet": "Finished without trouble",
}


@dataclass(frozen=True)
class Line:
    """One run as a line of the picture; `label` tells the picture in words, `note` what is to be read beside it."""

    run: Run
    name: str
    pieces: Sequence[tuple[Piece, float, float, str]]
    marks: Sequence[tuple[Mark, float, str]]
    label: str
    note: str


def nights_page(database: Database, next_night: Callable[[datetime], datetime | None]) -> str:
    """The nights of a month, and what is the matter now. Raises Unavailable, Unusable.

    `next_night` answers a moment with the scheduled night that comes after it, if any does.
    """
    seen = history.overview(database)
    silent = seen.now - seen.reconciled_at > SILENT
    trouble = silent or bool(seen.troubled or seen.held or seen.waits)
    following = next_night(seen.now)
    return _page("nights", seen.now, bool(seen.live), seen=seen, silent=silent, trouble=trouble, following=following)


def night_file(database: Database, key: str | None) -> str:
    """One night as one file to send around: the night with this key, or the newest one.

    Raises BadArgument when there is none, Unavailable, Unusable.
    """
    return _night(history.one_night(database, key), alone=True)


def night_page(database: Database, key: str) -> str:
    """The page of one night, with links to its runs; raises as `night_file` does."""
    return _night(history.one_night(database, key), alone=False)


def run_page(database: Database, run_id: str) -> str:
    """The page of one run. Raises BadArgument when there is none, Unavailable, Unusable."""
    try:
        seen = history.one_run(database, UUID(run_id))
    except ValueError:
        raise BadArgument("A run is named by its id, a UUID", "license-expiry status lists them") from None
    axis = timeline.axis_of([seen.run], seen.now)
    line = _line(seen.run, seen.name, seen.retries, axis, seen.now)
    return _page("run", seen.now, seen.run.phase not in ENDED, seen=seen, axis=axis, line=line, run=seen.run)


def message_page(title: str, sentence: str) -> str:
    """A page with one sentence, for what cannot be shown."""
    return _page("message", datetime.now(UTC), False, title=title, sentence=sentence)


def in_words(reason: str) -> str:
    """A reason code of the ledger in words."""
    status = re.fullmatch(r"(token_)?http_(\d+)", reason)
    if status:
        return f"the LMS {'gave no token: it ' if status[1] else ''}answered {status[2]}"
    return _REASONS.get(reason, reason)


def span(length: timedelta) -> str:
    """A length of time for people: 0.4 s, 12 s, 1 min 7 s, 2 h 13 min, 3 d 4 h."""
    seconds = max(0.0, length.total_seconds())
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for name, size, small, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def _night(seen: history.OneNight, alone: bool) -> str:
    axis = timeline.axis_of(seen.runs, seen.now) if seen.runs else None
    groups: dict[str, list[Line]] = {name: [] for name in _GROUPS}
    for run in sorted(seen.runs, key=lambda run: (getattr(run, order.STEPS[0].began_at) or run.opened_at, run.id)):
        assert axis is not None  # noqa: S101, for the type checker
        retries = seen.retries.get(run.id, ())
        line = _line(run, seen.names.get(run.enterprise_customer_uuid, ""), retries, axis, seen.now)
        groups[_group(run)].append(line)
    live = bool(groups["live"]) or bool(seen.night and seen.night.lease_until)
    return _page("night", seen.now, live and not alone, seen=seen, axis=axis, groups=groups, alone=alone, live=live)


def _group(run: Run) -> str:
    if run.phase not in ENDED:
        return "live"
    if run.phase in WENT_WRONG:
        return "failed"
    if run.phase == Phase.STOPPED:
        return "stopped"
    return "marked" if run.retries or run.licenses_held else "quiet"


def _line(run: Run, name: str, retries: Sequence[Retry], axis: Axis, now: datetime) -> Line:
    def clock(moment: datetime) -> str:
        return f"{moment:%H:%M:%S}" if axis.end - axis.begin < timedelta(days=1) else f"{moment:%d %b %H:%M:%S}"

    def of_piece(piece: Piece) -> str:
        what = str(piece.step) if piece.work else f"waiting to {piece.step}"
        return f"{what} {clock(piece.begin)} to {clock(piece.end)}"

    def of_mark(mark: Mark) -> str:
        if mark.retry:
            why, again = in_words(mark.retry.reason), clock(mark.retry.again_at)
            return f"retry: at {clock(mark.at)} {why}, to {mark.step} again at {again}"
        return f"{plural(mark.count, 'license')} held" if mark.count else f"{run.phase} {clock(mark.at)}"

    pieces, marks = timeline.pieces(run, retries, now), timeline.marks(run, retries, now)
    told = sorted([(piece.begin, of_piece(piece)) for piece in pieces] + [(mark.at, of_mark(mark)) for mark in marks])
    return Line(
        run,
        name,
        [(piece, axis.x(piece.begin), axis.x(piece.end), of_piece(piece)) for piece in pieces],
        [(mark, axis.x(mark.at), of_mark(mark)) for mark in marks],
        "; ".join(words for _, words in told) or "the times of its steps were not kept",
        _note(run, retries, now),
    )


def _note(run: Run, retries: Sequence[Retry], now: datetime) -> str:
    """What is to be read beside a run's line, if anything."""
    if run.stopped_by and run.phase not in WENT_WRONG:
        return _note_on_stop(run, now)
    if run.phase in WENT_WRONG:
        return f"{str(run.phase).capitalize()}: {run.error or 'no reason was kept'}"
    if run.phase == Phase.FINISHED:
        reasons = ", ".join(dict.fromkeys(in_words(retry.reason) for retry in retries))
        retried = plural(run.retries, "retry", "retries") + (f": {reasons}" if reasons else "")
        said = [retried] if run.retries else []
        return "; ".join(said + ([f"{plural(run.licenses_held, 'license')} held"] if run.licenses_held else []))
    since = {phase: moment for _, phase, moment in moments(run) if moment}.get(run.phase)
    what = f"{str(run.phase).capitalize()} for {span(now - (since or run.opened_at))}"
    holder = f"by {run.owner}" if run.owner else "no worker has it now"
    what += f", {timeline.lost_worker(run, now) or holder}"
    return what + _wait_of(run, now) + (f"; last: {run.error}" if run.error else "")


def _wait_of(run: Run, now: datetime) -> str:
    """What a live run waits for, when it comes again, and what is left."""
    if not is_waiting(run):
        return ""
    again = f"; comes again at {run.queued_at:%H:%M:%S}" if run.queued_at > now else ""
    left = "" if run.tries_left is None else f"; tries left: {run.tries_left}"
    until = f"; given up at {run.gives_up_at:%Y-%m-%d %H:%M} if nothing changes" if run.gives_up_at else ""
    return f"; waits: {in_words(str(run.waits_for))}{again}{left}{until}"


def _note_on_stop(run: Run, now: datetime) -> str:
    what = {Phase.STOPPED: "Stopped", Phase.FINISHED: "Finished before it could be stopped"}
    begin = what.get(Phase(run.phase), f"{str(run.phase).capitalize()}, ends before its next LMS call: stopped")
    lost = timeline.lost_worker(run, now)
    return f"{begin} by {run.stopped_by}: {run.stop_reason}" + (f"; {lost}" if lost else "")


def moments(run: Run) -> list[tuple[str, str, datetime | None]]:
    """What happened to a run and when, as (words, the phase that it was in from then on, moment), in order."""
    found: list[tuple[str, str, datetime | None]] = [("opened", Phase.QUEUED, run.opened_at)]
    for step in order.STEPS:
        found.append((f"{step} began", step.runs_as, getattr(run, step.began_at)))
        if step.ends_as not in ENDED:
            found.append((step.ends_as, step.ends_as, getattr(run, step.ended_at)))
    return [*found, (run.phase, run.phase, run.ended_at)]


def plural(number: int, one: str, more: str | None = None) -> str:
    """A number with its noun: 1 license, 1,000 licenses."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def day(moment: datetime) -> str:
    """A moment for a heading: 1 June 2026, 02:00."""
    return f"{moment.day} {moment:%B %Y, %H:%M}" + (f":{moment:%S}" if moment.second else "")


_FUNCTIONS = (in_words, span, plural, moments, day, history.night_key, order.row_of)
_CONSTANTS = {"css": _CSS, "GROUPS": _GROUPS, "REFRESH_SECONDS": REFRESH_SECONDS}
_LIMITS = {"MOST_HELD": history.MOST_HELD, "MOST_NIGHTS": history.MOST_NIGHTS}
_NAMES = {function.__name__: function for function in _FUNCTIONS}
_LOADER = Loader(str(_TEMPLATES), namespace=_NAMES | _CONSTANTS | _LIMITS)


def _page(name: str, now: datetime, refresh: bool, **values: Any) -> str:
    return _LOADER.load(f"{name}.html").generate(now=now, refresh=refresh, **values).decode()
