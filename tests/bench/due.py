"""How long it takes to find what is due, beside one full scan of the table of licenses."""

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, text

from worker.db.transactions import Database
from worker.due import enterprises
from worker.due.forecast import plan_rows
from worker.due.scope import Scope

SCAN = "SELECT count(*) FROM subscriptions_license WHERE created > modified"
TIMES = 3


def seconds(work: Callable[[], Any], times: int = TIMES) -> float:
    """The shortest of a few times that `work` took."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took)


def find(engine: Engine, listed: list[UUID]) -> dict[str, float]:
    """Seconds of a full scan, of what a night asks first, and of `license-expiry due`."""
    database = Database(engine)
    scope = Scope(database.now(), timedelta(days=90), frozenset(listed))

    def scan() -> object:
        with engine.connect() as connection:
            return connection.execute(text(SCAN)).all()

    return {
        "full_scan": round(seconds(scan), 3),
        "due_enterprises": round(
            seconds(lambda: database.transact(lambda session: enterprises.find_due_enterprises(session, scope))), 3
        ),
        "command_due": round(seconds(lambda: plan_rows(database, scope), times=1), 3),
    }
