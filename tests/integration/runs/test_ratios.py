"""What does not depend on the machine: statements for each batch, what a night without work asks, memory."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, event
from support.runs import ON_EACH, ON_SQLITE, Make, batches_of, finish, lay, open_one, unlinking

from simulator.lms.server import Simulator
from worker.ledger import claims
from worker.ledger.order import Phase
from worker.runs import batches, start

MIB = 1024 * 1024


@contextmanager
def counted(engine: Engine) -> Iterator[list[str]]:
    """The statements that are executed meanwhile."""
    statements: list[str] = []

    def note(*arguments: object) -> None:
        if not str(arguments[2]).startswith("BEGIN"):  # which on SQLite is a statement of ours
            statements.append(str(arguments[2]))

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


def statements_of_a_run(lms: Simulator, make_test_deps: Make, licenses: int, size: int, seed: int) -> int:
    laid = lay(lms, licenses=licenses, seed=seed)
    deps = make_test_deps(**batches_of(size), **unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    with counted(deps.database.engine) as statements:
        assert finish(deps, laid.enterprise, run_id).phase == Phase.FINISHED
    return len(statements)


@ON_EACH
def test_a_batch_costs_a_few_statements_however_many_licenses_it_has(
    lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call at a time is the worst case: those that are answered together are recorded together."""
    monkeypatch.setattr(batches, "FRESH_SECONDS", 3600.0)  # on a busy machine some batch would be selected again
    monkeypatch.setattr(claims, "CHECKED_SECONDS", 3600.0)  # or be checked again before its call
    few = statements_of_a_run(lms, make_test_deps, licenses=12, size=3, seed=1)  # 4 batches in each step
    more = statements_of_a_run(lms, make_test_deps, licenses=36, size=3, seed=2)  # 12
    larger = statements_of_a_run(lms, make_test_deps, licenses=120, size=30, seed=3)  # 4
    of_a_batch = (more - few) / 16

    assert larger == few
    assert of_a_batch <= 3
    assert few - 8 * of_a_batch <= 24, "what a run costs besides"


@ON_EACH
def test_a_small_enterprise_costs_few_statements_and_transactions(
    lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call in each step, as most enterprises have. It was 41 statements in 23 transactions once."""
    monkeypatch.setattr(batches, "FRESH_SECONDS", 3600.0)
    monkeypatch.setattr(claims, "CHECKED_SECONDS", 3600.0)
    first, laid = (lay(lms, licenses=3, seed=seed) for seed in (1, 2))
    deps = make_test_deps(**unlinking(first.enterprise, laid.enterprise))
    finish(deps, first.enterprise, open_one(deps, first.enterprise))  # a process looks at the schema once
    run_id = open_one(deps, laid.enterprise)
    commits: list[object] = []
    note = commits.append
    event.listen(deps.database.engine, "commit", note)
    with counted(deps.database.engine) as statements:
        assert finish(deps, laid.enterprise, run_id).phase == Phase.FINISHED
    event.remove(deps.database.engine, "commit", note)
    assert len(statements) <= 27
    assert len(commits) <= 13


@ON_EACH
def test_a_night_without_work_is_one_query(lms: Simulator, make_test_deps: Make) -> None:
    """It tells no worker, asks for no token, and opens no run; of license-manager's tables it asks once."""
    laid = [lay(lms, licenses=3, days=-10, seed=seed) for seed in range(3)]
    deps = make_test_deps(**unlinking(*(each.enterprise for each in laid)))

    def publish(*_: object) -> None:
        raise AssertionError("a message was sent")

    with counted(deps.database.engine) as statements:
        started = start.start_scheduled_night(deps, datetime.now(UTC).replace(microsecond=0), publish, "beat")
    assert started == []
    assert lms.journal.entries == []
    about_licenses = [each for each in statements if "subscriptions_license" in each]
    assert len(about_licenses) == 1
    assert len(statements) <= 9  # whose database it is, a pause, the night's row, the moment, what is there and known


@ON_SQLITE
def test_memory_does_not_grow_with_the_enterprise(lms: Simulator, make_test_deps: Make) -> None:
    peaks = []
    for seed, licenses in ((1, 300), (2, 6000)):
        laid = lay(lms, licenses=licenses, seed=seed)
        limits = {"UNLINK_LIMIT": 0, "TASK_MAX_RETRIES": 5}
        deps = make_test_deps(**limits, **batches_of(100, parallel=4), **unlinking(laid.enterprise))
        run_id = open_one(deps, laid.enterprise)
        lms.journal.clear()
        tracemalloc.start()
        try:
            assert finish(deps, laid.enterprise, run_id).phase == Phase.FINISHED
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / MIB < 10
