"""Resumes what was abandoned: runs whose worker died or whose chain was lost, and nights that beat missed.

Also has the ledger pruned.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from worker.deps import Deps
from worker.errors import BadArgument
from worker.ledger import nights, past, runs, waits
from worker.ledger.identity import check_lms
from worker.ledger.stalled import end_lost_stops, release_stalled
from worker.logs import get_logger
from worker.runs.request import Request
from worker.runs.start import Publish, start_runs, start_scheduled_night
from worker.runs.steps import settle

log = get_logger(__name__)

BY = "reconcile"


def end_stopped_runs(deps: Deps) -> int:
    """End the stopped runs whose worker was lost; return how many."""
    ended = end_lost_stops(deps.database)
    for run_id in ended:
        log.info("run stopped: its worker was lost", run=run_id)
    return len(ended)


def hold_back(deps: Deps, latest: datetime | None) -> bool:
    """Is everything paused? Then note the `latest` scheduled night, for after the pause, if nobody has begun it."""
    pause = deps.database.transact(waits.standing_pause)
    if pause is None:
        return False
    check_lms(deps.database, deps.settings.LMS_URL, first=False)
    if latest:
        nights.note_missed(deps.database, latest)
    log.info(waits.told_of_pause(pause))
    return True


def republish_stalled_runs(deps: Deps, publish: Publish, count_messages: Callable[[], int | None]) -> dict[str, int]:
    """Publish the rest of each abandoned chain; return how many were published and how many given up.

    `count_messages` says how many messages wait in the broker's queue of steps, None when the broker cannot be asked:
    nothing is published then. Raises what a publication raised, after the others were tried; Unusable when the
    database is another LMS's.
    """
    check_lms(deps.database, deps.settings.LMS_URL, first=False)
    messages = count_messages()  # before the ledger: what is received in between is seen there
    again, given_up = release_stalled(deps.database, deps.settings.TASK_TIME_LIMIT_SECONDS, messages)
    failure: Exception | None = None
    for run in again:
        names = {"enterprise": run.enterprise_customer_uuid, "run": run.id, "message": run.message_number}
        log.warning("publishing a run again", **names, phase=run.phase, lost=run.owner or "its message")
        try:
            publish(run.enterprise_customer_uuid, run.id, run.message_number)
        except Exception as error:
            failure = error
            settle(runs.let_lapse, deps.database, [run.id])
    for run_id in given_up:
        log.error("run ended: license-expiry status tells why", run=run_id)
    if failure:
        raise failure
    return {"published": len(again), "abandoned": len(given_up)}


def start_overdue_nights(deps: Deps, latest: datetime, publish: Publish) -> int:
    """Start the `latest` scheduled night if nobody has, and resume abandoned ones; return how many these were."""
    begun = 0
    for scheduled_for in nights.note_and_find_overdue(deps.database, latest):
        log.warning("making good a night that was missed or let down", night=scheduled_for.isoformat())
        begun += start_scheduled_night(deps, scheduled_for, publish, BY) is not None
    return begun


def start_postponed_runs(deps: Deps, publish: Publish) -> int:
    """Start the runs of nights that found another run of their enterprise live, which has ended; return how many."""
    begun = 0
    for run in nights.postponed(deps.database):
        enterprise = run.enterprise_customer_uuid
        try:
            started = start_runs(deps, Request(triggered_by=BY), [enterprise], publish, run.night_after)
        except BadArgument as error:  # it is gone from license-manager
            log.warning("nothing to be made good", enterprise=enterprise, night=run.night_after, error=str(error))
            started = []
        nights.not_postponed(deps.database, run.id)
        begun += sum(new.new for new in started)
    return begun


def prune_ledger(deps: Deps, latest: datetime | None) -> int:
    """Prune a part of what is older than it may be; return how many runs. `latest` is the last scheduled night."""
    pruned = past.prune(deps.database, timedelta(days=deps.settings.LEDGER_KEEP_DAYS), latest)
    if pruned:
        log.info("old runs pruned", runs=pruned, keep_days=deps.settings.LEDGER_KEEP_DAYS)
    return pruned
