"""Calls in flight against a simulated LMS: how many, split how, recorded when."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import Engine, QueuePool
from support.eventually import eventually
from support.runs import (
    ON_EACH,
    ON_SQLITE,
    Laid,
    Make,
    age_holds,
    assert_order,
    attempt,
    batches_of,
    counts,
    emails,
    events,
    finish,
    held,
    lay,
    night,
    open_one,
    processed,
    ready,
    rows,
    run_of,
    sent,
    start,
    step_of,
    texts,
    times_sent,
    unlinking,
)
from support.steps import KINDS, Kind, add_plan, break_enrollment, change, in_background, meet, mend_enrollment, reach

from simulator.data.rows import DAY, Data
from simulator.data.showcase import MALFORMED_EMAIL
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db.ledger_tables import Downgrade, HeldLicense
from worker.db.license_manager_tables import UNLINKED_EVENT
from worker.deps import Deps
from worker.errors import Unavailable
from worker.ledger import limits
from worker.ledger.order import DOWNGRADE, Phase
from worker.ledger.runs import stop_run
from worker.runs import flight

# Calls


@ON_SQLITE
def test_a_call_has_as_many_licenses_as_the_setting_says(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=7)
    deps = make_test_deps(
        LICENSE_EXPIRATION_BATCH_SIZE=3, BULK_UNLINK_BATCH_SIZE=2, LMS_PARALLEL_REQUESTS=1, **unlinking(laid.enterprise)
    )
    [run] = night(deps).values()
    addresses = emails(deps.database.engine, *laid.licenses)
    ids = texts(laid.licenses)
    assert sent(lms, "downgrade") == [ids[:3], ids[3:6], ids[6:]]
    assert sent(lms, "unlink") == [addresses[:2], addresses[2:4], addresses[4:6], addresses[6:]]
    assert {entry.is_relinkable for entry in lms.calls("unlink")} == {True}
    assert run.phase == Phase.FINISHED
    assert counts(run) == {"plans": 1, "downgraded": 7, "held": 0, "unlinked": 7, "protected": 0}
    assert (run.retries, run.error, run.live, run.owner) == (0, None, None, None)
    assert lms.state.linked[laid.enterprise] == set()
    assert lms.state.counts()["licenses_downgraded"] == 7
    assert_order(lms.journal)


@ON_SQLITE
def test_a_plan_that_expired_within_a_day_is_sent_without_a_date(lms: Simulator, make_test_deps: Make) -> None:
    fresh = lay(lms, licenses=1, days=23 / 24, seed=1)
    older = lay(lms, licenses=1, days=25 / 24, seed=2)
    deps = make_test_deps()
    night(deps)
    dates = {entry.enterprise: entry.ignore_enrollments_modified_after for entry in lms.calls("downgrade")}
    plans = {row["uuid"]: row["expiration_date"] for row in rows(deps.database.engine, "subscriptionplan")}
    assert dates == {str(fresh.enterprise): None, str(older.enterprise): plans[older.plan].isoformat()}


@ON_SQLITE
@pytest.mark.parametrize("kind", KINDS)
def test_as_many_calls_are_in_flight_as_the_setting_says(kind: Kind, lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=12)
    deps = make_test_deps(**batches_of(1, parallel=3), **unlinking(laid.enterprise))
    run_id = reach(deps, laid, kind)
    lms.journal.clear()
    lms.lms.latency = 0.02
    lms.faults(Fault(kind=kind, delay=60))
    with in_background(lms, lambda: finish(deps, laid.enterprise, run_id)) as running:
        meet(lms, running, lambda: lms.journal.in_flight == 3)
        lms.faults()
        lms.release()
        assert running.result().phase == Phase.FINISHED
    assert lms.journal.most_in_flight == 3
    assert_order(lms.journal)


@ON_SQLITE
@pytest.mark.parametrize("kind", KINDS)
def test_no_connection_is_held_while_calls_are_in_flight(kind: Kind, lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=6)
    deps = make_test_deps(**batches_of(1, parallel=3), **unlinking(laid.enterprise))
    run_id = reach(deps, laid, kind)
    lms.faults(Fault(kind=kind, delay=60))
    pool = deps.database.engine.pool
    assert isinstance(pool, QueuePool)
    before = len(lms.calls(kind))
    with in_background(lms, lambda: finish(deps, laid.enterprise, run_id)) as running:
        meet(lms, running, lambda: len(lms.calls(kind)) == before + 3 and pool.checkedout() == 0)
        lms.faults()
        lms.release()
        assert running.result().phase == Phase.FINISHED


@ON_SQLITE
def test_calls_keep_to_the_rate_over_both_steps(lms: Simulator, make_test_deps: Make) -> None:
    apart = 0.04
    laid = lay(lms, licenses=4)
    deps = make_test_deps(**batches_of(1, parallel=4), **unlinking(laid.enterprise), LMS_REQUESTS_PER_MINUTE=60 / apart)
    night(deps)
    starts = [entry.started_at for entry in lms.journal.entries if entry.kind != "token"]
    assert len(starts) == 8
    assert (starts[-1] - starts[0]).total_seconds() > apart * (len(starts) - 3)


@ON_SQLITE
def test_the_lease_is_renewed_while_a_call_is_in_flight(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=1)
    deps = make_test_deps(BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS=4)
    patient = replace(deps, settings=deps.settings.model_copy(update={"LEASE_SECONDS": 5}))
    lms.faults(Fault(kind="downgrade", delay=60))
    run_id = open_one(deps, laid.enterprise)
    with in_background(lms, lambda: finish(patient, laid.enterprise, run_id)) as running:
        meet(lms, running, lambda: lms.calls("downgrade"))
        first = run_of(deps.database, run_id).lease_until
        meet(lms, running, lambda: run_of(deps.database, run_id).lease_until != first)
        assert lms.journal.in_flight == 1
        lms.release()
        assert running.result().phase == Phase.FINISHED


@ON_SQLITE
def test_a_plan_without_learners_is_marked_without_a_call(lms: Simulator, make_test_deps: Make) -> None:
    assert lms.lms.engine is not None
    data = Data(lms.lms.engine)
    plan = data.plan(data.agreement(), expires=data.now - 40 * DAY)
    data.license(plan, status="unassigned")
    data.license(plan, status="revoked")
    ready(data, lms)
    [run] = night(make_test_deps()).values()
    assert (run.phase, counts(run)["plans"], counts(run)["downgraded"]) == (Phase.FINISHED, 1, 0)
    assert processed(lms.lms.engine) == {plan}
    assert lms.journal.entries == []


# One bad license


def test_of_a_thousand_licenses_three_are_held_and_the_others_done(
    lms: Simulator, engine: Engine, make_test_deps: Make
) -> None:
    data = Data(engine)
    agreement = data.agreement()
    plan = data.plan(agreement, expires=data.now - 100 * DAY)
    licenses = [data.license(plan) for _ in range(999)]
    malformed = data.license(plan, MALFORMED_EMAIL)
    ready(data, lms)
    laid = Laid(agreement.enterprise_customer_uuid, plan, licenses)
    locked, broken = licenses[333], licenses[666]
    break_enrollment(lms, laid, locked, "locked")
    break_enrollment(lms, laid, broken, "no_overview")
    addresses = emails(engine, locked, broken)
    # SQLite is slow to find who is protected, and lets one write at a time.
    small = {"BULK_UNLINK_BATCH_SIZE": 500, "LMS_PARALLEL_REQUESTS": 1} if engine.dialect.name == "sqlite" else {}
    deps = make_test_deps(**small, **unlinking(laid.enterprise))
    [run] = night(deps).values()
    assert (run.phase, run.error) == (Phase.FINISHED, None)
    assert counts(run) == {"plans": 0, "downgraded": 998, "held": 3, "unlinked": 997, "protected": 0}
    assert held(engine) == {locked: "http_422", broken: "http_500", malformed: "http_400"}
    assert {row["step"] for row in rows(engine, HeldLicense)} == {"downgrade", "unlink"}
    assert processed(engine) == set()
    assert events(engine, UNLINKED_EVENT) == Counter(set(licenses) - {locked, broken})
    assert lms.state.linked[laid.enterprise] == {*addresses, MALFORMED_EMAIL}
    # Nobody who is held was ever taken for done, and what was done was not sent again.
    assert times_sent(lms, "downgrade", 200) == Counter(texts([*licenses, malformed])) - Counter(
        texts([locked, broken])
    )
    assert set(times_sent(lms, "unlink", 200).values()) == {1}
    # Halving finds one license of 100 in 14 calls; a 500 is tried twice before it is believed.
    assert len(lms.calls("downgrade")) < 10 + 14 + 2 * 14 + 5
    assert_order(lms.journal)
    lms.journal.clear()
    assert night(make_test_deps(**unlinking(laid.enterprise))) == {}
    assert lms.journal.entries == []  # not even for a token


@ON_SQLITE
def test_a_held_license_is_tried_again_the_next_night(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=5)
    bad, addresses = laid.licenses[2], emails(make_test_deps().database.engine, *laid.licenses)
    break_enrollment(lms, laid, bad)
    deps = make_test_deps(**batches_of(5), **unlinking(laid.enterprise))
    engine = deps.database.engine
    night(deps)
    [first] = rows(engine, HeldLicense)
    age_holds(engine)
    lms.journal.clear()
    [second] = night(deps).values()  # the LMS still refuses it
    assert counts(second) == {"plans": 0, "downgraded": 0, "held": 1, "unlinked": 0, "protected": 0}
    assert set(times_sent(lms, "downgrade")) == {str(bad)}
    assert sent(lms, "unlink") == []
    [row] = rows(engine, HeldLicense)
    assert (row["tries"], row["run_id"], row["as_of"]) == (2, second.id, second.as_of)
    assert row["first_held_at"] == first["first_held_at"]
    age_holds(engine)
    mend_enrollment(lms, bad)
    lms.journal.clear()
    [third] = night(deps).values()  # it takes it at last
    assert counts(third) == {"plans": 1, "downgraded": 1, "held": 0, "unlinked": 1, "protected": 0}
    assert (sent(lms, "downgrade"), sent(lms, "unlink")) == ([[str(bad)]], [[addresses[2]]])
    assert (held(engine), processed(engine)) == ({}, {laid.plan})
    assert rows(engine, Downgrade) == []


@ON_SQLITE
def test_a_held_address_is_tried_again_when_it_has_been_corrected(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=3)
    deps = make_test_deps(**batches_of(3), **unlinking(laid.enterprise))
    engine, bad = deps.database.engine, laid.licenses[0]
    change(engine, "license", bad, user_email=MALFORMED_EMAIL)
    [run] = night(deps).values()
    assert counts(run) == {"plans": 1, "downgraded": 3, "held": 1, "unlinked": 2, "protected": 0}
    assert held(engine) == {bad: "http_400"}
    change(engine, "license", bad, user_email="corrected@x.example")
    assert night(deps) == {}  # the same night still
    age_holds(engine)
    [run] = night(deps).values()
    assert counts(run) == {"plans": 0, "downgraded": 0, "held": 0, "unlinked": 1, "protected": 0}
    assert held(engine) == {}


@ON_SQLITE
@pytest.mark.parametrize("force", [False, True])
def test_a_run_tries_a_license_that_it_holds_once(force: bool, lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=6)
    bad = laid.licenses[0]
    break_enrollment(lms, laid, bad)
    deps = make_test_deps(TASK_MAX_RETRIES=5, **batches_of(2), **unlinking(laid.enterprise))
    run_id = reach(deps, laid, "downgrade", force=force, reason="a test" if force else None)
    lms.faults(Fault(kind="downgrade", license=str(laid.licenses[-1]), status=503))
    assert attempt(deps, laid.enterprise, run_id, DOWNGRADE).retry
    tried = times_sent(lms, "downgrade")[str(bad)]
    lms.faults()
    run = finish(deps, laid.enterprise, run_id)
    assert times_sent(lms, "downgrade")[str(bad)] == tried
    assert counts(run) == {"plans": 0, "downgraded": 5, "held": 1, "unlinked": 5, "protected": 0}
    assert [row["tries"] for row in rows(deps.database.engine, HeldLicense)] == [1]


@ON_SQLITE
def test_a_hold_stays_though_nobody_finds_it_due_until_its_plan_is_extended(
    lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=3)
    bad = laid.licenses[1]
    break_enrollment(lms, laid, bad)
    deps = make_test_deps(**unlinking(laid.enterprise))
    engine = deps.database.engine
    night(deps)
    change(engine, "license", bad, status="revoked")
    age_holds(engine)
    lms.journal.clear()
    [run] = night(deps).values()
    assert (run.phase, counts(run)["plans"]) == (Phase.FINISHED, 1)
    assert set(held(engine)) == {bad}
    assert lms.journal.entries == []
    change(engine, "subscriptionplan", laid.plan, expiration_date=deps.database.now() + DAY)
    data = Data(engine, seed=2)
    add_plan(data, laid, title="Another")
    ready(data, lms)
    [run] = night(deps).values()
    assert run.phase == Phase.FINISHED
    assert held(engine) == {}


@ON_SQLITE
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [400, 422, 500])
def test_an_lms_that_refuses_everything_has_nobody_held(
    status: int, kind: Kind, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=9)
    deps = make_test_deps(**batches_of(3), **unlinking(laid.enterprise))
    run_id = reach(deps, laid, kind)
    lms.faults(Fault(kind=kind, status=status))
    with pytest.raises(Unavailable, match="concerns nobody"):
        attempt(deps, laid.enterprise, run_id, step_of(kind))
    run = run_of(deps.database, run_id)
    assert (run.phase, counts(run)["held"], held(deps.database.engine)) == (Phase.FAILED, 0, {})
    assert len(sent(lms, kind)) <= 2  # and nothing was split


# Slots, over all workers


@ON_EACH
def test_the_limit_holds_over_all_workers_and_is_used_to_the_full(lms: Simulator, make_test_deps: Make) -> None:
    """Three workers, each with more to send than all together may have in flight."""
    laid = [lay(lms, licenses=12, seed=seed) for seed in (1, 2, 3)]
    many = batches_of(1, parallel=4) | unlinking(*(each.enterprise for each in laid))
    workers = [make_test_deps(TASK_MAX_RETRIES=5, **many) for _ in laid]
    runs = start(workers[0])
    lms.faults(Fault(kind="downgrade", delay=60))
    with ThreadPoolExecutor() as threads:
        nights = [
            threads.submit(finish, deps, run.enterprise, run.run_id) for deps, run in zip(workers, runs, strict=True)
        ]
        eventually(lambda: lms.journal.in_flight == 4)
        lms.faults()
        lms.lms.latency = 0.01
        lms.release()
        assert [each.result(60).phase for each in nights] == [Phase.FINISHED] * 3
    assert lms.journal.most_in_flight == 4


@ON_SQLITE
def test_a_run_that_waits_for_a_slot_can_be_stopped(
    lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flight, "WAITING_SECONDS", 0.0)
    first, second = lay(lms, licenses=1, seed=1), lay(lms, licenses=1, seed=2)
    workers = [make_test_deps(**batches_of(1, parallel=1)) for _ in range(2)]
    runs = {run.enterprise: run.run_id for run in start(workers[0])}
    lms.faults(Fault(kind="downgrade", enterprise=str(first.enterprise), delay=60))
    with ThreadPoolExecutor() as threads:
        held_up = threads.submit(finish, workers[0], first.enterprise, runs[first.enterprise])
        eventually(lambda: lms.journal.in_flight == 1)
        waiting = threads.submit(finish, workers[1], second.enterprise, runs[second.enterprise])
        eventually(lambda: run_of(workers[0].database, runs[second.enterprise]).slots == 0)
        stop_run(workers[0].database, runs[second.enterprise], "somebody", "a test")
        assert waiting.result(30).phase == Phase.STOPPED
        lms.release()
        assert held_up.result(30).phase == Phase.FINISHED


@ON_SQLITE
@pytest.mark.parametrize("parallel", [1, 3])
def test_a_look_for_slots_after_the_last_batch_does_not_hold_up_the_end(
    parallel: int, lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LOOK_SECONDS", 0.0)
    lay(lms, licenses=5)
    deps = make_test_deps(**batches_of(1, parallel=parallel))
    (run,) = start(deps)
    assert finish(deps, run.enterprise, run.run_id).phase == Phase.FINISHED


@ON_SQLITE
def test_a_large_enterprise_does_not_hold_up_a_small_one(
    lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large one that has all slots gives one back as soon as calls of it are answered."""
    monkeypatch.setattr(limits, "LOOK_SECONDS", 0.02)  # not 0: SQLite's lock would never be free for the other
    large, small = lay(lms, licenses=150, seed=1), lay(lms, licenses=2, seed=2)
    settings = batches_of(1, parallel=3) | unlinking(large.enterprise, small.enterprise) | {"UNLINK_LIMIT": 0}
    workers: list[Deps] = [make_test_deps(**settings) for _ in range(2)]
    runs = {run.enterprise: run.run_id for run in start(workers[0])}
    lms.faults(Fault(kind="downgrade", enterprise=str(large.enterprise), delay=600))
    with ThreadPoolExecutor() as threads:
        held_up = threads.submit(finish, workers[0], large.enterprise, runs[large.enterprise])
        eventually(lambda: lms.journal.in_flight == 3)
        quick = threads.submit(finish, workers[1], small.enterprise, runs[small.enterprise])

        def has_ended() -> bool:
            lms.release()
            return quick.done()

        eventually(has_ended)
        assert not held_up.done()
        monkeypatch.setattr(limits, "LOOK_SECONDS", 1.0)
        lms.faults()
        lms.release()
        assert (quick.result().phase, held_up.result(120).phase) == (Phase.FINISHED, Phase.FINISHED)
    assert lms.journal.most_in_flight == 3
