"""Measures how long LMS calls take: counts each call as it ends, stores the counts when its step ends."""

import threading
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, insert
from sqlalchemy.orm import Session

from worker.db.ledger_tables import LmsCall, Run

# The upper bounds, in seconds, of a Prometheus histogram.
BUCKETS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, float("inf"))


class CallTimings:
    """Collects the calls of this process until they are stored in the ledger. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[tuple[str, str, str], list[float]] = defaultdict(list)

    def observe(self, step: str, outcome: str, seconds: float) -> None:
        """Count one HTTP call of a step (or for a token) by its outcome and duration in seconds."""
        bound = next(bound for bound in BUCKETS if seconds <= bound)
        with self._lock:
            self._seconds[step, outcome, bucket(bound)].append(seconds)

    def drain(self) -> list[dict[str, object]]:
        """Return the counts since the last drain, as columns of LmsCall, and reset them."""
        with self._lock:
            counted, self._seconds = self._seconds, defaultdict(list)
        return [
            {"step": step, "outcome": outcome, "le": le, "calls": len(seconds), "seconds": sum(seconds)}
            for (step, outcome, le), seconds in counted.items()
        ]


def bucket(bound: float) -> str:
    """Format a bucket's bound (seconds) as Prometheus does: 0.5, 10, +Inf."""
    return "+Inf" if bound == float("inf") else f"{bound:g}"


def keep_calls(session: Session, run: Run, calls: Sequence[dict[str, Any]]) -> None:
    """Store the LMS calls of this claim of a run."""
    if calls:
        session.execute(insert(LmsCall), [{"run_id": run.id, "fence": run.fence, **call} for call in calls])


def drop_calls(session: Session, run: Run) -> None:
    """Delete the LMS calls of this claim of a run, so that they can be stored again."""
    session.execute(delete(LmsCall).where(LmsCall.run_id == run.id, LmsCall.fence == run.fence))
