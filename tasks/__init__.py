"""The Celery tasks: thin shells over worker.runs, and the one function that builds the chain."""

import os
import random
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from celery import Task, chain, current_app, shared_task
from celery.canvas import Signature
from kombu.exceptions import OperationalError

from tasks.base import OurTask, Trigger
from tasks.broker import count_messages
from tasks.schedule import latest_night
from worker.clock import BEAT_AHEAD
from worker.deps import Deps, get_deps
from worker.errors import BadArgument, LicenseExpiryError, Paused, Unavailable
from worker.ledger import nights, order, runs
from worker.ledger.order import DOWNGRADE, UNLINK, Step
from worker.logs import get_logger
from worker.runs import reconcile as reconciling
from worker.runs.attempt import Retry, attempt
from worker.runs.request import Request, parse_request, parse_uuid
from worker.runs.start import start_runs, start_scheduled_night
from worker.settings import RUN_ENTERPRISE, RUN_NIGHTLY

log = get_logger(__name__)

_BROKER_RETRY_SECONDS = 30
_OTHER_LEDGER_SECONDS = 60
OTHER_LEDGER = "two installations share one Redis database or vhost: set another CELERY_BROKER_URL for each"


# Opening runs again is harmless, so a trigger whose process was lost is redelivered to another one. An unknown argument
# fails the task, not its publication.
TRIGGER: dict[str, Any] = {
    "base": Trigger,
    "max_retries": 5,
    "throws": (LicenseExpiryError,),
    "reject_on_worker_lost": True,
    "typing": False,
}
STEP: dict[str, Any] = {"base": OurTask, "bind": True, "max_retries": None, "throws": (LicenseExpiryError,)}


def build_chain(enterprise: UUID, run_id: UUID, number: int, ledger: UUID | None) -> Signature[Any]:
    """The order of this project, from its table: downgrade, then unlink. Published again, it resumes the run."""
    return chain(*(_signature(step, enterprise, run_id, number, ledger) for step in order.STEPS))


def publish(enterprise: UUID, run_id: UUID, number: int, ledger: UUID | None = None) -> None:
    """Publish a run's chain, as its message of this number; `ledger` is this process's own by default.

    Raises kombu's OperationalError when the broker does not answer.
    """
    build_chain(enterprise, run_id, number, ledger or get_deps().ledger).apply_async()


def _signature(step: Step, enterprise: UUID, run_id: UUID, number: int | None, ledger: UUID | None) -> Signature[Any]:
    names: dict[str, Any] = {"enterprise_customer_uuid": str(enterprise), "run_id": str(run_id)}
    more = {"message_number": number, "ledger": ledger and str(ledger)}
    names |= {name: value for name, value in more.items() if value is not None}
    return current_app.signature(step.task, kwargs=names, immutable=True)


@shared_task(name=RUN_NIGHTLY, bind=True, **TRIGGER)
def run_nightly(
    self: Task[Any, Any],
    dry_run: bool = False,
    reason: str | None = None,
    triggered_by: str | None = None,
    judged_by: str | None = None,
) -> dict[str, Any]:
    """Open and publish a run for every enterprise with work due; return how many, and their ids.

    Sent by beat, it starts the scheduled night, once; by anybody else, one more pass. `judged_by` is
    Settings.judged_by of the process that showed the preview: a worker whose settings differ refuses.
    """
    scheduled = bool((self.request.headers or {}).get("scheduled"))
    if scheduled and (self.request.args or self.request.kwargs):
        what = "nothing was started: a task with the header scheduled is the night as beat sends it, without arguments"
        raise BadArgument(what, "leave out the header, or the arguments")
    _check_settings(judged_by)
    return _start(self, parse_request(dry_run=dry_run, reason=reason, triggered_by=triggered_by), scheduled=scheduled)


@shared_task(name=RUN_ENTERPRISE, bind=True, **TRIGGER)
def run_enterprise(
    self: Task[Any, Any],
    enterprise_customer_uuid: str,
    dry_run: bool = False,
    plan_uuids: list[str] | None = None,
    expired_after: str | None = None,
    expired_before: str | None = None,
    force: bool = False,
    reason: str | None = None,
    approve_unlinks: int | None = None,
    triggered_by: str | None = None,
    judged_by: str | None = None,
) -> dict[str, Any]:
    """Open and publish a run for one enterprise if it has work due; or return its live run.

    `judged_by` is as `run_nightly` has it.
    """
    _check_settings(judged_by)
    enterprise = parse_uuid("enterprise_customer_uuid", enterprise_customer_uuid)
    request = parse_request(
        dry_run=dry_run,
        plan_uuids=plan_uuids,
        expired_after=expired_after,
        expired_before=expired_before,
        force=force,
        reason=reason,
        approve_unlinks=approve_unlinks,
        triggered_by=triggered_by,
    )
    return _start(self, request, enterprise)


@shared_task(name=DOWNGRADE.task, **STEP)
def downgrade_enrollments(
    self: Task[Any, Any],
    enterprise_customer_uuid: str,
    run_id: str,
    message_number: int | None = None,
    ledger: str | None = None,
) -> dict[str, Any]:
    """Do the first step of a run: downgrade the enrollments of licenses whose plan has expired."""
    return run_step(self, DOWNGRADE, enterprise_customer_uuid, run_id, message_number, ledger)


@shared_task(name=UNLINK.task, **STEP)
def unlink_learners(
    self: Task[Any, Any],
    enterprise_customer_uuid: str,
    run_id: str,
    message_number: int | None = None,
    ledger: str | None = None,
) -> dict[str, Any]:
    """Do the second step of a run: unlink the learners who are due."""
    return run_step(self, UNLINK, enterprise_customer_uuid, run_id, message_number, ledger)


@shared_task(name="license_expiry.reconcile", base=Trigger, throws=(LicenseExpiryError,))
def reconcile() -> dict[str, int]:
    """Resume abandoned runs (a worker died, the broker lost the chain), start the night that beat missed, and prune.

    While everything is paused it only ends stopped runs, records the night and its heartbeat.
    """
    deps = get_deps()
    stopped, latest = reconciling.end_stopped_runs(deps), _latest_night(deps)
    if reconciling.hold_back(deps, latest):
        nights.record_heartbeat(deps.database)
        return {"stopped": stopped, "paused": True}
    try:
        counts = reconciling.republish_stalled_runs(deps, publish, partial(count_messages, current_app))
    finally:  # an error in one must not prevent the other
        late = reconciling.start_overdue_nights(deps, latest, publish) if latest else 0
    postponed = reconciling.start_postponed_runs(deps, publish)
    nights.record_heartbeat(deps.database)
    pruned = reconciling.prune_ledger(deps, latest)  # last: nothing must wait for it
    return counts | {"nights": late, "postponed": postponed, "stopped": stopped, "pruned": pruned}


def run_step(
    task: Task[Any, Any],
    step: Step,
    enterprise_customer_uuid: str,
    run_id: str,
    message_number: int | None = None,
    ledger: str | None = None,
) -> dict[str, Any]:
    """Do one step of a run as this task; return the run's counts, or why it was skipped.

    A message posted by hand needs no number and no ledger; one of another ledger goes back to the queue.
    Raises BadArgument for wrong arguments.
    """
    deps, number = get_deps(), message_number
    enterprise, run = parse_uuid("enterprise_customer_uuid", enterprise_customer_uuid), parse_uuid("run_id", run_id)
    if number is not None and (type(number) is not int or number < 1):
        raise BadArgument("message_number must be a number from 1", "leave it out of a task that is posted by hand")
    if ledger is not None:
        _check_ledger(task, deps, parse_uuid("ledger", ledger))
    owner = f"{task.request.hostname}, process {os.getpid()}"
    outcome = attempt(deps, run, enterprise, step, owner, number)
    if outcome.retry:
        raise task.retry(exc=_shown(outcome.retry), countdown=outcome.retry.seconds) from outcome.retry.error
    if outcome.more:
        raise task.replace(_signature(step, enterprise, run, number, deps.ledger))
    if outcome.run is None:
        return {"enterprise_customer_uuid": enterprise_customer_uuid, "run_id": run_id, "skipped": outcome.skipped}
    following = order.step_after(step)
    if following and not task.request.chain:  # posted by hand, alone: its run continues anyway
        _signature(following, enterprise, run, number, deps.ledger).apply_async()
    return runs.describe(outcome.run)


def _check_ledger(task: Task[Any, Any], deps: Deps, ledger: UUID) -> None:
    """Put a message of another ledger back for that ledger's workers, about a minute later, without a limit of retries.

    The wait is random: workers poll Redis in turn, once a second, and the same one could get it every time.
    """
    try:
        if deps.ledger in (None, ledger):
            return
        what = f"this task is of the ledger {ledger}, and this worker of the ledger {deps.ledger}"
        error = Unavailable("other_ledger", what, OTHER_LEDGER)
    except Unavailable as away:
        error = away
    log.warning("step could not begin: retried", error=str(error))
    raise task.retry(exc=error, countdown=_OTHER_LEDGER_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311, jitter


def _check_settings(judged_by: str | None) -> None:
    """Raise BadArgument unless the preview used the same settings for who is due."""
    if judged_by is not None and judged_by != get_deps().settings.judged_by:
        names = "CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED, UNLINK_AFTER_DAYS and UNLINK_LIMIT"
        what = "nothing was started: the preview was made with other settings than this worker's"
        raise BadArgument(what, f"give Flower and all workers the same {names}, and restart them")


def _latest_night(deps: Deps, leeway: timedelta = timedelta()) -> datetime | None:
    return latest_night(current_app.conf.beat_schedule["nightly"]["schedule"], deps.database.now() + leeway)


def _start(task: Task[Any, Any], request: Request, *enterprises: UUID, scheduled: bool = False) -> dict[str, Any]:
    deps = get_deps()
    moment: datetime | None = None
    try:
        moment = _latest_night(deps, BEAT_AHEAD) if scheduled else None
        if moment:
            started = start_scheduled_night(deps, moment, publish, "beat")
        else:
            started = start_runs(deps, request, enterprises, publish, trigger=task.request.id)
    except (Unavailable, OperationalError) as error:
        raise task.retry(exc=error, countdown=_BROKER_RETRY_SECONDS * 2**task.request.retries) from error
    except Paused as reason:
        if moment is None:
            raise
        return {"detail": f"the night of {moment} is noted, and begins later: {reason}", "runs": []}
    if started is None:
        return {"detail": f"the night of {moment} had begun before", "runs": []}
    repeated, new = sum(run.repeated for run in started), sum(run.new for run in started)
    counts = {"published": new, "live already": len(started) - new - repeated, "opened by this task before": repeated}
    told = ", ".join(f"{count} {what}" for what, count in counts.items() if count or not what.startswith("opened"))
    return {
        "detail": told if started else "nothing is due",
        "runs": [
            {
                "run_id": str(run.run_id),
                "enterprise_customer_uuid": str(run.enterprise),
                "already_live": not (run.new or run.repeated),
            }
            for run in started
        ],
    }


def _shown(retry: Retry) -> Unavailable:
    """The error that Flower shows of a retry: its reason, the time of the next try, and the number of tries left."""
    when = datetime.now(UTC) + timedelta(seconds=retry.seconds)
    told = [retry.error.remedy, f"retried at {when:%Y-%m-%d %H:%M:%S} UTC"]
    if retry.gives_up_at:
        told.append(f"tries left: {retry.left}, fails at {retry.gives_up_at:%Y-%m-%d %H:%M} if nothing changes")
    return Unavailable(retry.error.reason, retry.error.what, "; ".join(filter(None, told)), retry.error.retry_after)
