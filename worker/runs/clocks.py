"""Compares the clocks of the database, the worker and the LMS before anything is sent."""

from collections.abc import Callable
from datetime import UTC, datetime

from worker.clock import LEEWAY
from worker.deps import Deps
from worker.errors import RunRefused
from worker.ledger.claims import Claim


def with_clocks(deps: Deps, claim: Claim) -> Callable[[Callable[[], float]], Callable[[], float]]:
    """Return a wrapper for a call's guard that also checks the clocks, once, before the first call of an attempt."""
    agree = False

    def guarded(guard: Callable[[], float]) -> Callable[[], float]:
        def both() -> float:
            nonlocal agree
            if not agree:
                check_clocks(deps, claim.database_now())
                agree = True
            return guard()

        return both

    return guarded


def check_clocks(deps: Deps, database_now: datetime) -> None:
    """Raise RunRefused if the clocks of the database, this worker and the LMS differ by more than LEEWAY.

    The LMS's clock is the Date header of its last token response; without that header it is left out. Also raises
    the errors of fetching a token.
    """
    known = {"the LMS": deps.lms.lms_now(), "the database": database_now, "this worker": datetime.now(UTC)}
    clocks = {whose: moment for whose, moment in known.items() if moment}
    if max(clocks.values()) - min(clocks.values()) > LEEWAY:
        shown = ", ".join(f"{whose} has {moment:%Y-%m-%d %H:%M:%S}" for whose, moment in clocks.items())
        what = f"the clocks are more than {LEEWAY.seconds // 60} minutes apart, so nothing is sent: {shown} (UTC)"
        raise RunRefused("clocks", what, "correct the wrong clock, and keep it right with NTP")
