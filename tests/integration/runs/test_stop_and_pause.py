"""An attempt at a step that an operator stops or pauses: what is in flight is kept, and nothing is sent after it."""

from collections.abc import Callable
from uuid import UUID

import pytest
from support.runs import (
    ON_SQLITE,
    Laid,
    Make,
    attempt,
    batches_of,
    finish,
    lay,
    rows,
    run_of,
    step_of,
    times_sent,
    unlinking,
)
from support.steps import KINDS, Kind, in_background, meet, reach

from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db.ledger_tables import Retry
from worker.deps import Deps
from worker.ledger import claims, runs, waits
from worker.ledger.order import STEPS, Phase
from worker.runs.attempt import Outcome

pytestmark = ON_SQLITE


@pytest.fixture(autouse=True)
def _each_call_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after half a second, which these calls do not take."""
    monkeypatch.setattr(claims, "CHECKED_SECONDS", 0.0)


def interrupted(
    lms: Simulator, deps: Deps, laid: Laid, run_id: UUID, kind: Kind, interrupt: Callable[[], object]
) -> Outcome:
    """Make an attempt, and do something to it while two calls are in flight, which are answered after it."""
    lms.journal.clear()
    lms.faults(Fault(kind=kind, delay=60, last=2))
    with in_background(lms, lambda: attempt(deps, laid.enterprise, run_id, step_of(kind))) as running:
        meet(lms, running, lambda: len(lms.calls(kind)) == 2)
        interrupt()
        lms.release()
        outcome: Outcome = running.result()
    assert len(lms.calls(kind)) == 2, "nothing was begun after it"
    return outcome


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_stopped_keeps_what_was_in_flight_and_sends_no_more(
    kind: Kind, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=20)
    deps = make_test_deps(**batches_of(2, parallel=2), **unlinking(laid.enterprise))
    run_id = reach(deps, laid, kind)

    def stop() -> None:
        runs.stop_run(deps.database, run_id, "ops on host", "a wrong plan")

    outcome = interrupted(lms, deps, laid, run_id, kind, stop)
    assert (outcome.more, outcome.retry) == (False, None)
    assert outcome.skipped == f"run {run_id} was stopped by ops on host: a wrong plan"
    ended = run_of(deps.database, run_id)
    assert (ended.phase, ended.live, ended.owner) == (Phase.STOPPED, None, None)
    assert ended.error == "stopped by ops on host: a wrong plan"
    assert (ended.licenses_downgraded if kind == "downgrade" else ended.learners_unlinked) == 4
    for step in STEPS:  # what is left of its chain
        assert attempt(deps, laid.enterprise, run_id, step).skipped == (
            f"run {run_id} is stopped by ops on host: a wrong plan"
        )
    assert len(lms.calls(kind)) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_paused_step_keeps_what_was_in_flight_and_goes_on_afterwards(
    kind: Kind, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=20)
    deps = make_test_deps(**batches_of(2, parallel=2), **unlinking(laid.enterprise))
    run_id = reach(deps, laid, kind)
    outcome = interrupted(
        lms, deps, laid, run_id, kind, lambda: waits.pause(deps.database, "ops on host", "an upgrade")
    )
    for _ in range(2):  # and when it comes again
        assert outcome.retry is not None
        assert waits.PAUSE_SECONDS <= outcome.retry.seconds <= 2 * waits.PAUSE_SECONDS
        assert "is paused since" in str(outcome.retry.error)
        paused = run_of(deps.database, run_id)
        assert (paused.waits_for, paused.owner, paused.tries) == ("paused", None, 0)
        outcome = attempt(deps, laid.enterprise, run_id, step_of(kind))
    assert len(rows(deps.database.engine, Retry)) == 1, "one wait, however often it looked"
    assert len(lms.calls(kind)) == 2
    waits.resume(deps.database)
    assert finish(deps, laid.enterprise, run_id).phase == Phase.FINISHED
    assert set(times_sent(lms, kind).values()) == {1}, "nothing went out twice"
