"""Tells every process of a worker that it is shutting down, and ends its sleeps."""

import multiprocessing
import os
import threading
import time

from worker.errors import Stopping
from worker.logs import get_logger

log = get_logger(__name__)

_POLL_SECONDS = 0.5


class Shutdown:
    """Whether a worker is shutting down, shared by the processes that are forked after this was made.

    It has no lock: a process that is killed with a lock in hand would block the others.
    """

    def __init__(self) -> None:
        self._begun = multiprocessing.Value("b", 0, lock=False)

    def begin(self) -> None:
        """Tell all processes of this worker: steps hand their runs back after the calls in flight."""
        self._begun.value = 1

    @property
    def begun(self) -> bool:
        """Is this worker shutting down?"""
        return bool(self._begun.value)

    def check(self) -> None:
        """Raise Stopping if this worker is shutting down."""
        if self.begun:
            raise Stopping("this worker is being shut down")

    def sleep(self, seconds: float) -> None:
        """Sleep. Raises Stopping as soon as the worker is shutting down, before and during it."""
        end = time.monotonic() + seconds
        while True:
            self.check()
            rest = end - time.monotonic()
            if rest <= 0:
                return
            time.sleep(min(rest, _POLL_SECONDS))


def kill_after(seconds: float) -> None:
    """Kill this process, with its children, after `seconds`."""
    timer = threading.Timer(seconds, _kill, [seconds])
    timer.daemon = True
    timer.start()


def _kill(seconds: float) -> None:
    log.error("not shut down in time: killed. Its runs are resumed by reconcile", seconds=seconds)
    os._exit(1)
