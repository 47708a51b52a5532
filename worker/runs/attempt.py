"""Attempts one step of a run, and records the result in the run's phase whatever happens."""

import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import structlog

from worker.db.ledger_tables import Run
from worker.deps import Deps
from worker.errors import LeaseLost, LicenseExpiryError, NotClaimed, Postponed, Stopped, Stopping, Unavailable
from worker.ledger import claims, runs, waits
from worker.ledger.claims import Claim
from worker.ledger.identity import check_lms
from worker.ledger.order import Step
from worker.ledger.stalled import MAX_RUN_AGE
from worker.lms.outcomes import THROTTLED
from worker.logs import get_logger
from worker.masking import kind_of
from worker.runs import outages
from worker.runs.steps import do_step, settle
from worker.settings import Settings, retry_wait

log = get_logger(__name__)

# After this many seconds a step goes to the end of the queue, so that large enterprises do not block small ones.
SLICE_SECONDS = 120


@dataclass(frozen=True)
class Retry:
    """The step is retried in `seconds`, because of `error`.

    `left` is how many tries the run has left. It fails at `gives_up_at` (UTC) if nothing changes. Both are None if the
    database is unreachable.
    """

    seconds: int
    error: Unavailable
    left: int | None = None
    gives_up_at: datetime | None = None


@dataclass(frozen=True)
class Outcome:
    """The result of an attempt at a step.

    `run` is the run's present state, if it was read. `skipped` is the reason why nothing was done, if so. `more` is
    true if the step must be sent again at once: its time slice ended, or the worker is shutting down.
    """

    run: Run | None = None
    skipped: str | None = None
    more: bool = False
    retry: Retry | None = None


def attempt(deps: Deps, run_id: UUID, enterprise: UUID, step: Step, owner: str, message: int | None = None) -> Outcome:
    """Claim a run, do one step of it, and record the result in the run's phase, whatever happens.

    `owner` is the worker's name, `message` the number of the step's message (None for one posted by hand).
    A temporary error becomes a Retry in the outcome until the run's tries are spent. Raises Unavailable or RunRefused
    after recording that the run failed; BadArgument for an unknown run; Unusable if the database belongs to another
    LMS.
    """
    with structlog.contextvars.bound_contextvars(enterprise=str(enterprise), run=str(run_id), step=step.name):
        try:
            lease, url = deps.settings.LEASE_SECONDS, deps.settings.LMS_URL
            take = partial(claims.claim, deps.database, run_id, enterprise, step, owner, lease, deps.calls, message)
            try:
                claim = take(url)
            except NotClaimed:  # another LMS's database, or a common wait; otherwise the second try raises the reason
                check_lms(deps.database, url, first=True)
                if retry := _retry_of_wait(deps, run_id, step, message):
                    return Outcome(retry=retry)
                claim = take()
        except NotClaimed as reason:
            return _skip(reason)
        except Stopping:
            return Outcome(more=True)
        except Unavailable as error:
            log.warning("step could not begin: retried", error=str(error))
            return Outcome(retry=Retry(_seconds(deps.settings, deps.settings.TASK_RETRY_SECONDS), error))
        except LicenseExpiryError as error:
            log.error("step could not begin", error=str(error))
            raise
        log.info("step begins")
        return _do(deps, claim)


def _retry_of_wait(deps: Deps, run_id: UUID, step: Step, message: int | None) -> Retry | None:
    """Return a Retry if there is a pause or an outage and this run must wait for it; else None."""
    wait = outages.look(deps)
    seconds = _seconds(deps.settings, wait.retry_after or 0) if wait else 0
    run = wait and waits.postpone(deps.database, run_id, step, wait, seconds, message)
    if not (wait and run):
        return None
    write = log.debug if run.waits_for == wait.reason else log.info  # info once per wait, not at each retry
    write("step waits", seconds=seconds, error=str(wait))
    return Retry(seconds, wait, deps.settings.TASK_MAX_RETRIES - run.tries, run.opened_at + MAX_RUN_AGE)


def _do(deps: Deps, claim: Claim) -> Outcome:
    try:
        slice_seconds = min(SLICE_SECONDS, deps.settings.TASK_TIME_LIMIT_SECONDS / 2)
        done = do_step(deps, claim, time.monotonic() + slice_seconds)
    except LeaseLost as reason:
        return _skip(reason)
    except Stopped as reason:
        settle(claim.release)
        return _skip(reason)
    except Stopping:
        settle(claim.release)
        log.info("step given back: this worker is shutting down")
        return Outcome(more=True)
    except Unavailable as error:
        return _wait(deps, claim, error)
    except LicenseExpiryError as error:
        _fail(claim, str(error))
        raise
    except Exception as error:
        _fail(claim, f"internal error, {kind_of(error)}: the worker's log has its traceback")
        raise
    run = claim.run
    counts = {name: getattr(run, name) for name in runs.COUNTS}
    log.info("step ends" if done else "step continues in a new message", phase=run.phase, dry_run=run.dry_run, **counts)
    return Outcome(run, more=not done)


def _wait(deps: Deps, claim: Claim, error: Unavailable) -> Outcome:
    """Release the run until the step is retried, or raise this error if its tries are spent."""
    settings, run = deps.settings, claim.run
    free = isinstance(error, Postponed) or error.reason == THROTTLED  # not the run's fault, so it spends no try
    tries, held_back = run.tries + (not free), settle(outages.note, deps, error) or 0
    if tries > settings.TASK_MAX_RETRIES:
        _fail(claim, str(error))
        raise error
    own = 0 if free else retry_wait(settings.TASK_RETRY_SECONDS, tries - 1)
    seconds = _seconds(settings, max(own, error.retry_after or 0, held_back))
    gives_up_at = run.opened_at + MAX_RUN_AGE if free else _spent_at(settings, seconds, tries)
    left = settings.TASK_MAX_RETRIES - tries
    log.warning("step is retried", seconds=seconds, tries_left=left, error=str(error))
    if settle(partial(claim.wait, tries=tries, left=left, gives_up_at=gives_up_at), seconds, error) is None:
        seconds = max(seconds, settings.LEASE_SECONDS)  # not released, so no worker can claim it before that
    return Outcome(retry=Retry(seconds, error, left, gives_up_at))


def _spent_at(settings: Settings, seconds: int, tries: int) -> datetime:
    """Return when the last try is made, if nothing changes (UTC)."""
    following = sum(
        retry_wait(settings.TASK_RETRY_SECONDS, number) for number in range(tries, settings.TASK_MAX_RETRIES)
    )
    return datetime.now(UTC) + timedelta(seconds=seconds + following)


def _seconds(settings: Settings, wait: float) -> int:
    """Return the seconds before a retry: with jitter, so that runs spread out, and within the broker's limit."""
    longest = settings.VISIBILITY_TIMEOUT_SECONDS - settings.TASK_TIME_LIMIT_SECONDS
    return int(min(max(1.0, wait) * random.uniform(1.0, 1.2), longest))  # noqa: S311, jitter


def _skip(reason: LicenseExpiryError) -> Outcome:
    log.info("step skipped", reason=str(reason))
    return Outcome(skipped=str(reason))


def _fail(claim: Claim, error: str) -> None:
    log.error("run failed", error=error)
    settle(claim.fail, error)
