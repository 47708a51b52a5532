"""What is sent is what was due two seconds before the first byte, wherever the call had to wait in between."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import select, update
from support.runs import (
    ON_EACH,
    ON_SQLITE,
    Laid,
    Make,
    attempt,
    batches_of,
    counts,
    emails,
    events,
    finish,
    lay,
    processed,
    run_of,
    times_sent,
    unlinking,
)
from support.steps import KINDS, Kind, add_plan, change, in_background, meet, reach

from simulator.data.rows import DAY, Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db.ledger_tables import Throttle
from worker.db.license_manager_tables import UNLINKED_EVENT
from worker.db.sql import DatabaseNow
from worker.deps import Deps
from worker.ledger.order import DOWNGRADE, Phase
from worker.lms.patience import Patience
from worker.runs.batches import Batch, Fresh


@dataclass(frozen=True)
class Wait:
    """Where a call waits: the first request that is held, and what is answered to it when it goes on."""

    of: str
    status: int | None = None
    retry_after: str | None = None
    size: int = 4


WAITS = {
    "a token that takes long": Wait("token"),
    "the throttle's pause": Wait("the call", 429, "0"),
    "the wait before a retry": Wait("the call", 503),
    "a token that the LMS forgot": Wait("the call", 401),
    "the halves of a refused batch": Wait("the call", 400),
    "its turn": Wait("the call", size=2),
}


@pytest.fixture(autouse=True)
def stale_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seconds are long for a test: here a selection is old once it is used."""
    monkeypatch.setattr("worker.runs.batches.FRESH_SECONDS", 0)
    monkeypatch.setattr("worker.runs.batches.USABLE_SECONDS", 0.3)


def fault_of(wait: Wait, kind: Kind) -> Fault:
    headers = {"Retry-After": wait.retry_after} if wait.retry_after else {}
    met: Kind | str = "token" if wait.of == "token" else kind
    return Fault(kind=met, nth=1, delay=60, status=wait.status, headers=headers)  # type: ignore[arg-type]


def begun(lms: Simulator, wait: Wait, kind: Kind) -> Callable[[], object]:
    return lambda: lms.calls("token" if wait.of == "token" else kind)


def age(seconds: float = 0.35) -> None:
    """Let what was selected until now grow old."""
    from time import monotonic, sleep

    end = monotonic() + seconds
    while monotonic() < end:
        sleep(0.01)


@ON_SQLITE
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_license_that_appears_while_a_call_waits_keeps_its_learner_linked(
    wait: Wait, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=4)
    settings = {**batches_of(wait.size), **unlinking(laid.enterprise)}
    run_id = reach(make_test_deps(**settings), laid, "unlink")
    deps = make_test_deps(**settings)  # a new process, with no token yet
    engine, saved = deps.database.engine, laid.licenses[2]
    lms.journal.clear()
    lms.faults(fault_of(wait, "unlink"))
    with in_background(lms, lambda: finish(deps, laid.enterprise, run_id)) as running:
        meet(lms, running, begun(lms, wait, "unlink"))
        data = Data(engine, seed=2)
        [address] = emails(engine, saved)
        data.license(add_plan(data, laid, expires=data.now + DAY, title="New"), address.upper())
        data.flush()
        age()
        lms.release()
        run = running.result()
    assert counts(run) == {"plans": 1, "downgraded": 4, "held": 0, "unlinked": 3, "protected": 1}
    assert address not in times_sent(lms, "unlink", 200)
    assert set(events(engine, UNLINKED_EVENT)) == set(laid.licenses) - {saved}


def extend(deps: Deps, laid: Laid) -> None:
    change(deps.database.engine, "subscriptionplan", laid.plan, expiration_date=deps.database.now() + 30 * DAY)


def renew(deps: Deps, laid: Laid) -> None:
    data = Data(deps.database.engine, seed=2)
    data.renewal(laid.plan, add_plan(data, laid, expires=data.now + DAY, title="Renewed"))
    data.flush()


@ON_SQLITE
@pytest.mark.parametrize("meanwhile", [extend, renew])
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_plan_that_is_extended_or_renewed_while_a_call_waits_is_not_downgraded(
    wait: Wait, meanwhile: Callable[[Deps, Laid], None], lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=4)
    deps = make_test_deps(**batches_of(wait.size))
    run_id = reach(deps, laid, "downgrade")
    lms.faults(fault_of(wait, "downgrade"))
    with in_background(lms, lambda: finish(deps, laid.enterprise, run_id)) as running:
        meet(lms, running, begun(lms, wait, "downgrade"))
        meanwhile(deps, laid)
        age()
        lms.release()
        run = running.result()
    before = 2 if wait.size == 2 else 0  # the first of two batches
    assert (run.phase, counts(run)["downgraded"], counts(run)["plans"]) == (Phase.FINISHED, before, 0)
    assert len(times_sent(lms, "downgrade", 200)) == before
    assert processed(deps.database.engine) == set()


@ON_SQLITE
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_waits_for_its_booked_moment_is_selected_after_it(
    kind: Kind, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=4)
    settings = {**batches_of(4), **unlinking(laid.enterprise)}
    run_id = reach(make_test_deps(**settings), laid, kind)
    deps = make_test_deps(Patience(first_wait=0.01), **settings, LMS_REQUESTS_PER_MINUTE=6000)
    engine = deps.database.engine
    lms.journal.clear()
    with engine.begin() as connection:
        connection.execute(update(Throttle).values(next_call_at=DatabaseNow(2)))
        first = set(connection.scalars(select(Throttle.next_call_at)))

    def booked() -> bool:
        with engine.connect() as connection:
            return set(connection.scalars(select(Throttle.next_call_at))) != first

    with in_background(lms, lambda: finish(deps, laid.enterprise, run_id)) as running:
        meet(lms, running, booked)
        assert lms.calls(kind) == []
        change(engine, "subscriptionplan", laid.plan, expiration_date=deps.database.now() + 30 * DAY)
        run = running.result()
    assert run.phase == Phase.FINISHED
    assert lms.calls(kind) == []


@ON_EACH
def test_the_date_of_a_downgrade_is_that_of_the_plan_at_its_first_byte(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(**batches_of(2))
    run_id = reach(deps, laid, "downgrade")
    lms.faults(Fault(kind="downgrade", nth=1, delay=60, status=503))
    moved = deps.database.now().replace(microsecond=0) - timedelta(days=50)
    with in_background(lms, lambda: attempt(deps, laid.enterprise, run_id, DOWNGRADE)) as running:
        meet(lms, running, lambda: lms.calls("downgrade"))
        change(deps.database.engine, "subscriptionplan", laid.plan, expiration_date=moved)
        age()
        lms.release()
        running.result()
    assert run_of(deps.database, run_id).licenses_downgraded == 2
    [done] = [entry for entry in lms.calls("downgrade") if entry.status == 200]
    assert done.ignore_enrollments_modified_after == moved.isoformat()


@ON_SQLITE
def test_a_license_that_another_learner_was_given_while_its_call_waited_is_left_for_the_next_night(
    lms: Simulator, make_test_deps: Make
) -> None:
    """Under the id that was asked about nobody is linked; that says nothing of the new learner."""
    laid = lay(lms, licenses=2)
    deps = make_test_deps(**batches_of(2), **unlinking(laid.enterprise))
    engine, given = deps.database.engine, laid.licenses[0]
    for number, license in enumerate(laid.licenses):
        change(engine, "license", license, lms_user_id=100 + number)
    lms.seed()
    run_id = reach(deps, laid, "unlink")
    lms.faults(Fault(kind="unlink", nth=1, delay=60, status=503))
    with in_background(lms, lambda: finish(deps, laid.enterprise, run_id)) as running:
        meet(lms, running, lambda: lms.calls("unlink"))
        change(engine, "license", given, lms_user_id=200, user_email="new@x.example")
        age()
        lms.release()
        running.result()
    assert given not in events(engine, UNLINKED_EVENT)
    assert "new@x.example" not in times_sent(lms, "unlink")


@pytest.mark.parametrize(
    ("began_ago", "took", "until"),
    [
        pytest.param(0.0, 0.0, 2.0, id="quick: two seconds from its beginning"),
        pytest.param(1.5, 1.5, 1.0, id="slow: one second from its answer"),
        pytest.param(60.0, 60.0, 1.0, id="very slow: as long, or nothing could ever be sent"),
    ],
)
def test_how_long_a_selection_may_be_used(
    began_ago: float, took: float, until: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.runs import batches

    monkeypatch.setattr(batches, "FRESH_SECONDS", 2.0)
    monkeypatch.setattr(batches, "USABLE_SECONDS", 1.0)
    monkeypatch.setattr(batches, "steady", lambda: 1000.0)
    assert batches.fresh_until(1000.0 - took) == pytest.approx(1000.0 + until)


def test_a_fresh_batch_is_not_selected_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Batch] = []

    def select_again(batch: Batch) -> list[tuple[UUID, bool]]:
        asked.append(batch)
        return []

    row = (UUID(int=1), False)
    monkeypatch.setattr("worker.runs.batches.steady", lambda: 10.0)
    fresh = Fresh(Batch([row], fresh_until=10.5), select_again)
    assert (fresh.now().rows, asked) == ([row], [])
    monkeypatch.setattr("worker.runs.batches.steady", lambda: 10.5)
    assert (fresh.now().rows, len(asked)) == ([], 1)
    assert fresh.now().rows == []
    assert len(asked) == 1
