"""How this worker waits: for the LMS, and never past its own shutdown.

Both values are made before the fork, so that what one process of a worker learns holds for all of them. They have no
lock: a process killed with a lock in hand would block the others.
"""

import multiprocessing
import os
import threading
import time
from dataclasses import dataclass
from functools import partial
from io import BytesIO

from worker.errors import LeaseLost, Stopping
from worker.logs import get_logger

log = get_logger(__name__)

# Seconds of a clock that also runs while the machine is suspended, where there is one: for what others judge by theirs.
steady = partial(time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))

_POLL_SECONDS = 0.5
_stopping = multiprocessing.Value("b", 0, lock=False)


@dataclass(frozen=True)
class Patience:
    """How long the client bears with the LMS before it says Unavailable; seconds."""

    tries: int = 4
    tries_on_500: int = 2
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_throttle: float = 600.0


class Pause:
    """Until when no call may go out, over all child processes of a worker."""

    def __init__(self) -> None:
        self._until = multiprocessing.Value("d", 0.0, lock=False)

    def extend(self, seconds: float) -> None:
        """Let no call go out for so many seconds from now, or for longer if that was said before."""
        self._until.value = max(self._until.value, time.monotonic() + seconds)

    def remaining(self) -> float:
        """The seconds that are left of it."""
        return max(0.0, float(self._until.value) - time.monotonic())


class TimedBody(BytesIO):
    """The bytes of a call. They leave only in time: a process may have been frozen since its guard was asked."""

    def __init__(self, data: bytes, until: float) -> None:
        super().__init__(data)
        self._until = until

    def read(self, size: int | None = -1, /) -> bytes:
        """Give the next bytes; raises LeaseLost when it is too late for the call to end in time."""
        if steady() >= self._until:
            raise LeaseLost("too little was left of the lease between its check and the call: nothing was sent")
        return super().read(size)


def stop() -> None:
    """Tell all processes of this worker that it is being shut down: steps hand their runs back after this batch."""
    _stopping.value = 1


def stopping() -> bool:
    """Is this worker being shut down?"""
    return bool(_stopping.value)


def end_within(seconds: float) -> None:
    """End this process after so many seconds, whatever it is doing then; its children end with it."""
    timer = threading.Timer(seconds, _end, [seconds])
    timer.daemon = True
    timer.start()


def _end(seconds: float) -> None:
    log.error("not shut down in time: ended. What was under way is taken up again", seconds=seconds)
    os._exit(1)


def sleep(seconds: float) -> None:
    """Sleep; raises Stopping as soon as the worker is being shut down, before and during it."""
    end = time.monotonic() + seconds
    while True:
        if stopping():
            raise Stopping("this worker is being shut down")
        rest = end - time.monotonic()
        if rest <= 0:
            return
        time.sleep(min(rest, _POLL_SECONDS))
