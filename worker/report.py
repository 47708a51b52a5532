"""What the command shows: tables that fit 80 columns, lines, JSON, and waiting for runs to end."""

import json
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any
from uuid import UUID

import click
from rich.console import Console
from rich.live import Live
from rich.table import Table
from sqlalchemy import func, select

from worker import policy, records
from worker.database import Database
from worker.models import ENDED, Phase, Run
from worker.models import CustomerAgreement as Agreement
from worker.scope import Scope

WORK = ("plans", "downgrades", "unlinks")
POLL_SECONDS = 0.5
PATIENCE_SECONDS = 15.0

out = Console()
err = Console(stderr=True)


def watch(database: Database, run_ids: Collection[UUID], *, wait: bool, quiet: bool) -> Sequence[Run]:
    """Wait until these runs have ended, with a live table on a terminal and a line for each run elsewhere."""
    if not wait or not run_ids:
        return database.transact(lambda session: records.runs_by_id(session, run_ids))
    try:
        return _wait(database, run_ids, quiet)
    except KeyboardInterrupt:
        err.print("Stopped waiting. The runs go on; see them with: license-expiry status --watch", soft_wrap=True)
        raise SystemExit(130) from None


def _wait(database: Database, run_ids: Collection[UUID], quiet: bool) -> Sequence[Run]:
    runs: Sequence[Run] = ()
    if quiet or not out.is_terminal:
        told: set[UUID] = set()
        for runs in _polled(database, run_ids):
            for each in runs:
                if each.phase in ENDED and each.id not in told and not quiet:
                    told.add(each.id)
                    out.print(_line(each), markup=False, highlight=False, soft_wrap=True)
        return runs
    with Live(console=out, transient=True, auto_refresh=False) as live:
        for runs in _polled(database, run_ids):
            going = [each for each in runs if each.phase not in ENDED]
            table = _runs_table(going[:20])
            table.caption = f"{len(runs) - len(going)} of {len(runs)} enterprises done"
            live.update(table, refresh=True)
    return runs


def _polled(database: Database, run_ids: Collection[UUID]) -> Iterator[Sequence[Run]]:
    begun, hinted = time.monotonic(), False
    while True:
        runs = database.transact(lambda session: records.runs_by_id(session, run_ids))
        yield runs
        if all(each.phase in ENDED for each in runs):
            return
        untouched = all(each.phase == Phase.QUEUED for each in runs)
        if untouched and not hinted and time.monotonic() - begun > PATIENCE_SECONDS:
            hinted = True
            err.print("No worker has taken these runs up yet. Is one running? celery -A worker worker", soft_wrap=True)
        time.sleep(POLL_SECONDS)


def show_runs(runs: Sequence[Run], as_json: bool, none: str) -> int:
    """Show runs as a table with their errors, or as JSON; return the exit status that they amount to."""
    if as_json:
        show_json({"runs": [records.describe(each) for each in runs]})
    elif not runs:
        out.print(none)
    else:
        out.print(_runs_table(runs))
        for each in runs:
            if each.error:
                out.print(
                    f"{each.enterprise_customer_uuid}: {each.error}", markup=False, highlight=False, soft_wrap=True
                )
    bad = any(each.phase in (Phase.FAILED, Phase.ABANDONED) or each.licenses_held for each in runs)
    return 1 if bad else 0


def _line(run: Run) -> str:
    counts = " ".join(f"{name}={getattr(run, name)}" for name in records.COUNTS)
    rehearsal = " dry_run" if run.dry_run else ""
    return f"{run.enterprise_customer_uuid} {run.phase}{rehearsal} {counts}"


def _runs_table(runs: Sequence[Run]) -> Table:
    columns = ("enterprise", "phase", "plans", "down-\ngraded", "held", "un-\nlinked", "pro-\ntected")
    rows = [
        (each.enterprise_customer_uuid, each.phase, *(getattr(each, name) for name in records.COUNTS)) for each in runs
    ]
    shown = table(columns, rows)
    if any(each.dry_run for each in runs):
        shown.caption = "Dry runs among these sent nothing: they count what would be done."
    return shown


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table whose first column, an id, is never broken; with five counts beside it, it fits 80 columns."""
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for index, heading in enumerate(columns):
        numeric = bool(rows) and isinstance(rows[0][index], int)
        shown.add_column(heading, justify="right" if numeric else "left", no_wrap=index == 0)
    for row in rows:
        shown.add_row(*map(str, row))
    return shown


def due_rows(database: Database, scope: Scope) -> list[dict[str, Any]]:
    """Count per enterprise what is due under this scope: plans, downgrades, unlinks, and learners protected."""
    customer = Agreement.enterprise_customer_uuid
    plans = policy.due_plans(scope).subquery()
    counts = {
        "plans": [select(plans.c.enterprise_customer_uuid)],
        "downgrades": [policy.due_downgrades(scope, customer), policy.waiting_downgrades(scope, customer)],
        "unlinks": [policy.due_unlinks(scope, customer, downgraded=False)],
        "protected": [policy.protected(scope, customer)],
    }
    rows: dict[UUID, dict[str, Any]] = {}
    for name, queries in counts.items():
        for query in queries:
            each = query.subquery()
            grouped = select(each.c.enterprise_customer_uuid, func.count()).group_by(each.c.enterprise_customer_uuid)
            for enterprise, count in database.transact(lambda session: session.execute(grouped).all()):  # noqa: B023
                row = rows.setdefault(
                    enterprise, {"enterprise_customer_uuid": str(enterprise), **dict.fromkeys(counts, 0)}
                )
                row[name] += count
    working = [enterprise for enterprise, row in rows.items() if any(row[name] for name in WORK)]
    return [rows[enterprise] for enterprise in sorted(working)]


def show_json(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(value, indent=2))
