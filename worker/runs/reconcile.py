"""Resumes runs whose worker died or whose message was lost, and starts nights that were missed.

Also ends stopped runs and prunes the ledger.
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
    """Return whether everything is paused. If so, record the `latest` scheduled night, to begin it after the pause."""
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

    `count_messages` returns how many messages wait in the broker's queue of steps, or None if the broker cannot be
    asked; then nothing is published. If `publish` raises, the others are still tried before its error is raised.
    Raises Unusable if the database belongs to another LMS.
    """
    check_lms(deps.database, deps.settings.LMS_URL, first=False)
    messages = count_messages()  # before reading the ledger, which shows the messages received in between
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
        log.error("run abandoned: license-expiry status shows the reason", run=run_id)
    if failure:
        raise failure
    return {"published": len(again), "abandoned": len(given_up)}


def start_overdue_nights(deps: Deps, latest: datetime, publish: Publish) -> int:
    """Start the `latest` scheduled night if it was missed, and resume abandoned ones; return how many were started."""
    begun = 0
    for scheduled_for in nights.note_and_find_overdue(deps.database, latest):
        log.warning("starting a night that was missed or abandoned", night=scheduled_for.isoformat())
        begun += start_scheduled_night(deps, scheduled_for, publish, BY) is not None
    return begun


def start_postponed_runs(deps: Deps, publish: Publish) -> int:
    """Start the runs of nights that had to wait for another run of the same enterprise; return how many."""
    begun = 0
    for run in nights.postponed(deps.database):
        enterprise = run.enterprise_customer_uuid
        try:
            started = start_runs(deps, Request(triggered_by=BY), [enterprise], publish, run.night_after)
        except BadArgument as error:  # license-manager has no such enterprise any more
            log.warning("postponed run not started", enterprise=enterprise, night=run.night_after, error=str(error))
            started = []
        nights.not_postponed(deps.database, run.id)
        begun += sum(new.new for new in started)
    return begun


def prune_ledger(deps: Deps, latest: datetime | None) -> int:
    """Delete some of the runs older than LEDGER_KEEP_DAYS; return how many. `latest` is the last scheduled night."""
    pruned = past.prune(deps.database, timedelta(days=deps.settings.LEDGER_KEEP_DAYS), latest)
    if pruned:
        log.info("old runs pruned", runs=pruned, keep_days=deps.settings.LEDGER_KEEP_DAYS)
    return pruned
