"""The clocks that a run goes by, compared before anything is sent."""

from collections.abc import Callable
from datetime import UTC, datetime

from worker.clock import LEEWAY
from worker.deps import Deps
from worker.errors import RunRefused
from worker.ledger.claims import Claim


def with_clocks(deps: Deps, claim: Claim) -> Callable[[Callable[[], float]], Callable[[], float]]:
    """Return what lets a call's guard check the clocks as well: once, before the first call of an attempt."""
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
    """Raise RunRefused when the database's clock, this worker's and the LMS's are further apart than LEEWAY.

    The LMS's is known by the Date of its last token; one that tells none is left out. Raises what fetching a token
    raises.
    """
    told = {"the LMS": deps.lms.lms_now(), "the database": database_now, "this worker": datetime.now(UTC)}
    clocks = {whose: moment for whose, moment in told.items() if moment}
    if max(clocks.values()) - min(clocks.values()) > LEEWAY:
        shown = ", ".join(f"{whose} has {moment:%Y-%m-%d %H:%M:%S}" for whose, moment in clocks.items())
        what = f"the clocks are more than {LEEWAY.seconds // 60} minutes apart, and nothing is sent: {shown} (UTC)"
        raise RunRefused("clocks", what, "let NTP keep the one that is wrong")
