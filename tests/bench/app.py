"""The Celery app of the worker that is measured: the product's own, and a count of its SQL statements.

`celery -A bench.app worker`; each process keeps its count in a file of its own in BENCH_FOLDER.
"""

import mmap
import os
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

import tasks  # noqa: F401
from worker.celery import app as app

FOLDER = Path(os.environ["BENCH_FOLDER"])
_counts: dict[int, mmap.mmap] = {}


def _count() -> mmap.mmap:
    """This process's own counter, which outlives it; made anew after a fork."""
    if os.getpid() not in _counts:
        path = FOLDER / f"{os.getpid()}.statements"
        path.write_bytes(bytes(8))
        with path.open("r+b") as file:
            _counts[os.getpid()] = mmap.mmap(file.fileno(), 8)
    return _counts[os.getpid()]


@event.listens_for(Engine, "before_cursor_execute")
def _executed(*_: Any) -> None:
    count = _count()
    count[:8] = (int.from_bytes(count[:8]) + 1).to_bytes(8)
