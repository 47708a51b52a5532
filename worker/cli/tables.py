"""What the command shows: tables that fit 80 columns, lines, JSON, and waiting for runs to end."""

import csv
import json
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import UUID

import click
from rich.console import Console
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from sqlalchemy import Select, select

from worker.db.ledger_tables import ENDED, HeldLicense, Phase, Run
from worker.db.transactions import Database
from worker.due.forecast import PlanRow
from worker.errors import Unusable
from worker.ledger import confirmations

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 15.0
MOST_SHOWN = 10  # live runs, two lines for each: a small terminal shows them whole

out = Console()
err = Console(stderr=True)


def live_runs(enterprise: UUID | None) -> Select[UUID]:
    """The runs that have not ended, of this enterprise if one is given."""
    live = select(Run.id).where(Run.live.is_not(None))
    return live if enterprise is None else live.where(Run.live == enterprise)


def watch(
    database: Database,
    run_ids: Collection[UUID],
    *,
    wait: bool,
    quiet: bool,
    joining: Select[UUID] | None = None,
) -> Sequence[Run]:
    """Wait until these runs have ended, with a live table on a terminal and a line for each run elsewhere.

    Those that `joining` finds meanwhile are waited for too.
    """
    if not wait:
        return database.transact(lambda session: confirmations.runs_by_id(session, run_ids))
    try:
        return _wait(_polled(database, set(run_ids), joining), quiet)
    except KeyboardInterrupt:
        err.print("Stopped waiting. The runs go on; see them with: license-expiry status --watch", soft_wrap=True)
        raise SystemExit(130) from None


def _wait(polled: Iterator[Sequence[Run]], quiet: bool) -> Sequence[Run]:
    runs: Sequence[Run] = ()
    if quiet or not out.is_terminal:
        told: set[UUID] = set()
        for runs in polled:
            for each in runs:
                if each.phase in ENDED and each.id not in told and not quiet:
                    told.add(each.id)
                    out.print(_line(each), markup=False, highlight=False, soft_wrap=True)
        return runs
    with Live(console=out, transient=True, auto_refresh=False) as live:
        for runs in polled:
            going = [each for each in runs if each.phase not in ENDED]
            table = _runs_table(going[:MOST_SHOWN])
            table.caption = f"{len(runs) - len(going)} of {len(runs)} enterprises done"
            live.update(table, refresh=True)
    return runs


def _polled(database: Database, run_ids: set[UUID], joining: Select[UUID] | None) -> Iterator[Sequence[Run]]:
    begun, hinted = time.monotonic(), False
    while True:
        if joining is not None:
            run_ids.update(database.transact(lambda session: session.scalars(joining).all()))
        runs = database.transact(lambda session: confirmations.runs_by_id(session, run_ids))
        yield runs
        if all(each.phase in ENDED for each in runs):
            return
        untouched = all(each.phase == Phase.QUEUED for each in runs)
        if untouched and not hinted and time.monotonic() - begun > PATIENCE_SECONDS:
            hinted = True
            err.print("No worker has taken these runs up yet. Is one running? celery -A worker worker", soft_wrap=True)
        time.sleep(POLL_SECONDS)


def show_runs(runs: Sequence[Run], as_json: bool, none: str, hint: str = "") -> int:
    """Show runs as a table with a hint and their errors, or as JSON; return the exit status that they amount to."""
    if as_json:
        show_json({"runs": [confirmations.describe(each) for each in runs]})
    elif not runs:
        out.print(none)
    else:
        shown = _runs_table(runs)
        shown.caption = "\n".join(str(each) for each in (shown.caption, hint) if each) or None
        out.print(shown)
        for each in runs:
            if each.error:
                out.print(
                    f"{each.enterprise_customer_uuid}: {each.error}", markup=False, highlight=False, soft_wrap=True
                )
    bad = any(each.phase in (Phase.FAILED, Phase.ABANDONED) or each.licenses_held for each in runs)
    return 1 if bad else 0


def _line(run: Run) -> str:
    counts = " ".join(f"{name}={getattr(run, name)}" for name in confirmations.COUNTS)
    rehearsal = " dry_run" if run.dry_run else ""
    return f"{run.enterprise_customer_uuid} {run.phase}{rehearsal} {counts}"


def _runs_table(runs: Sequence[Run]) -> Table:
    columns = (
        "enterprise\n  began (UTC), took",
        "phase",
        "plans",
        "down-\ngraded",
        "held",
        "un-\nlinked",
        "pro-\ntected",
    )
    rows = [(_when(each), _phase(each), *(getattr(each, name) for name in confirmations.COUNTS)) for each in runs]
    shown = table(columns, rows)
    if any(each.dry_run for each in runs):
        shown.caption = "Dry runs among these sent nothing: they count what would be done."
    return shown


def _when(run: Run) -> Text:
    lasted = (run.ended_at or max(datetime.now(UTC), run.opened_at)) - run.opened_at
    so_far = "" if run.ended_at else " so far"
    took = f"{timedelta(seconds=round(lasted.total_seconds()))}{so_far}"
    return Text.assemble(str(run.enterprise_customer_uuid), (f"\n  {run.opened_at:%Y-%m-%d %H:%M}, {took}", "dim"))


def _phase(run: Run) -> Text:
    style = {Phase.FINISHED: "green", Phase.FAILED: "red", Phase.ABANDONED: "red"}.get(Phase(run.phase), "cyan")
    beneath = [
        *(["dry run"] if run.dry_run else []),
        *([f"{run.retries} {'retry' if run.retries == 1 else 'retries'}"] if run.retries else []),
    ]
    return Text.assemble((run.phase, style), ("".join(f"\n{each}" for each in beneath), "dim"))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table whose first column, an id, is never broken; with five counts beside it, it fits 80 columns."""
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    for index, heading in enumerate(columns):
        numeric = bool(rows) and isinstance(rows[0][index], int)
        shown.add_column(heading, justify="right" if numeric else "left", no_wrap=index == 0)
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
    return shown


def show_held(licenses: Sequence[HeldLicense]) -> None:
    """Show held licenses, a table for each enterprise; they are in the order of these."""
    columns = ("license", "step", "reason", "tries", "first held (UTC)")
    for enterprise, group in groupby(licenses, lambda each: each.enterprise_customer_uuid):
        shown = table(
            columns,
            [
                (each.license_uuid, each.step, each.reason, each.tries, f"{each.first_held_at:%Y-%m-%d %H:%M}")
                for each in group
            ],
        )
        shown.title, shown.title_justify, shown.title_style = f"Enterprise {enterprise}", "left", "bold"
        out.print(shown)


def describe_held(license: HeldLicense) -> dict[str, Any]:
    """A held license as `--json` shows it."""
    return {
        "license_uuid": str(license.license_uuid),
        "enterprise_customer_uuid": str(license.enterprise_customer_uuid),
        "step": license.step,
        "reason": license.reason,
        "tries": license.tries,
        "first_held_at": license.first_held_at.isoformat(),
    }


def show_findings(findings: Sequence[Any], as_json: bool) -> int:
    """Show the doctor's findings, each with its remedy, as a table or as JSON; return 1 when one is wrong, else 0."""
    if as_json:
        show_json({"findings": [asdict(each) for each in findings]})
    else:
        styles = {"ok": "green", "warning": "yellow", "wrong": "red"}
        shown = table(("status", "subject", "what"), [])
        shown.show_header = False
        for each in findings:
            shown.add_row(Text(each.status, styles[each.status]), each.subject, Text(each.what))
            if each.remedy:
                shown.add_row("", "", Padding(Text(each.remedy, "bold"), (0, 0, 0, 2)))
        out.print(shown)
    return 1 if any(each.status == "wrong" for each in findings) else 0


def show_due(rows: Sequence[dict[str, Any]], plans: Sequence[PlanRow]) -> None:
    """Show the sums of `rehearsal.due_rows`, beneath each its plans with work, and what else there is to know."""
    columns = ("enterprise\n  plan", "plans,\nexpired", "downgrades", "unlinks", "protected")
    shown = table(columns, [])
    of = {enterprise: list(group) for enterprise, group in groupby(plans, lambda plan: plan.enterprise_customer_uuid)}
    for row in rows:
        shown.add_row(*map(str, row.values()))
        for plan in (each for each in of[row["enterprise_customer_uuid"]] if each.work):
            counts = [str(getattr(plan, name)) for name in columns[2:]]
            shown.add_row(f"  {plan.plan_uuid}", plan.expiration_date[:10], *counts, style="dim")
    sums = [str(sum(row[name] for row in rows)) for name in ("plans", *columns[2:])]
    shown.add_row(f"all {len(rows)}", *sums, style="bold")
    for column in shown.columns[1:]:
        column.justify = "right"
    out.print(shown if rows else "Nothing is due.")
    for sentence in _rehearsed([plan for row in rows for plan in of[row["enterprise_customer_uuid"]]], plans):
        out.print(sentence, highlight=False, soft_wrap=True)


def _rehearsed(working: Sequence[PlanRow], plans: Sequence[PlanRow]) -> Iterator[str]:
    protected, by_email, by_id = (
        sum(getattr(plan, name) for plan in working)
        for name in ("protected", "protected_by_user_email", "protected_by_lms_user_id")
    )
    if protected:
        kinds = f"{protected - by_id} by e-mail, {protected - by_email} by LMS user id"
        yield f"Protected by another license: {protected} ({kinds}, {by_email + by_id - protected} by both)."
    waiting = [plan for plan in plans if plan.state == "waiting"]
    if waiting:
        yield f"Waiting for a renewal: plans {len(waiting)}, their licenses {sum(plan.waiting for plan in waiting)}."
    if back := max((plan.nights_back for plan in working), default=0):
        yield f"Nights since the oldest became due: {back}; --expired-after leaves older plans out."


def write_file(file: Path, text: str) -> None:
    """Write a file whole or not at all. Raises Unusable."""
    part = Path(f"{file}.part")
    try:
        part.write_text(text, "utf-8")
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Unusable(f"{file} cannot be written ({error.strerror}): give another FILE") from None


def show_csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Print rows as CSV, beneath the names of their columns."""
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def show_json(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(value, indent=2))
