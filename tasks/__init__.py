"""The Celery tasks: thin shells over worker.dispatch and worker.steps, and the one function that builds the chain."""

import os
import random
from typing import Any
from uuid import UUID

from celery import Task, chain, shared_task
from celery.canvas import Signature
from kombu.exceptions import OperationalError

from worker import dispatch, records, steps
from worker.deps import get_deps
from worker.errors import LicenseExpiryError, Unavailable
from worker.ledger import Step
from worker.settings import retry_wait

_BROKER_RETRY_SECONDS = 30
# Opening runs anew is harmless, so a trigger whose process was lost is given to another one. An argument that is not
# known is to fail as a task does, and not where it is posted.
TRIGGER: dict[str, Any] = {
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


@shared_task(name="license_expiry.run_nightly", bind=True, **TRIGGER)
def run_nightly(self: Task[Any, Any], dry_run: bool = False) -> dict[str, Any]:
    """Open and publish a run for every enterprise with work due; return how many, and their ids."""
    return _start(self, dispatch.parse_request(dry_run=dry_run))


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


@shared_task(name="license_expiry.reconcile", throws=(LicenseExpiryError,))
def reconcile() -> dict[str, int]:
    """Take up runs that were let down: a worker died, or the broker lost the chain."""
    return dispatch.take_up_stalled(get_deps(), publish)


def _start(task: Task[Any, Any], request: dispatch.Request, *enterprises: UUID) -> dict[str, Any]:
    try:
        started = dispatch.start(get_deps(), request, enterprises, publish)
    except (Unavailable, OperationalError) as error:
        raise task.retry(exc=error, countdown=_BROKER_RETRY_SECONDS * 2**task.request.retries) from error
    return {
        "runs": [
            {"run_id": str(run.run_id), "enterprise_customer_uuid": str(run.enterprise), "already_live": not run.new}
            for run in started
        ],
        "detail": "published" if started else "nothing is due",
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
        raise task.retry(exc=error, countdown=countdown) from error
    names = {"enterprise_customer_uuid": enterprise_customer_uuid, "run_id": run_id}
    if outcome.skipped or outcome.run is None:
        return {**names, "skipped": outcome.skipped}
    if outcome.more:
        raise task.replace(task.si(**names))
    if step is Step.DOWNGRADE and not task.request.chain:  # posted by hand, alone: its run goes on all the same
        unlink_learners.apply_async(kwargs=names)
    return records.describe(outcome.run)
