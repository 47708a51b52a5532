"""How long the client bears with the LMS, and the throttle's pause that all processes of a worker keep."""

import multiprocessing
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long the client bears with the LMS before it raises Unavailable; waits are in seconds."""

    tries: int = 4
    tries_on_500: int = 2
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_throttle: float = 600.0


class Pause:
    """Until when no call may be sent, shared by the processes that are forked after this was made.

    It has no lock: a process that is killed with a lock in hand would block the others.
    """

    def __init__(self) -> None:
        self._until = multiprocessing.Value("d", 0.0, lock=False)

    def extend(self, seconds: float) -> None:
        """Let no call be sent for `seconds` from now, or for longer if that was said before."""
        self._until.value = max(self._until.value, time.monotonic() + seconds)

    def remaining(self) -> float:
        """The seconds that are left of it."""
        return max(0.0, float(self._until.value) - time.monotonic())
