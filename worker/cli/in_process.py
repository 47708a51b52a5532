"""`license-expiry run --here`: the steps of runs in this process, one after the other."""

import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

from worker.cli import tables
from worker.db.ledger_tables import Run
from worker.deps import Deps
from worker.due.scope import scope_of
from worker.errors import LicenseExpiryError, Stopping
from worker.ledger import order, runs
from worker.logs import get_logger
from worker.runs import attempt, request

log = get_logger(__name__)


def run_all(deps: Deps, started: Sequence[runs.Opened], request: request.Request) -> None:
    """Do all steps of these runs, except those that another process has.

    SIGINT and SIGTERM end it after the calls in flight. The failure of a run raises nothing: the ledger has it.
    """

    def stop(*_: Any) -> None:
        said = "Stopping after the calls in flight. Unfinished runs stay live; resume them: license-expiry run --here"
        tables.err.print(said, soft_wrap=True)
        deps.shutdown.begin()

    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, stop)
    for run in started:
        _run(deps, run, request)


def _run(deps: Deps, started: runs.Opened, request: request.Request) -> None:
    """Do all steps of a run in this process; resume a live one only if its options are the same."""
    run = deps.database.transact(lambda session: session.get_one(Run, started.run_id))
    if run.phase in order.ENDED:  # refused as it was opened
        return
    known = (deps.database, deps.settings)
    asked, live = (scope_of(*known, run.as_of, wanted, started.enterprise) for wanted in (request, run))
    if (asked, request.dry_run) != (live, run.dry_run):
        tables.err.print(f"Run {run.id} has other options than this command: not resumed.", soft_wrap=True)
        return
    owner = f"{socket.gethostname()}, process {os.getpid()}"
    for step in order.STEPS:
        more = True
        while more and not deps.shutdown.begun:
            try:
                outcome = attempt.attempt(deps, run.id, started.enterprise, step, owner)
                if outcome.retry:
                    _wait(deps, outcome.retry)
            except Stopping:
                return
            except Exception as error:
                if not isinstance(error, LicenseExpiryError):
                    log.exception("an error of our own", run=run.id)
                return  # the ledger has it, and the report shows it; the next enterprise goes on
            if outcome.skipped and step is order.STEPS[-1]:
                tables.err.print(f"Skipped: {outcome.skipped}. Run this command again later.", soft_wrap=True)
            more = outcome.more or outcome.retry is not None


def _wait(deps: Deps, retry: attempt.Retry) -> None:
    """Say why the step waits, and wait. Raises Stopping."""
    tables.err.print(f"Retrying in {retry.seconds} s: {retry.error}", markup=False, soft_wrap=True)
    deps.shutdown.sleep(retry.seconds)
