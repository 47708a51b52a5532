"""Renders the pages from `templates/`: problems and nights, one night, enterprises, runs. Pages load no other files.

Each page works without JavaScript. While a run is live, `refresh.js` reloads the page and replaces its content.
"""

from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

from tornado.template import Loader

from worker.db.ledger_tables import Run
from worker.db.transactions import Database
from worker.errors import BadArgument
from worker.ledger import order
from worker.ledger.held import HOLD_FOR
from worker.ledger.order import ENDED
from worker.ledger.runs import is_waiting
from worker.web import enterprises, history, lines, matters, runs, timeline, words
from worker.web.lines import Line

REFRESH_SECONDS = 10
MOST_FOUND = 200
_TEMPLATES = Path(__file__).parent / "templates"
_CSS = (_TEMPLATES / "style.css").read_text("utf-8")
_SCRIPT = (_TEMPLATES / "refresh.js").read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


CSP = (
    f"default-src 'none'; style-src {_hash(_CSS)}; script-src {_hash(_SCRIPT)}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SORTS: dict[str, tuple[str, Callable[[Line], Any]]] = {
    "": ("cause", lambda line: 0),
    "name": ("name", lambda line: line.name.casefold()),
    "worked": ("longest work", lambda line: -(line.worked or timedelta())),
    "waited": ("longest wait", lambda line: -(line.waited or timedelta())),
    "downgraded": ("most downgraded", lambda line: -line.run.licenses_downgraded),
    "unlinked": ("most unlinked", lambda line: -line.run.learners_unlinked),
    "held": ("most held", lambda line: -line.run.licenses_held),
    "retries": ("most retries", lambda line: -line.run.retries),
}
NextNight: TypeAlias = Callable[[datetime], datetime | None]
"""Returns the first scheduled night after a moment (both UTC), or None."""


@dataclass(frozen=True)
class Asked:
    """The input of a search form: a part of a name or UUID, an order (a key of SORTS), and whether to show all."""

    find: str = ""
    sort: str = ""
    every: bool = False

    def finds(self, name: str, enterprise: UUID) -> bool:
        """Return whether the enterprise matches the search."""
        wanted = self.find.casefold().strip()
        return wanted in name.casefold() or wanted in str(enterprise)


def nights_page(database: Database, next_night: NextNight) -> str:
    """Render the first page: present problems, and the nights of a month. Raises Unavailable, Unusable."""
    seen = matters.overview(database)
    return _page("nights", seen.now, bool(seen.live), seen=seen, following=next_night(seen.now))


def night_file(database: Database, key: str | None) -> str:
    """Render one night as a single file without links: the night with this key, or the newest one.

    Raises BadArgument if there is none, Unavailable, Unusable.
    """
    return _night(history.one_night(database, key), Asked(), alone=True)


def night_page(database: Database, key: str, find: str = "", sort: str = "", every: str = "") -> str:
    """Render the page of one night, with links to its runs. Raises as `night_file` does.

    With `find` or `sort` the runs are one list, cut to MOST_FOUND unless `every` is set; else grouped by cause.
    """
    asked = Asked(find, sort if sort in SORTS else "", bool(every))
    return _night(history.one_night(database, key), asked, alone=False)


def run_page(database: Database, run_id: str, flower_url: str = "") -> str:
    """Render the page of one run. Raises BadArgument if there is none, Unavailable, Unusable.

    `flower_url` is Flower's address, for the link that starts an ended run again; "" for no link.
    """
    seen = runs.one_run(database, _uuid_of_run(run_id))
    axis = timeline.axis_of([seen.run], seen.now)
    line = lines.line_of(seen.run, seen.name, seen.retries, axis, seen.now)
    live = seen.run.phase not in ENDED
    values = {"axis": axis, "line": line, "run": seen.run, "flower_url": flower_url}
    return _page("run", seen.now, live, root="../", seen=seen, **values)


def licenses_page(database: Database, run_id: str, done: str, after: str = "") -> str:
    """Render the list of the licenses that a run has downgraded or unlinked (`done`), starting after the UUID `after`.

    Raises as `run_page` does.
    """
    try:
        from_here = UUID(after) if after else None
    except ValueError:
        raise BadArgument("`after` must be the UUID of a license", "open the list from the page of the run") from None
    seen = runs.licenses(database, _uuid_of_run(run_id), done, from_here)
    return _page("licenses", seen.now, False, root="../../", seen=seen, run=seen.run, done=done, after=after)


def enterprise_page(database: Database, next_night: NextNight, enterprise: str, flower_url: str = "") -> str:
    """Render the page of one enterprise: its runs, its held licenses, the next night. Raises as `run_page` does."""
    try:
        named = UUID(enterprise)
    except ValueError:
        raise BadArgument("An enterprise's address ends in its UUID", "find it on the page Enterprises") from None
    seen = enterprises.one_enterprise(database, named)
    shown = [
        lines.line_of(run, seen.name, seen.retries.get(run.id, ()), timeline.axis_of([run], seen.now), seen.now)
        for run in seen.runs
    ]
    live = any(run.phase not in ENDED for run in seen.runs)
    values = {"lines": shown, "following": next_night(seen.now), "flower_url": flower_url}
    return _page("enterprise", seen.now, live, root="../", seen=seen, **values)


def grid_page(database: Database, find: str = "", every: str = "") -> str:
    """Render the grid of enterprises by night: those with problems, those that match `find`, or all with `every`.

    Raises Unavailable, Unusable.
    """
    seen, asked = enterprises.grid(database), Asked(find, "", bool(every))
    found = [row for row in seen.rows if asked.finds(row.name, row.enterprise)]
    troubled = [row for row in found if row.troubles or row.failed]
    shown = found if every or find else troubled
    cut = shown if every else shown[:MOST_FOUND]
    return _page("grid", seen.now, False, seen=seen, asked=asked, rows=cut, found=len(shown), all=len(seen.rows))


def message_page(title: str, sentence: str, refresh: bool = False) -> str:
    """Render an error page with one sentence. With `refresh`, the browser reloads it until the error is gone."""
    return _page("message", datetime.now(UTC), refresh, title=title, sentence=sentence)


def _uuid_of_run(run_id: str) -> UUID:
    try:
        return UUID(run_id)
    except ValueError:
        raise BadArgument("A run's id must be a UUID", "license-expiry status lists the runs") from None


def _night(seen: history.OneNight, asked: Asked, alone: bool) -> str:
    axis = timeline.axis_of(seen.runs, seen.now) if seen.runs else None
    shown: list[Line] = []
    for run in sorted(seen.runs, key=lambda run: (getattr(run, order.STEPS[0].began_at) or run.opened_at, run.id)):
        assert axis is not None  # noqa: S101, for the type checker
        retries = seen.retries.get(run.id, ())
        shown.append(lines.line_of(run, seen.names.get(run.enterprise_customer_uuid, ""), retries, axis, seen.now))
    live = any(run.live for run in seen.runs) or bool(seen.night and seen.night.lease_until)
    found = [line for line in shown if asked.finds(line.name, line.run.enterprise_customer_uuid)]
    found.sort(key=SORTS[asked.sort][1])
    values: dict[str, Any] = {"asked": asked, "alone": alone, "live": live, "axis": axis, "found": len(found)}
    values |= {"rows": found if asked.every else found[:MOST_FOUND], "groups": lines.grouped(shown)}
    return _page("night", seen.now, live and not alone, root="../", seen=seen, sums=_sums(seen.runs), **values)


def _sums(of: Sequence[Run]) -> dict[str, int]:
    """Return the counts of a night, by their words on the page."""
    phases = [run.phase for run in of]
    counted = {
        "finished": phases.count(order.Phase.FINISHED),
        "failed or abandoned": sum(phase in order.WENT_WRONG for phase in phases),
        "stopped": phases.count(order.Phase.STOPPED),
        "live": sum(phase not in ENDED for phase in phases),
    }
    return counted | {name.rpartition("_")[2]: sum(map(attrgetter(name), of)) for name in history.SUMMED}


def _cell(run: Any) -> tuple[str, str, str]:
    """Return a grid cell's CSS class, its sign, and the sign's meaning in words."""
    if run.phase not in ENDED:
        return "l", "…", f"live, {run.phase}"
    if run.phase in order.WENT_WRONG:
        return "f", "✕", str(run.phase)
    if run.phase == order.Phase.STOPPED:
        return "s", "□", "stopped"
    if run.licenses_held:
        return "h", "◇", f"finished, {words.plural(run.licenses_held, 'license')} held"
    return ("r", "△", "finished after retries") if run.retries else ("o", "·", "finished")


_FUNCTIONS = (words.in_words, words.span, words.plural, words.day, words.stamp, words.second, words.soon, words.again)
_MORE = (lines.moments, history.night_key, order.row_of, is_waiting)
_CONSTANTS = {"css": _CSS, "script": _SCRIPT, "SORTS": SORTS, "REFRESH_SECONDS": REFRESH_SECONDS}
_CONSTANTS |= {"cell": _cell, "order": order, "HOLD_FOR": HOLD_FOR}
_LIMITS = {"MOST_HELD": runs.MOST_HELD, "MOST_NIGHTS": history.MOST_NIGHTS, "MOST_NAMED": matters.MOST_NAMED}
_NAMES = {function.__name__: function for function in (*_FUNCTIONS, *_MORE)}
_LOADER = Loader(str(_TEMPLATES), namespace=_NAMES | _CONSTANTS | _LIMITS)


def _page(name: str, now: datetime, refresh: bool, root: str = "./", **values: Any) -> str:
    values = {"alone": False, **values}
    return _LOADER.load(f"{name}.html").generate(now=now, refresh=refresh, root=root, **values).decode()
