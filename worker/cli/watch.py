"""Waits for runs to end, and shows their progress."""

import time
from collections.abc import Collection, Iterator, Sequence
from uuid import UUID

from rich.live import Live
from sqlalchemy import Select, select

from worker.cli import tables
from worker.cli.options import names_for
from worker.db.ledger_tables import Run
from worker.db.transactions import Database
from worker.ledger import order
from worker.ledger.runs import COUNTS, runs_by_id

POLL_SECONDS = 0.5
PATIENCE_SECONDS = 15.0
MOST_SHOWN = 5  # live runs, four lines for each: a small terminal shows them whole


def live_runs(enterprise: UUID | None) -> Select[UUID]:
    """The runs that have not ended, of this enterprise if one is given."""
    live = select(Run.id).where(Run.live.is_not(None))
    return live if enterprise is None else live.where(Run.live == enterprise)


def watch_runs(
    database: Database,
    run_ids: Collection[UUID],
    *,
    wait: bool,
    quiet: bool,
    joining: Select[UUID] | None = None,
    afterwards: str = "The runs go on",
) -> Sequence[Run]:
    """Wait until these runs have ended, with a live table on a terminal and a line for each run elsewhere.

    Those that `joining` finds meanwhile are waited for too. `afterwards` is printed after Ctrl-C.
    """
    if not wait:
        return database.transact(lambda session: runs_by_id(session, run_ids))
    try:
        return _wait(database, _polled(database, set(run_ids), joining), quiet)
    except KeyboardInterrupt:
        said = f"Stopped waiting. {afterwards}; see them with: license-expiry status --watch"
        tables.err.print(said, soft_wrap=True)
        raise SystemExit(130) from None


def _wait(database: Database, polled: Iterator[Sequence[Run]], quiet: bool) -> Sequence[Run]:
    runs: Sequence[Run] = ()
    if quiet or not tables.out.is_terminal:
        told: set[UUID] = set()
        for runs in polled:
            for run in runs:
                if run.phase in order.ENDED and run.id not in told and not quiet:
                    told.add(run.id)
                    tables.out.print(_line(run), markup=False, highlight=False, soft_wrap=True)
        return runs
    with Live(console=tables.out, transient=True, auto_refresh=False) as live:
        for runs in polled:
            going = [run for run in runs if run.phase not in order.ENDED]
            table = tables.runs_table(going[:MOST_SHOWN], names_for(database, going[:MOST_SHOWN]))
            table.caption = f"{len(runs) - len(going)} of {len(runs)} enterprises done"
            live.update(table, refresh=True)
    return runs


def _polled(database: Database, run_ids: set[UUID], joining: Select[UUID] | None) -> Iterator[Sequence[Run]]:
    begun, hinted = time.monotonic(), False
    while True:
        if joining is not None:
            run_ids.update(database.transact(lambda session: session.scalars(joining).all()))
        runs = database.transact(lambda session: runs_by_id(session, run_ids))
        yield runs
        if all(run.phase in order.ENDED for run in runs):
            return
        untouched = all(run.phase == order.Phase.QUEUED for run in runs)
        if untouched and not hinted and time.monotonic() - begun > PATIENCE_SECONDS:
            hinted = True
            said = "No worker has started these runs after 15 s. Start one: celery -A worker worker"
            tables.err.print(said, soft_wrap=True)
        time.sleep(POLL_SECONDS)


def _line(run: Run) -> str:
    counts = " ".join(f"{name}={getattr(run, name)}" for name in COUNTS)
    dry_run = " dry_run" if run.dry_run else ""
    return f"{run.enterprise_customer_uuid} {run.phase}{dry_run} {counts}"
