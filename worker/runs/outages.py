"""Handles outages of the LMS for all runs together: one run records it, all wait, one at a time probes."""

from math import ceil, inf
from uuid import uuid4

from worker.deps import Deps
from worker.errors import Postponed, RunRefused, Unavailable
from worker.ledger import waits
from worker.lms.outcomes import THROTTLED, is_outage, was_asked
from worker.logs import get_logger
from worker.settings import CONNECT_SECONDS

log = get_logger(__name__)

LEAST_PROBE_SECONDS = 5


def look(deps: Deps) -> Postponed | None:
    """Return the present wait of all runs, or None. If an outage's next probe is due, probe the LMS first.

    The probe is a downgrade call for no learner. Raises Stopping if the worker is shutting down.
    """
    wait = deps.database.transact(waits.postponement)
    # Other runs wait until the probe must have ended. It ends within one retry interval, so they wait no longer.
    seconds = max(LEAST_PROBE_SECONDS, deps.settings.TASK_RETRY_SECONDS - CONNECT_SECONDS)
    if wait is None or not waits.take_probe(deps.database, seconds + CONNECT_SECONDS):
        return wait
    try:
        with deps.lms.named(f"probe-{uuid4()}", seconds):
            deps.lms.check_downgrades(lambda: inf, tries=1)
    except RunRefused:
        pass  # the LMS answers, so the outage is over; each run handles the refusal itself
    except Unavailable as error:
        if not was_asked(error):
            return deps.database.transact(waits.postponement)
        if is_outage(error):
            seconds = _interval(deps, error)
            waits.prolong_outage(deps.database, error, seconds)
            log.warning("the LMS is still unavailable: probed again later", seconds=seconds, error=str(error))
            return deps.database.transact(waits.postponement)
    if ended := waits.end_outage(deps.database):
        log.info("the LMS is available again", away_since=ended.since.isoformat(), probes=ended.tries + 1)
    return deps.database.transact(waits.postponement)


def note(deps: Deps, error: Unavailable) -> float:
    """Make all runs wait if this error is an outage. Return the seconds that all runs wait now, 0 if they do not.

    If the LMS answered other calls while this one failed, it is not an outage, unless the error is a throttle (429).
    """
    alone = error.reason != THROTTLED and waits.answered_since(deps.database, error.lasted)
    if is_outage(error) and not alone:
        seconds = _interval(deps, error)
        if waits.begin_outage(deps.database, error, seconds):
            log.warning("the LMS is unavailable: all runs wait", seconds=seconds, error=str(error))
    wait = deps.database.transact(waits.postponement)
    return wait.retry_after or 0 if wait else 0


def _interval(deps: Deps, error: Unavailable) -> int:
    return deps.settings.TASK_RETRY_SECONDS if error.retry_after is None else max(1, ceil(error.retry_after))
