"""Waits that end with the worker, whose processes all learn of it."""

import multiprocessing
import os
import threading
import time

import pytest

from worker.errors import Stopping
from worker.shutdown import Shutdown, kill_after


@pytest.fixture
def shutdown() -> Shutdown:
    return Shutdown()


def test_a_sleep_lasts_as_long_as_asked(shutdown: Shutdown) -> None:
    begun = time.monotonic()
    shutdown.sleep(0.05)
    assert time.monotonic() - begun >= 0.05
    shutdown.sleep(0)


def test_a_worker_that_is_being_shut_down_sleeps_no_more(shutdown: Shutdown) -> None:
    shutdown.begin()
    for seconds in (0, 600):
        with pytest.raises(Stopping):
            shutdown.sleep(seconds)


def test_a_shutdown_ends_a_long_sleep(shutdown: Shutdown) -> None:
    timer = threading.Timer(0.05, shutdown.begin)
    timer.start()
    with pytest.raises(Stopping):
        shutdown.sleep(600)
    timer.join()


def test_what_the_parent_knows_its_children_know(shutdown: Shutdown) -> None:
    ready, told = os.pipe()

    def child() -> None:
        os.write(told, b".")
        try:
            shutdown.sleep(600)
        except Stopping:
            os._exit(7)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    os.read(ready, 1)
    assert not shutdown.begun
    shutdown.begin()
    process.join(30)
    assert process.exitcode == 7


def test_a_process_that_does_not_end_is_ended() -> None:
    def hangs() -> None:
        kill_after(0.05)
        while True:
            time.sleep(60)

    process = multiprocessing.get_context("fork").Process(target=hangs)
    process.start()
    process.join(30)
    assert process.exitcode == 1
