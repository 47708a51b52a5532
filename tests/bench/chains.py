"""How fast a night's chains are opened in the ledger and published: `python -m bench.chains COUNT`; prints JSON.

Beside it, as many chains of the same two tasks, published by plain Celery with the same settings.
"""

import json
import sys
import time
from collections.abc import Callable
from uuid import uuid4

import tasks
from worker.celery import app
from worker.deps import get_deps
from worker.runs import request, start


def per_second(work: Callable[[], int]) -> float:
    """How many a second `work` has done."""
    began = time.perf_counter()
    return work() / (time.perf_counter() - began)


def plain(count: int) -> int:
    """Publish so many chains of two tasks."""
    for _ in range(count):
        tasks.build_chain(uuid4(), uuid4(), 1, uuid4()).apply_async()
    return count


def ours() -> int:
    """Start a night: find the enterprises with work due, open a run for each, publish its chain."""
    return len(start.start_runs(get_deps(), request.Request(), (), tasks.publish))


def main(count: int) -> None:
    """Publish both, the plain ones first."""
    app.set_current()
    plain(100)
    rates = {"plain_chains_per_second": per_second(lambda: plain(count)), "chains_per_second": per_second(ours)}
    print(json.dumps({name: round(rate) for name, rate in rates.items()}))  # noqa: T201


if __name__ == "__main__":
    main(int(sys.argv[1]))
