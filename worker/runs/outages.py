"""An outage of the LMS is met once and probed once: what one run meets, all runs wait for."""

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
    """What all runs wait for just now, if anything; an outage whose moment has come is probed first.

    The probe is a call that concerns nobody. Raises Stopping.
    """
    wait = deps.database.transact(waits.postponement)
    # A run that looks during the probe waits until it must have ended: so it ends within an interval.
    seconds = max(LEAST_PROBE_SECONDS, deps.settings.TASK_RETRY_SECONDS - CONNECT_SECONDS)
    if wait is None or not waits.take_probe(deps.database, seconds + CONNECT_SECONDS):
        return wait
    try:
        with deps.lms.named(f"probe-{uuid4()}", seconds):
            deps.lms.check_downgrades(lambda: inf, tries=1)
    except RunRefused:
        pass  # it answers; what it refuses is for each run to meet
    except Unavailable as error:
        if not was_asked(error):
            return deps.database.transact(waits.postponement)
        if is_outage(error):
            seconds = _interval(deps, error)
            waits.prolong_outage(deps.database, error, seconds)
            log.warning("the LMS is still away: probed again later", seconds=seconds, error=str(error))
            return deps.database.transact(waits.postponement)
    if ended := waits.end_outage(deps.database):
        log.info("the LMS is back", away_since=ended.since.isoformat(), probes=ended.tries + 1)
    return deps.database.transact(waits.postponement)


def note(deps: Deps, error: Unavailable) -> float:
    """Let all runs wait if this error is an outage; return for how many seconds they all wait now, 0 if they do not.

    Where other calls were answered meanwhile it is the fault of one call, unless it is the throttle.
    """
    alone = error.reason != THROTTLED and waits.answered_since(deps.database, error.lasted)
    if is_outage(error) and not alone:
        seconds = _interval(deps, error)
        if waits.begin_outage(deps.database, error, seconds):
            log.warning("the LMS is away: all runs wait", seconds=seconds, error=str(error))
    wait = deps.database.transact(waits.postponement)
    return wait.retry_after or 0 if wait else 0


def _interval(deps: Deps, error: Unavailable) -> int:
    return deps.settings.TASK_RETRY_SECONDS if error.retry_after is None else max(1, ceil(error.retry_after))
