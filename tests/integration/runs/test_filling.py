"""How a step goes on when there is nothing to send, and when a host starts no more threads."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, event
from support.claims import claim, open_run
from support.runs import (
    ON_SQLITE,
    Make,
    assert_order,
    attempt,
    batches_of,
    counts,
    finish,
    lay,
    night,
    open_one,
    processed,
    ready,
    run_of,
    sent,
)

from simulator.data.rows import DAY, Data
from simulator.lms.server import Simulator
from worker.db.ledger_tables import Run
from worker.deps import Deps
from worker.ledger.order import DOWNGRADE, Phase
from worker.runs.batches import BatchReader
from worker.runs.flight import Flight

# Plans without work


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    executed: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        executed.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield executed
    event.remove(engine, "before_cursor_execute", note)


def test_plans_without_work_cost_no_question_each(lms: Simulator, make_test_deps: Make) -> None:
    deps = make_test_deps()
    data = Data(deps.database.engine)
    took: dict[int, int] = {}
    for number in (2, 40):
        agreement = data.agreement()
        for _ in range(number):
            data.license(data.plan(agreement, expires=data.now - 40 * DAY), status="unassigned")
        ready(data, lms)
        run_id = open_one(deps, agreement.enterprise_customer_uuid)
        with statements(deps.database.engine) as executed:
            assert attempt(deps, agreement.enterprise_customer_uuid, run_id, DOWNGRADE).run is not None
        took[number] = len(executed)
    assert len(processed(deps.database.engine)) == 42
    assert took[40] <= took[2] + 3, "each plan is asked about"
    assert lms.journal.entries == []


def fly(deps: Deps, read_page: Callable[[int], Sequence[Any]], sources: int, lease: int) -> bool:
    """Send what so many sources have, by `read_page` of the number of pages that were read before."""
    held = claim(deps.database, open_run(deps.database), lease=lease)
    deps.settings.__dict__["LEASE_SECONDS"] = lease
    read = 0

    def page(_: UUID | None, __: int) -> Sequence[Any]:
        nonlocal read
        read += 1
        return read_page(read)

    reader = BatchReader(held, 10, [(None, page)] * sources)
    return Flight(deps, held, reader, lambda batch: batch, lambda *_: None, float("inf")).send_all()


@ON_SQLITE
def test_a_shutdown_is_noticed_between_sources_without_work(lms: Simulator, make_test_deps: Make) -> None:
    deps = make_test_deps()
    read: list[int] = []

    def read_page(number: int) -> Sequence[Any]:
        read.append(number)
        if number == 3:
            deps.shutdown.begin()
        return ()

    assert fly(deps, read_page, sources=100, lease=300) is False
    assert read == [1, 2, 3]


@ON_SQLITE
def test_the_lease_is_renewed_between_sources_without_work(lms: Simulator, make_test_deps: Make) -> None:
    deps = make_test_deps()
    until: list[datetime | None] = []

    def read_page(_: int) -> Sequence[Any]:
        [run] = deps.database.transact(lambda session: session.query(Run).all())
        until.append(run.lease_until)
        return ()

    assert fly(deps, read_page, sources=5, lease=0) is True
    assert len(set(until)) == len(until) == 5


# Threads


@pytest.fixture
def few_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let this host start so many threads for calls from now on, and then no more."""
    left = 0
    start = threading.Thread.start

    def start_if_any(thread: threading.Thread) -> None:
        nonlocal left
        if thread.name.startswith("lms"):
            if not left:
                raise RuntimeError("can't start new thread")
            left -= 1
        start(thread)

    def let(number: int) -> None:
        nonlocal left
        left = number

    monkeypatch.setattr(threading.Thread, "start", start_if_any)
    return let


@ON_SQLITE
def test_with_fewer_threads_than_asked_for_all_is_sent_once(
    lms: Simulator, make_test_deps: Make, few_threads: Callable[[int], None]
) -> None:
    laid = lay(lms, licenses=9)
    few_threads(1)
    [run] = night(make_test_deps(**batches_of(1, parallel=4))).values()
    assert (run.phase, counts(run)["downgraded"], run.retries) == (Phase.FINISHED, 9, 0)
    assert len(sent(lms, "downgrade")) == 9
    assert lms.journal.most_in_flight == 1
    assert processed(lms.lms.engine) == {laid.plan}  # type: ignore[arg-type]
    assert_order(lms.journal)


@ON_SQLITE
def test_with_no_thread_at_all_the_step_is_retried_and_loses_no_batch(
    lms: Simulator, make_test_deps: Make, few_threads: Callable[[int], None]
) -> None:
    laid = lay(lms, licenses=3)
    deps = make_test_deps(TASK_MAX_RETRIES=5, **batches_of(1, parallel=2))
    run_id = open_one(deps, laid.enterprise)
    few_threads(0)
    retry = attempt(deps, laid.enterprise, run_id, DOWNGRADE).retry
    assert retry is not None
    assert retry.error.reason == "no_thread"
    assert "ulimit -u" in retry.error.remedy
    assert sent(lms, "downgrade") == []
    few_threads(2)
    assert counts(finish(deps, laid.enterprise, run_id))["downgraded"] == 3
    assert sorted(licenses for [licenses] in sent(lms, "downgrade")) == sorted(map(str, laid.licenses))
    assert run_of(deps.database, run_id).phase == Phase.FINISHED
