"""Counting LMS calls for the ledger."""

import threading
from typing import Any

import pytest

from worker.ledger.lms_calls import BUCKETS, CallTimings, bucket


@pytest.mark.parametrize(
    ("seconds", "le"),
    [
        pytest.param(0.0, "0.1", id="at once"),
        pytest.param(0.1, "0.1", id="a bound belongs to its bucket"),
        pytest.param(0.11, "0.25", id="just above a bound"),
        pytest.param(60.0, "60", id="a whole number has no point"),
        pytest.param(120.5, "+Inf", id="longer than all bounds"),
    ],
)
def test_a_call_is_counted_in_the_smallest_bucket_that_holds_it(seconds: float, le: str) -> None:
    calls = CallTimings()
    calls.observe("downgrade", "http_200", seconds)
    assert calls.drain() == [{"step": "downgrade", "outcome": "http_200", "le": le, "calls": 1, "seconds": seconds}]


def test_draining_leaves_nothing() -> None:
    calls = CallTimings()
    for step, outcome, seconds in (("unlink", "timeout", 1.0), ("unlink", "timeout", 0.9), ("token", "http_200", 0.2)):
        calls.observe(step, outcome, seconds)
    counted = [(row["step"], row["calls"], row["seconds"]) for row in calls.drain()]
    assert counted == [("unlink", 2, 1.9), ("token", 1, 0.2)]
    assert calls.drain() == []


def test_no_call_is_lost_or_counted_twice_between_threads() -> None:
    calls = CallTimings()
    counted: list[Any] = []

    def observe() -> None:
        for _ in range(2000):
            calls.observe("downgrade", "http_200", 0.01)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        counted += calls.drain()
    counted += calls.drain()
    assert sum(row["calls"] for row in counted) == 8000


def test_every_bound_fits_the_column() -> None:
    assert max(len(bucket(bound)) for bound in BUCKETS) <= 8
