"""One attempt at a step, which leaves the run in a phase that tells the truth, whatever happens."""

import random
import time
from dataclasses import dataclass
from uuid import UUID

import structlog

from worker.db.ledger_tables import Run
from worker.deps import Deps
from worker.errors import LeaseLost, LicenseExpiryError, NotClaimed, Stopping, Unavailable
from worker.ledger import claims, runs
from worker.ledger.claims import Claim
from worker.ledger.lms_address import check_lms
from worker.ledger.order import Step
from worker.logs import get_logger
from worker.runs.steps import do_step, settle
from worker.settings import Settings, retry_wait

log = get_logger(__name__)

# After this many seconds a step goes to the end of the queue, so that large enterprises do not keep small ones waiting.
SLICE_SECONDS = 120


@dataclass(frozen=True)
class Retry:
    """The step is tried again in so many seconds, because of this error."""

    seconds: int
    error: Unavailable


@dataclass(frozen=True)
class Outcome:
    """What an attempt at a step came to.

    `run` is the run as it is now, unless nothing is known of it. `skipped` says why nothing was done. `more` means that
    the step is to be sent again at once, because its time slice ended or the worker is shutting down.
    """

    run: Run | None = None
    skipped: str | None = None
    more: bool = False
    retry: Retry | None = None


def attempt(deps: Deps, run_id: UUID, enterprise: UUID, step: Step, owner: str, retries: int | None) -> Outcome:
    """Claim a run, do one step of it, and leave the run in a phase that tells the truth, whatever happens.

    `retries` is how often the caller has retried before; None if it never does. While retries are left, an Unavailable
    is a Retry in the outcome. Raises Unavailable and RunRefused after the run has failed; BadArgument for an unknown
    run; Unusable when the database is another LMS's.
    """
    with structlog.contextvars.bound_contextvars(enterprise=str(enterprise), run=str(run_id), step=step.name):
        try:
            check_lms(deps.database, deps.settings.LMS_URL, first=True)
            lease = deps.settings.LEASE_SECONDS
            claim = claims.claim(deps.database, run_id, enterprise, step, owner, lease, deps.calls)
        except NotClaimed as reason:
            return _skip(reason)
        except LicenseExpiryError as error:
            log.error("step could not begin", error=str(error))
            if retry := _retry(deps.settings, retries, error):
                return Outcome(retry=retry)
            raise
        log.info("step begins")
        return _do(deps, claim, retries)


def _do(deps: Deps, claim: Claim, retries: int | None) -> Outcome:
    try:
        slice_seconds = min(SLICE_SECONDS, deps.settings.TASK_TIME_LIMIT_SECONDS / 2)
        done = do_step(deps, claim, time.monotonic() + slice_seconds)
    except LeaseLost as reason:
        return _skip(reason)
    except Stopping:
        settle(claim.release)
        log.info("step handed back: this worker ends")
        return Outcome(more=True)
    except LicenseExpiryError as error:
        if retry := _retry(deps.settings, retries, error):
            log.warning("step comes again", seconds=retry.seconds, error=str(error))
            settle(claim.release, retry.seconds, retry.error)
            return Outcome(retry=retry)
        _fail(claim, str(error))
        raise
    except Exception as error:
        _fail(claim, f"an error of our own, {type(error).__name__}: the worker's log has its traceback")
        raise
    run = claim.run
    counts = {name: getattr(run, name) for name in runs.COUNTS}
    log.info("step ends" if done else "step handed on", phase=run.phase, dry_run=run.dry_run, **counts)
    return Outcome(run, more=not done)


def _retry(settings: Settings, retries: int | None, error: LicenseExpiryError) -> Retry | None:
    """When to try again after this error, unless that is no use or the retries are spent."""
    if not isinstance(error, Unavailable) or retries is None or retries >= settings.TASK_MAX_RETRIES:
        return None
    wait = max(retry_wait(settings.TASK_RETRY_SECONDS, retries), error.retry_after or 0)
    longest = settings.VISIBILITY_TIMEOUT_SECONDS - settings.TASK_TIME_LIMIT_SECONDS
    return Retry(int(min(wait * random.uniform(1.0, 1.2), longest)), error)  # noqa: S311, jitter


def _skip(reason: LicenseExpiryError) -> Outcome:
    log.info("step skipped", reason=str(reason))
    return Outcome(skipped=str(reason))


def _fail(claim: Claim, error: str) -> None:
    log.error("run failed", error=error)
    settle(claim.fail, error)
