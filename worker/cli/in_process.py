"""`license-expiry run --here`: the steps of runs in this process, one after the other."""

import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

from worker import shutdown
from worker.cli import tables
from worker.db.ledger_tables import ENDED, Run
from worker.deps import Deps
from worker.due.scope import scope_of
from worker.errors import LicenseExpiryError
from worker.ledger.claims import Step
from worker.logs import get_logger
from worker.runs import start, steps

log = get_logger(__name__)


def run_all(deps: Deps, started: Sequence[start.Started], request: start.Request) -> None:
    """Do both steps of these runs, but for those that another has; SIGINT and SIGTERM end it after the calls in flight.

    Raises nothing that a run fails with: the ledger has that.
    """
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, _stop)
    for each in started:
        _run(deps, each, request)


def _stop(*_: Any) -> None:
    said = "Ending after the calls in flight. What is left stays live: run --here again goes on with it."
    tables.err.print(said, soft_wrap=True)
    shutdown.stop()


def _run(deps: Deps, started: start.Started, request: start.Request) -> None:
    """Do both steps of a run in this process; take up another's only when it asks for the same."""
    run = deps.database.transact(lambda session: session.get_one(Run, started.run_id))
    if run.phase in ENDED:  # refused as it was opened
        return
    asked, live = (scope_of(deps.settings, each, run.as_of, started.enterprise) for each in (request, run))
    if (asked, request.dry_run) != (live, run.dry_run):
        tables.err.print(f"Run {run.id} asks for something else: not taken up.", soft_wrap=True)
        return
    owner = f"{socket.gethostname()}, process {os.getpid()}"
    for step in Step:
        more = True
        while more and not shutdown.stopping():
            try:
                outcome = steps.attempt(deps, run.id, started.enterprise, step, owner, lambda _: None)
            except Exception as error:
                if not isinstance(error, LicenseExpiryError):
                    log.exception("an error of our own", run=run.id)
                return  # the ledger has it, and the report shows it; the next enterprise is not to suffer
            if outcome.skipped and step is Step.UNLINK:
                tables.err.print(f"Not done here: {outcome.skipped}. Try again then.", soft_wrap=True)
            more = outcome.more
