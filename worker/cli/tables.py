"""The command's output: tables that fit 80 columns, CSV, JSON, files."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import UUID

import click
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from worker.db.ledger_tables import HeldLicense, Run, Wait
from worker.due.fates import Progress
from worker.due.forecast import PlanRow
from worker.errors import Unusable
from worker.ledger import order, waits
from worker.ledger.runs import COUNTS, describe, is_waiting
from worker.logs import printable
from worker.web.timeline import lost_worker

Names = Mapping[UUID, str]
NAME_WIDTH = 34  # of a UUID, less the indent
# The most plans listed that wait for a renewal which nobody processed; CSV and JSON have them all.
SHOWN = 10


class Screen(Console):
    """A console that removes control characters: other people typed the names and reasons."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return the segments to print (rich's hook); rich's own terminal commands are separate segments."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


out = Screen()
err = Screen(stderr=True)


def show_runs(
    runs: Sequence[Run], as_json: bool, none: str, names: Names, hint: str = "", more: dict[str, Any] | None = None
) -> int:
    """Show runs as a table with a hint and their errors, or as JSON; return their exit status.

    `names` are the enterprises' names; `more` is put before the runs in the JSON.
    """
    if as_json:
        show_json((more or {}) | {"runs": [described(run, names) for run in runs]})
    elif not runs:
        out.print(none)
    else:
        shown = runs_table(runs, names)
        shown.caption = "\n".join(str(line) for line in (shown.caption, hint) if line) or None
        out.print(shown)
        for run in runs:
            for said in filter(None, (run.error, lost_worker(run, datetime.now(UTC)))):
                told = flattened(f"{run.enterprise_customer_uuid}: {said}")
                out.print(told, markup=False, highlight=False, soft_wrap=True)
    bad = any(run.phase in order.WENT_WRONG or run.licenses_held for run in runs)
    return 1 if bad else 0


def described(run: Run, names: Names) -> dict[str, Any]:
    """A run as `--json` shows it."""
    return describe(run) | {"enterprise_customer_name": names.get(run.enterprise_customer_uuid)}


def show_pause(pause: Wait | None) -> None:
    """Show the pause that stands, if any, as a line."""
    if pause:
        told = waits.told_of_pause(pause)
        said = flattened(f"{told[0].upper()}{told[1:]} (license-expiry resume ends it)")
        out.print(said, style="yellow", markup=False, highlight=False, soft_wrap=True)


def describe_pause(pause: Wait) -> dict[str, Any]:
    """A pause as `--json` shows it."""
    return {"since": pause.since.isoformat(), "by": pause.set_by, "reason": pause.reason}


def show_outage(outage: Wait | None) -> None:
    """Say that all runs wait for the LMS, if they do."""
    if outage and outage.again_at:
        since, again = f"{outage.since:%Y-%m-%d %H:%M:%S}", f"{outage.again_at:%H:%M:%S}"
        said = f"All runs wait for the LMS since {since} UTC, next try at {again}: {outage.error}"
        out.print(Text(said, "bold yellow"), soft_wrap=True)


def runs_table(runs: Sequence[Run], names: Names) -> Table:
    """Runs as a table, two to four lines for each: the enterprise's name, its UUID, when it ran, who asked and why."""
    counts = ("plans", "down-\ngraded", "held", "un-\nlinked", "pro-\ntected")
    rows = [(_when(run, names), _phase(run), *(getattr(run, name) for name in COUNTS)) for run in runs]
    shown = table(("enterprise\n  began (UTC), took", "phase", *counts), rows)
    if any(run.dry_run for run in runs):
        shown.caption = "Dry runs among these sent nothing: they count what would be done."
    return shown


def flattened(text: str) -> str:
    """A text without its line breaks: what others typed must not look like a line of ours."""
    return " ".join(text.split())


def short(text: str) -> str:
    """A text of any length as one more line of a table's first column, no wider than the UUID above; none if empty."""
    line = flattened(text)
    cut = line if len(line) <= NAME_WIDTH else f"{line[: NAME_WIDTH - 1]}…"
    return cut and f"\n  {cut}"


def _when(run: Run, names: Names) -> Text:
    lasted = (run.ended_at or max(datetime.now(UTC), run.opened_at)) - run.opened_at
    so_far = "" if run.ended_at else " so far"
    took = f"{timedelta(seconds=round(lasted.total_seconds()))}{so_far}"
    name = short(names.get(run.enterprise_customer_uuid, ""))
    why = short(": ".join(text for text in (run.triggered_by and f"by {run.triggered_by}", run.reason) if text))
    when = f"\n  {run.opened_at:%Y-%m-%d %H:%M}, {took}"
    return Text.assemble(str(run.enterprise_customer_uuid), (name, "bold"), (when + why, "dim"))


def _phase(run: Run) -> Text:
    styles = {order.Phase.FINISHED: "green", order.Phase.STOPPED: "yellow", **dict.fromkeys(order.WENT_WRONG, "red")}
    retries = f"{run.retries} {'retry' if run.retries == 1 else 'retries'}" if run.retries else ""
    stopping = "stopping" if run.live and run.stopped_by else ""
    waits = f"waits: {run.waits_for}" if is_waiting(run) else ""
    beneath = filter(None, ("dry run" if run.dry_run else "", stopping, retries, waits))
    style = styles.get(order.Phase(run.phase), "cyan")
    return Text.assemble((run.phase, style), ("".join(f"\n{line}" for line in beneath), "dim"))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table whose first column, an id, is never broken; with five counts beside it, it fits 80 columns."""
    shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left")
    for index, heading in enumerate(columns):
        numeric = bool(rows) and isinstance(rows[0][index], int)
        shown.add_column(heading, justify="right" if numeric else "left", no_wrap=index == 0)
    for row in rows:
        shown.add_row(*(cell if isinstance(cell, Text) else str(cell) for cell in row))
    return shown


def show_held(licenses: Sequence[HeldLicense], names: Names) -> None:
    """Show held licenses, a table for each enterprise; they are in the order of these."""
    columns = ("license", "step", "reason", "tries", "first held (UTC)")
    for enterprise, group in groupby(licenses, lambda license: license.enterprise_customer_uuid):
        rows = [(one.license_uuid, one.step, one.reason, one.tries, one.first_held_at) for one in group]
        shown = table(columns, [(*row, f"{moment:%Y-%m-%d %H:%M}") for *row, moment in rows])
        name = flattened(names.get(enterprise, ""))
        shown.title = Text(f"Enterprise {enterprise}{name and f', {name}'}")
        shown.title_justify, shown.title_style = "left", "bold"
        out.print(shown)


def describe_held(license: HeldLicense, names: Names) -> dict[str, Any]:
    """A held license as `--json` shows it."""
    ids: dict[str, Any] = {name: str(getattr(license, name)) for name in ("license_uuid", "enterprise_customer_uuid")}
    ids["enterprise_customer_name"] = names.get(license.enterprise_customer_uuid)
    why = {"step": license.step, "reason": license.reason, "tries": license.tries}
    return ids | why | {"first_held_at": license.first_held_at.isoformat()}


def show_findings(findings: Sequence[Any], as_json: bool) -> int:
    """Show the doctor's findings, each with its remedy, as a table or as JSON; return 1 when one is wrong, else 0."""
    if as_json:
        show_json({"findings": [asdict(finding) for finding in findings]})
    else:
        styles = {"ok": "green", "warning": "yellow", "wrong": "red"}
        shown = table(("status", "subject", "what"), [])
        shown.show_header = False
        for finding in findings:
            shown.add_row(Text(finding.status, styles[finding.status]), finding.subject, Text(finding.what))
            if finding.remedy:
                shown.add_row("", "", Padding(Text(finding.remedy, "bold"), (0, 0, 0, 2)))
        out.print(shown)
    return 1 if any(finding.status == "wrong" for finding in findings) else 0


@contextmanager
def counting(*, quiet: bool) -> Iterator[Progress]:
    """Show the progress of counting on a terminal's stderr; nothing when `quiet`."""
    if quiet or not err.is_terminal:
        yield lambda _done, _of: None
        return
    doing = "Counting what is due ..."
    with err.status(doing) as status:
        yield lambda done, of: status.update(f"{doing} {done:,} of {of:,} enterprises")


def show_due(rows: Sequence[dict[str, Any]], plans: Sequence[PlanRow], unlink_limit: int) -> None:
    """Show the sums of `forecast.due_rows`, beneath each its plans with work, then a summary.

    Each row also has the enterprise's name, see `with_names`.
    """
    columns = ("enterprise\n  plan", "plans,\nexpired", "downgrades", "unlinks", "protected")
    shown = table(columns, [])
    of = {enterprise: list(group) for enterprise, group in groupby(plans, lambda plan: plan.enterprise_customer_uuid)}
    for row in rows:
        name = short(row["enterprise_customer_name"] or "")
        first = Text.assemble(row["enterprise_customer_uuid"], (name, "bold"))
        shown.add_row(first, *(str(row[column]) for column in ("plans", *columns[2:])))
        for plan in (plan for plan in of[row["enterprise_customer_uuid"]] if plan.work):
            counts = [str(getattr(plan, name)) for name in columns[2:]]
            shown.add_row(f"  {plan.plan_uuid}", plan.expiration_date[:10], *counts, style="dim")
    sums = [str(sum(row[name] for row in rows)) for name in ("plans", *columns[2:])]
    shown.add_row(f"all {len(rows)}", *sums, style="bold")
    for column in shown.columns[1:]:
        column.justify = "right"
    out.print(shown if rows else "Nothing is due.")
    for sentence in _summary([plan for row in rows for plan in of[row["enterprise_customer_uuid"]]], plans):
        out.print(sentence, highlight=False, soft_wrap=True)
    for row in rows:
        if unlink_limit and row["unlinks"] > unlink_limit:
            whose = f"--enterprise {row['enterprise_customer_uuid']} --approve-unlinks {row['unlinks']} --reason TEXT"
            said = f"More unlinks than UNLINK_LIMIT, {unlink_limit}, need your approval: license-expiry run {whose}"
            out.print(said, highlight=False, soft_wrap=True)


def _summary(working: Sequence[PlanRow], plans: Sequence[PlanRow]) -> Iterator[str]:
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
    overdue = sorted((plan for plan in waiting if plan.waiting_since), key=lambda plan: str(plan.waiting_since))
    for plan in overdue[:SHOWN]:
        yield f"  {plan.plan_uuid}: waiting for a renewal since {str(plan.waiting_since)[:10]}"
    if overdue:
        more = f" ({len(overdue) - SHOWN} more, see --csv)" if overdue[SHOWN:] else ""
        yield f"Nobody has processed these renewals{more}."
        yield "Process them in license-manager, or treat such a chain as ended:"
        yield "  license-expiry run --plan UUID --force --reason TEXT"
    undated = [plan.plan_uuid for plan in plans if plan.state == "undated"]
    if undated:
        yield f"No night touches a plan whose expiration date cannot be read: {', '.join(undated[:SHOWN])}"
        yield f"  ({len(undated)} in all). Correct the date in license-manager's database."
    if without := sum(plan.without_email for plan in plans):
        yield f"Licenses that cannot be unlinked, because they have no e-mail: {without}."
    if back := max((plan.nights_back for plan in working), default=0):
        yield f"Nights since the oldest became due: {back}; --expired-after leaves older plans out."


def write_file(file: Path, text: str) -> None:
    """Write a file atomically. Raises Unusable."""
    part = Path(f"{file}.part")
    try:
        part.write_text(text, "utf-8")
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise Unusable(f"{file} cannot be written ({error.strerror})", "give another FILE") from None


def show_csv(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Print rows as CSV, beneath the names of their columns."""
    writer = csv.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def show_json(value: dict[str, Any]) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(value, indent=2))
