"""One attempt at a step, which leaves the run in a phase that tells the truth, whatever happens."""

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

# After this many seconds a step goes to the end of the queue, so that large enterprises do not keep small ones waiting.
SLICE_SECONDS = 120


@dataclass(frozen=True)
class Retry:
    """The step is tried again in so many seconds, because of this error.

    `left` is how many tries the run has left; it fails at `gives_up_at` if nothing changes. Both are None where the
    database is away.
    """

    seconds: int
    error: Unavailable
    left: int | None = None
    gives_up_at: datetime | None = None


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


def attempt(deps: Deps, run_id: UUID, enterprise: UUID, step: Step, owner: str, message: int | None = None) -> Outcome:
    """Claim a run, do one step of it, and leave the run in a phase that tells the truth, whatever happens.

    What cannot be done just now is a Retry in the outcome, until the run's tries are spent. Raises Unavailable and
    RunRefused after the run has failed; BadArgument for an unknown run; Unusable when the database is another LMS's.
    `message` is the number of the message that asks for the step, if it has one.
    """
    with structlog.contextvars.bound_contextvars(enterprise=str(enterprise), run=str(run_id), step=step.name):
        try:
            lease, url = deps.settings.LEASE_SECONDS, deps.settings.LMS_URL
            take = partial(claims.claim, deps.database, run_id, enterprise, step, owner, lease, deps.calls, message)
            try:
                claim = take(url)
            except NotClaimed:  # for one of two reasons that are looked into here; else for that which is told now
                check_lms(deps.database, url, first=True)
                if retry := _retry_of_wait(deps, run_id, step, message):
                    return Outcome(retry=retry)
                claim = take()
        except NotClaimed as reason:
            return _skip(reason)
        except Stopping:
            return Outcome(more=True)
        except Unavailable as error:
            log.warning("step could not begin and comes again", error=str(error))
            return Outcome(retry=Retry(_seconds(deps.settings, deps.settings.TASK_RETRY_SECONDS), error))
        except LicenseExpiryError as error:
            log.error("step could not begin", error=str(error))
            raise
        log.info("step begins")
        return _do(deps, claim)


def _retry_of_wait(deps: Deps, run_id: UUID, step: Step, message: int | None) -> Retry | None:
    """How this run waits for what all runs wait for, if anything stands and it is to wait."""
    wait = outages.look(deps)
    seconds = _seconds(deps.settings, wait.retry_after or 0) if wait else 0
    run = wait and waits.postpone(deps.database, run_id, step, wait, seconds, message)
    if not (wait and run):
        return None
    tell = log.debug if run.waits_for == wait.reason else log.info  # once, however often it comes
    tell("step waits", seconds=seconds, error=str(wait))
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
        log.info("step handed back: this worker ends")
        return Outcome(more=True)
    except Unavailable as error:
        return _wait(deps, claim, error)
    except LicenseExpiryError as error:
        _fail(claim, str(error))
        raise
    except Exception as error:
        _fail(claim, f"an error of our own, {kind_of(error)}: the worker's log has its traceback")
        raise
    run = claim.run
    counts = {name: getattr(run, name) for name in runs.COUNTS}
    log.info("step ends" if done else "step handed on", phase=run.phase, dry_run=run.dry_run, **counts)
    return Outcome(run, more=not done)


def _wait(deps: Deps, claim: Claim, error: Unavailable) -> Outcome:
    """Give the run back until the step may be tried again, or raise this error when its tries are spent."""
    settings, run = deps.settings, claim.run
    free = isinstance(error, Postponed) or error.reason == THROTTLED  # no fault of the run's: it spends no try
    tries, held_back = run.tries + (not free), settle(outages.note, deps, error) or 0
    if tries > settings.TASK_MAX_RETRIES:
        _fail(claim, str(error))
        raise error
    own = 0 if free else retry_wait(settings.TASK_RETRY_SECONDS, tries - 1)
    seconds = _seconds(settings, max(own, error.retry_after or 0, held_back))
    gives_up_at = run.opened_at + MAX_RUN_AGE if free else _spent_at(settings, seconds, tries)
    left = settings.TASK_MAX_RETRIES - tries
    log.warning("step comes again", seconds=seconds, tries_left=left, error=str(error))
    if settle(partial(claim.wait, tries=tries, left=left, gives_up_at=gives_up_at), seconds, error) is None:
        seconds = max(seconds, settings.LEASE_SECONDS)  # before that nobody can claim it
    return Outcome(retry=Retry(seconds, error, left, gives_up_at))


def _spent_at(settings: Settings, seconds: int, tries: int) -> datetime:
    """When the last try is made, if nothing changes."""
    following = sum(
        retry_wait(settings.TASK_RETRY_SECONDS, number) for number in range(tries, settings.TASK_MAX_RETRIES)
    )
    return datetime.now(UTC) + timedelta(seconds=seconds + following)


def _seconds(settings: Settings, wait: float) -> int:
    """The wait before a retry, with some jitter, so that not all runs come at once; no longer than a broker allows."""
    longest = settings.VISIBILITY_TIMEOUT_SECONDS - settings.TASK_TIME_LIMIT_SECONDS
    return int(min(max(1.0, wait) * random.uniform(1.0, 1.2), longest))  # noqa: S311, jitter


def _skip(reason: LicenseExpiryError) -> Outcome:
    log.info("step skipped", reason=str(reason))
    return Outcome(skipped=str(reason))


def _fail(claim: Claim, error: str) -> None:
    log.error("run failed", error=error)
    settle(claim.fail, error)
