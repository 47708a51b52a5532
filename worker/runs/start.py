"""Starts a night or an enterprise: checks the request, opens the runs, publishes their chains."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import partial
from uuid import UUID

from worker.db.schema_check import require_schema
from worker.db.transactions import Database
from worker.deps import Deps
from worker.due.enterprises import find_due_enterprises
from worker.due.scope import scope_of
from worker.errors import LicenseExpiryError, Paused
from worker.ledger import nights, runs, waits
from worker.ledger.identity import check_lms
from worker.logs import get_logger
from worker.runs.request import Request, check_against_database, unknown_enterprises

log = get_logger(__name__)

# This many runs are opened at once and then published, so that the first ones start before the last are opened.
CHUNK = 100

Publish = Callable[[UUID, UUID, int], None]
"""Publishes the chain of a run: (enterprise customer UUID, run id, number of the message)."""


def start_runs(
    deps: Deps,
    request: Request,
    enterprises: Iterable[UUID],
    publish: Publish,
    scheduled_for: datetime | None = None,
    trigger: str | None = None,
) -> list[runs.Opened]:
    """Open and publish a run for each of these enterprises (all, if none is given) that has work due.

    `scheduled_for` (UTC) is the scheduled night of these runs, if any. `trigger` is the id of the task that asks for
    them: the same id opens no second run. If all enterprises were asked for, each one on the unlink list that
    license-manager does not know gets a failed run with the reason.
    Before anything is written, raises BadArgument as `check_against_database`, and Unusable as `require_schema` or if
    the database belongs to another LMS. Raises Paused while everything is paused, even after some runs were opened.
    """
    deps.database.transact(waits.refuse_while_paused)
    return _start_runs(deps, request, frozenset(enterprises), publish, scheduled_for, trigger)


def _start_runs(
    deps: Deps,
    request: Request,
    named: frozenset[UUID],
    publish: Publish,
    scheduled_for: datetime | None,
    trigger: str | None = None,
) -> list[runs.Opened]:
    triggered_at = deps.database.now()
    check_against_database(deps.database, request, named, triggered_at)
    due = _due(deps, request, named, triggered_at)
    check_lms(deps.database, deps.settings.LMS_URL, first=bool(due))
    if due:  # checked again, because license-manager may have been upgraded since this worker started
        deps.database.transact(lambda session: require_schema(session.connection()))
    columns = request.model_dump() | {"plan_uuids": request.plan_uuids and [str(u) for u in request.plan_uuids]}
    started: list[runs.Opened] = []
    for first in range(0, len(due), CHUNK):
        if first:  # opening many runs takes long enough for a pause to be set meanwhile
            deps.database.transact(waits.refuse_while_paused)
        chunk = due[first : first + CHUNK]
        opened = runs.open_runs(deps.database, chunk, triggered_at, scheduled_for, trigger, **columns)
        _publish(deps.database, publish, opened)
        started += opened
    if not named and request.as_every_night:
        for enterprise, error in unknown_enterprises(deps.settings, deps.database).items():
            run_id = runs.record_refusal(deps.database, enterprise, triggered_at, str(error), scheduled_for, trigger)
            started.append(runs.Opened(enterprise, run_id, new=True))
    return started


def start_scheduled_night(deps: Deps, scheduled_for: datetime, publish: Publish, by: str) -> list[runs.Opened] | None:
    """Start the night scheduled for this moment (UTC), as `start_runs` does; return None if it had begun before.

    `by` is recorded as the runs' `triggered_by`: beat or `reconcile`. While everything is paused, records the night,
    to begin it after the pause, and raises Paused.
    """
    check_lms(deps.database, deps.settings.LMS_URL, first=False)
    try:
        deps.database.transact(waits.refuse_while_paused)
    except Paused as reason:
        nights.note(deps.database, scheduled_for)
        log.info("the night is held back", night=scheduled_for.isoformat(), reason=str(reason))
        raise
    if not nights.begin(deps.database, scheduled_for):
        log.info("the night has already begun", night=scheduled_for.isoformat())
        return None
    try:
        started = _start_runs(deps, Request(triggered_by=by), frozenset(), publish, scheduled_for)
    except Exception:
        log.error("not all runs of the night could be opened: reconcile resumes it", night=scheduled_for.isoformat())
        nights.give_back(deps.database, scheduled_for)
        raise
    nights.opened(deps.database, scheduled_for)
    log.info("the night is opened", night=scheduled_for.isoformat(), enterprises=len(started))
    return started


def _due(deps: Deps, request: Request, named: frozenset[UUID], as_of: datetime) -> list[UUID]:
    """Return the enterprise customers with work due, sorted. If `named` is not empty, search only those in it."""
    scope = scope_of(deps.database, deps.settings, as_of, request)
    scopes = [replace(scope, enterprise=enterprise) for enterprise in named or [None]]
    return sorted(
        enterprise
        for scope in scopes
        for enterprise in deps.database.transact(partial(find_due_enterprises, scope=scope))
    )


def _publish(database: Database, publish: Publish, opened: Sequence[runs.Opened]) -> None:
    left = {run.run_id for run in opened if run.new}
    try:
        for run in opened:
            if run.new:
                publish(run.enterprise, run.run_id, 1)
                left.remove(run.run_id)
            what = "run opened" if run.new else "run was already opened" if run.repeated else "has a live run already"
            log.info(what, enterprise=run.enterprise, run=run.run_id)
    except Exception:
        with suppress(LicenseExpiryError):  # if this fails, `reconcile` publishes them some minutes later
            runs.let_lapse(database, left)
        raise
