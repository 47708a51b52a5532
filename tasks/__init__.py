"""The Celery tasks: thin shells over worker.runs, and the one function that builds the chain."""

import os
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from celery import Task, chain, current_app, shared_task
from celery.canvas import Signature
from celery.schedules import crontab
from kombu.exceptions import OperationalError

from worker.deps import Deps, get_deps
from worker.errors import LicenseExpiryError, Unavailable
from worker.ledger import confirmations, nights
from worker.ledger.claims import Step
from worker.logs import get_logger
from worker.runs import start as dispatch
from worker.runs import steps
from worker.settings import retry_wait

log = get_logger(__name__)

_BROKER_RETRY_SECONDS = 30
# How far beat's clock may be ahead of the database's without its night being taken for that of the day before; less
# than the minute that the nights of the tightest schedule are apart.
BEAT_AHEAD = timedelta(seconds=30)


class Trigger(Task[Any, Any]):
    """A task that is not of a run: what becomes of it is told here, for none of its steps tells it."""

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Log a failure of a kind that Celery does not (its hook)."""
        if isinstance(exc, LicenseExpiryError):
            log.error("task failed", name=self.name, error=str(exc))

    def on_retry(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Log that the task comes again (Celery's hook)."""
        log.warning("task comes again", name=self.name, error=str(exc))


# Opening runs anew is harmless, so a trigger whose process was lost is given to another one. An argument that is not
# known is to fail as a task does, and not where it is posted.
TRIGGER: dict[str, Any] = {
    "base": Trigger,
    "max_retries": 5,
    "throws": (LicenseExpiryError,),
    "reject_on_worker_lost": True,
    "typing": False,
}


def build_chain(enterprise: UUID, run_id: UUID) -> Signature[Any]:
    """The order of this project: downgrade, then unlink. Published again, it goes on where the run stands."""
    names = {"enterprise_customer_uuid": str(enterprise), "run_id": str(run_id)}
    return chain(downgrade_enrollments.si(**names), unlink_learners.si(**names))


def publish(enterprise: UUID, run_id: UUID) -> None:
    """Hand a run's chain to the broker. Raises kombu's OperationalError when that does not answer."""
    build_chain(enterprise, run_id).apply_async()


def latest_night(schedule: crontab, now: datetime) -> datetime | None:
    """The last moment (UTC) up to `now` that NIGHTLY_SCHEDULE names, in the last four years; None without one."""
    for back in (timedelta(minutes=5), timedelta(hours=2), *map(timedelta, (2, 9, 33, 367, 1462))):
        latest, following = None, following_night(schedule, now - back)
        while following <= now:
            latest, following = following, following_night(schedule, following)
        if latest:
            return latest
    return None


def following_night(schedule: crontab, moment: datetime) -> datetime:
    """The first moment (UTC) after this one that NIGHTLY_SCHEDULE names."""
    start, wait, _ = schedule.remaining_delta(moment)
    following: datetime = (start + wait).astimezone(UTC)
    if following <= moment:  # in the hour that comes twice when summer time ends, crontab sees the first
        return following_night(schedule, moment + timedelta(hours=1))
    return following


@shared_task(name="license_expiry.run_nightly", bind=True, **TRIGGER)
def run_nightly(self: Task[Any, Any], dry_run: bool = False) -> dict[str, Any]:
    """Open and publish a run for every enterprise with work due; return how many, and their ids.

    Sent by beat, it starts the scheduled night, once; by anybody else, one more pass.
    """
    request = dispatch.parse_request(dry_run=dry_run)
    return _start(self, request, scheduled=bool((self.request.headers or {}).get("scheduled")))


@shared_task(name="license_expiry.run_enterprise", bind=True, **TRIGGER)
def run_enterprise(
    self: Task[Any, Any],
    enterprise_customer_uuid: str,
    dry_run: bool = False,
    plan_uuids: list[str] | None = None,
    expired_after: str | None = None,
    expired_before: str | None = None,
    force: bool = False,
    reason: str | None = None,
) -> dict[str, Any]:
    """Open and publish a run for one enterprise, if it has work due; or tell which live run has it."""
    enterprise = dispatch.parse_uuid("enterprise_customer_uuid", enterprise_customer_uuid)
    request = dispatch.parse_request(
        dry_run=dry_run,
        plan_uuids=plan_uuids,
        expired_after=expired_after,
        expired_before=expired_before,
        force=force,
        reason=reason,
    )
    return _start(self, request, enterprise)


@shared_task(name="license_expiry.downgrade_enrollments", bind=True, max_retries=None, throws=(LicenseExpiryError,))
def downgrade_enrollments(self: Task[Any, Any], enterprise_customer_uuid: str, run_id: str) -> dict[str, Any]:
    """Do the first step of a run: downgrade the enrolments of licenses whose plan has expired."""
    return _step(self, Step.DOWNGRADE, enterprise_customer_uuid, run_id)


@shared_task(name="license_expiry.unlink_learners", bind=True, max_retries=None, throws=(LicenseExpiryError,))
def unlink_learners(self: Task[Any, Any], enterprise_customer_uuid: str, run_id: str) -> dict[str, Any]:
    """Do the second step of a run: unlink the learners who are due."""
    return _step(self, Step.UNLINK, enterprise_customer_uuid, run_id)


@shared_task(name="license_expiry.reconcile", base=Trigger, throws=(LicenseExpiryError,))
def reconcile() -> dict[str, int]:
    """Take up runs that were let down (a worker died, the broker lost the chain), and the night that beat missed."""
    deps = get_deps()
    try:
        counts = dispatch.take_up_stalled(deps, publish)
    finally:  # neither is to keep the other from its work
        latest = _latest_night(deps)
        made_good = dispatch.make_good(deps, latest, publish) if latest else 0
    nights.reconciled(deps.database)
    return counts | {"nights": made_good}


def _latest_night(deps: Deps, leeway: timedelta = timedelta()) -> datetime | None:
    return latest_night(current_app.conf.beat_schedule["nightly"]["schedule"], deps.database.now() + leeway)


def _start(
    task: Task[Any, Any], request: dispatch.Request, *enterprises: UUID, scheduled: bool = False
) -> dict[str, Any]:
    deps = get_deps()
    try:
        moment = _latest_night(deps, BEAT_AHEAD) if scheduled else None
        if moment:
            started = dispatch.start_scheduled(deps, moment, publish)
        else:
            started = dispatch.start(deps, request, enterprises, publish)
    except (Unavailable, OperationalError) as error:
        raise task.retry(exc=error, countdown=_BROKER_RETRY_SECONDS * 2**task.request.retries) from error
    if started is None:
        return {"detail": f"the night of {moment} had begun before", "runs": []}
    live = sum(not run.new for run in started)
    return {
        "detail": f"{len(started) - live} published, {live} live already" if started else "nothing is due",
        "runs": [
            {"run_id": str(run.run_id), "enterprise_customer_uuid": str(run.enterprise), "already_live": not run.new}
            for run in started
        ],
    }


def _step(task: Task[Any, Any], step: Step, enterprise_customer_uuid: str, run_id: str) -> dict[str, Any]:
    deps = get_deps()
    enterprise = dispatch.parse_uuid("enterprise_customer_uuid", enterprise_customer_uuid)
    countdown: int | None = None

    def retry_in(error: Unavailable) -> int | None:
        nonlocal countdown
        if task.request.retries < deps.settings.TASK_MAX_RETRIES:
            settings = deps.settings
            wait = max(retry_wait(settings.TASK_RETRY_SECONDS, task.request.retries), error.retry_after or 0)
            longest = settings.VISIBILITY_TIMEOUT_SECONDS - settings.TASK_TIME_LIMIT_SECONDS
            countdown = int(min(wait * random.uniform(1.0, 1.2), longest))  # noqa: S311, jitter
        return countdown

    owner = f"{task.request.hostname}, process {os.getpid()}"
    try:
        outcome = steps.attempt(deps, dispatch.parse_uuid("run_id", run_id), enterprise, step, owner, retry_in)
    except Unavailable as error:
        if countdown is None:
            raise
        raise task.retry(exc=_coming_again(error, countdown), countdown=countdown) from error
    names = {"enterprise_customer_uuid": enterprise_customer_uuid, "run_id": run_id}
    if outcome.more:
        raise task.replace(task.si(**names))
    if outcome.run is None:
        return {**names, "skipped": outcome.skipped}
    if step is Step.DOWNGRADE and not task.request.chain:  # posted by hand, alone: its run goes on all the same
        unlink_learners.apply_async(kwargs=names)
    return confirmations.describe(outcome.run)


def _coming_again(error: Unavailable, countdown: int) -> Unavailable:
    """The error as Flower is to show it of a retry: with its reason, and when the step comes again."""
    when = datetime.now(UTC) + timedelta(seconds=countdown)
    return Unavailable(error.reason, f"{error.message}; comes again at {when:%Y-%m-%d %H:%M:%S} UTC", error.retry_after)
