"""The two steps against a simulated LMS: what is sent, what is recorded, and what an attempt leaves behind."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any, Literal, TypeVar
from uuid import UUID

import pytest
from sqlalchemy import Engine, QueuePool, update
from support.runs import (
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
    snapshot,
    start,
    step_of,
    take_over,
    texts,
    times_sent,
    unlinking,
)

from simulator.data.rows import DAY, Agreement, Data
from simulator.data.schema import table
from simulator.data.showcase import MALFORMED_EMAIL
from simulator.lms.faults import Fault
from simulator.lms.journal import Journal
from simulator.lms.server import Simulator
from simulator.lms.state import Enrollment, EnrollmentFault
from worker.db import transactions as database_module
from worker.db.ledger_tables import Downgrade, HeldLicense, LmsCall, Retry
from worker.db.license_manager_tables import DOWNGRADED_EVENT, UNLINKED_EVENT
from worker.deps import Deps
from worker.errors import RunRefused, Unavailable
from worker.ledger import claims, runs as claims_runs
from worker.ledger.claims import Claim
from worker.ledger.order import DOWNGRADE, STEPS, UNLINK, Phase, Step
from worker.lms.patience import Patience
from worker.runs import steps

Kind = Literal["downgrade", "unlink"]
T = TypeVar("T")
KINDS: list[Kind] = ["downgrade", "unlink"]
HOUR = timedelta(hours=1)


def break_enrollment(lms: Simulator, laid: Laid, license: UUID, fault: EnrollmentFault = "locked") -> None:
    lms.state.add_license(license, laid.enterprise, [Enrollment(fault=fault)])


def mend_enrollment(lms: Simulator, license: UUID) -> None:
    lms.state.special[license.int][0].fault = None


def claim(deps: Deps, laid: Laid, run_id: UUID, step: Step) -> Claim:
    return claims.claim(deps.database, run_id, laid.enterprise, step, "a test", deps.settings.LEASE_SECONDS)


def reach(deps: Deps, laid: Laid, kind: Kind, **request: Any) -> UUID:
    """Open a run, and do what comes before this kind of call; give its id."""
    run_id = open_one(deps, laid.enterprise, **request)
    if kind == "unlink":
        attempt(deps, laid.enterprise, run_id, DOWNGRADE)
    return run_id


def change(engine: Engine, name: str, uuid: UUID, **values: Any) -> None:
    """What license-manager does to one of its rows meanwhile."""
    changed = table(engine, name)
    with engine.begin() as connection:
        connection.execute(update(changed).where(changed.c.uuid == uuid).values(**values))


@contextmanager
def in_background(lms: Simulator, work: Callable[[], T]) -> Iterator[Future[T]]:
    """Do it in a thread; whatever the LMS delays goes on at the end."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        try:
            yield running
        finally:
            lms.faults()
            lms.release()


def meet(lms: Simulator, running: Future[Any], condition: Callable[[], Any]) -> None:
    """Wait until a condition holds while something is running."""
    lms.wait_for(lambda: condition() or running.done())
    assert not running.done(), running.result()


def add_plan(data: Data, laid: Laid, **columns: Any) -> UUID:
    """Another plan of the enterprise, by default expired as long as the first."""
    [agreement] = [
        Agreement(row["uuid"], laid.enterprise, "x.example")
        for row in rows(data.engine, "customeragreement")
        if row["enterprise_customer_uuid"] == laid.enterprise
    ]
    return data.plan(agreement, **{"expires": data.now - 100 * DAY, **columns})


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


# The worker's shutdown


@ON_SQLITE
@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_is_told_to_end_finishes_what_is_in_flight_and_hands_the_run_back(
    kind: Kind, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=20)
    deps = make_test_deps(**batches_of(2, parallel=2), **unlinking(laid.enterprise))
    run_id = reach(deps, laid, kind)
    lms.journal.clear()
    lms.faults(Fault(kind=kind, delay=60, last=2))
    with in_background(lms, lambda: attempt(deps, laid.enterprise, run_id, step_of(kind))) as running:
        meet(lms, running, lambda: len(lms.calls(kind)) == 2)
        deps.shutdown.begin()
        lms.release()
        outcome = running.result()
    assert (outcome.more, outcome.skipped) == (True, None)
    assert len(lms.calls(kind)) == 2, "nothing was begun after it"
    back = run_of(deps.database, run_id)
    assert (back.owner, back.live, back.retries, back.error) == (None, laid.enterprise, 0, None)
    assert (back.licenses_downgraded if kind == "downgrade" else back.learners_unlinked) == 4
    another = make_test_deps(**batches_of(2, parallel=2), **unlinking(laid.enterprise))
    assert finish(another, laid.enterprise, run_id).phase == Phase.FINISHED
    assert set(times_sent(lms, kind).values()) == {1}, "nothing went out twice"


@ON_SQLITE
@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"status": 429, "headers": {"Retry-After": "300"}}, id="the LMS's throttle"),
        pytest.param({"status": 503, "headers": {"Retry-After": "300"}}, id="the wait before a try in place"),
    ],
)
def test_a_worker_that_is_told_to_end_does_not_sit_a_wait_out(
    fault: dict[str, Any],
    lms: Simulator,
    make_test_deps: Make,
) -> None:
    laid = lay(lms, licenses=4)
    deps = make_test_deps(Patience(longest_wait=300), **batches_of(2))
    run_id = open_one(deps, laid.enterprise)
    lms.faults(Fault(kind="downgrade", times=1, **fault))
    with in_background(lms, lambda: attempt(deps, laid.enterprise, run_id, DOWNGRADE)) as running:
        meet(lms, running, lambda: [entry for entry in lms.calls("downgrade") if entry.status])
        deps.shutdown.begin()
        assert running.result(timeout=30).more
    assert len(lms.calls("downgrade")) == 1


# The same again


@ON_SQLITE
def test_a_second_run_straight_after_sends_nothing(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms)
    settings = batches_of(2) | unlinking(laid.enterprise)
    night(make_test_deps(**settings))
    before = snapshot(make_test_deps(**settings).database.engine)
    lms.journal.clear()
    again = make_test_deps(**settings)  # a new process, with no token yet
    assert night(again) == {}
    assert start(again, laid.enterprise) == []
    assert lms.journal.entries == []
    assert snapshot(again.database.engine) == before


@ON_SQLITE
@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_goes_on_after_its_last_confirmed_batch(
    kind: Kind, parallel: int, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=14)
    deps = make_test_deps(**batches_of(2, parallel), **unlinking(laid.enterprise))
    run_id = reach(deps, laid, kind)
    step = step_of(kind)
    lms.faults(Fault(kind=kind, first=3, status=503))
    assert attempt(deps, laid.enterprise, run_id, step, retries=0).retry
    stopped = run_of(deps.database, run_id)
    assert times_sent(lms, kind, 200).total() == 4
    assert len(times_sent(lms, kind)) <= 4 + 2 * parallel  # the rest was left for later
    done = stopped.licenses_downgraded if kind == "downgrade" else stopped.learners_unlinked
    assert done == 4
    assert (stopped.phase, stopped.owner, stopped.retries) == (f"{kind.removesuffix('e')}ing", None, 1)
    assert stopped.error is not None
    assert "503" in stopped.error
    lms.faults()
    run = finish(deps, laid.enterprise, run_id)
    assert counts(run) == {"plans": 1, "downgraded": 14, "held": 0, "unlinked": 14, "protected": 0}
    assert (run.phase, run.error) == (Phase.FINISHED, None)
    for each in KINDS:
        assert set(times_sent(lms, each, 200).values()) == {1}
        assert times_sent(lms, each, 200).total() == 14
    assert_order(lms.journal)


@ON_SQLITE
def test_what_was_in_flight_when_the_answer_got_lost_is_sent_again_and_counted_once(
    lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=6)
    deps = make_test_deps(**batches_of(2), **unlinking(laid.enterprise))
    lms.faults(*(Fault(kind=kind, first=2, last=5, drop="after") for kind in KINDS))
    run_id = open_one(deps, laid.enterprise)
    for step in STEPS:
        assert attempt(deps, laid.enterprise, run_id, step, retries=0).retry
        attempt(deps, laid.enterprise, run_id, step)
    run = run_of(deps.database, run_id)
    assert counts(run) == {"plans": 1, "downgraded": 6, "held": 0, "unlinked": 6, "protected": 0}
    assert set(events(deps.database.engine, UNLINKED_EVENT).values()) == {1}
    for kind in KINDS:
        assert [len(names) for names in sent(lms, kind, 200)] == [2, 2, 2]
        assert sorted(times_sent(lms, kind).values()) == [1, 1, 1, 1, 5, 5]
    assert_order(lms.journal)


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
    deps = make_test_deps(**batches_of(2), **unlinking(laid.enterprise))
    run_id = reach(deps, laid, "downgrade", force=force, reason="a test" if force else None)
    lms.faults(Fault(kind="downgrade", license=str(laid.licenses[-1]), status=503))
    assert attempt(deps, laid.enterprise, run_id, DOWNGRADE, retries=0).retry
    tried = times_sent(lms, "downgrade")[str(bad)]
    lms.faults()
    run = finish(deps, laid.enterprise, run_id)
    assert times_sent(lms, "downgrade")[str(bad)] == tried
    assert counts(run) == {"plans": 0, "downgraded": 5, "held": 1, "unlinked": 5, "protected": 0}
    assert [row["tries"] for row in rows(deps.database.engine, HeldLicense)] == [1]


@ON_SQLITE
def test_a_hold_that_is_not_due_any_more_is_dropped_by_the_next_full_run(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=3)
    bad = laid.licenses[1]
    break_enrollment(lms, laid, bad)
    deps = make_test_deps(**unlinking(laid.enterprise))
    engine = deps.database.engine
    night(deps)
    change(engine, "license", bad, status="revoked")
    age_holds(engine)
    lms.journal.clear()
    [narrowed] = night(deps, plan_uuids=[laid.plan]).values()
    assert (narrowed.phase, counts(narrowed)["plans"]) == (Phase.FINISHED, 1)
    assert set(held(engine)) == {bad}
    assert lms.journal.entries == []
    data = Data(engine, seed=2)
    add_plan(data, laid, title="Another")
    ready(data, lms)
    [full] = night(deps).values()
    assert full.phase == Phase.FINISHED
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


# Plans that wait for their renewals


def test_a_waiting_plans_learners_are_downgraded_one_by_one_and_then_unlinked(
    lms: Simulator, engine: Engine, make_test_deps: Make
) -> None:
    data = Data(engine)
    agreement = data.agreement()
    waiting = data.plan(agreement, expires=data.now - 100 * DAY)
    current = data.plan(agreement)
    data.renewal(waiting, None, effective=data.now + 7 * DAY)
    due = sorted(data.license(waiting) for _ in range(3))
    carried_on = data.license(waiting, renewed_to=data.license(current))
    known = data.license(waiting, "known@x.example")
    data.license(current, "KNOWN@x.example", status="revoked")
    done_before = data.license(waiting)
    data.event(done_before, DOWNGRADED_EVENT, created=data.now - DAY)
    data.license(waiting, status="revoked")
    ready(data, lms)
    before = rows(engine, "subscriptionplan")
    deps = make_test_deps(**batches_of(2), **unlinking(agreement.enterprise_customer_uuid))
    [run] = night(deps).values()
    assert run.phase == Phase.FINISHED
    assert counts(run) == {"plans": 0, "downgraded": 3, "held": 0, "unlinked": 4, "protected": 1}
    assert sorted(times_sent(lms, "downgrade")) == sorted(texts(due))
    assert Counter(emails(engine, *due, done_before)) == times_sent(lms, "unlink")
    assert events(engine, DOWNGRADED_EVENT) == Counter([*due, done_before])
    assert events(engine, UNLINKED_EVENT) == Counter([*due, done_before])
    assert rows(engine, "subscriptionplan") == before
    assert rows(engine, "historicalsubscriptionplan") == []
    assert rows(engine, Downgrade) == []
    assert {carried_on, known}.isdisjoint(events(engine, DOWNGRADED_EVENT))
    assert_order(lms.journal)
    lms.journal.clear()
    assert night(deps) == {}
    assert lms.journal.entries == []


@ON_SQLITE
def test_a_waiting_plans_learners_stay_untouched_where_unlinking_is_off(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms)
    deps = make_test_deps()
    data = Data(deps.database.engine, seed=2)
    data.renewal(laid.plan, None)
    ready(data, lms)
    assert night(deps) == {}
    assert lms.journal.entries == []


@ON_SQLITE
def test_a_plan_that_waits_no_more_has_only_its_other_licenses_sent(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(**unlinking(laid.enterprise))
    engine = deps.database.engine
    data = Data(engine, seed=2)
    data.renewal(laid.plan, None)
    current = add_plan(data, laid, expires=data.now + DAY, title="Current")
    carried_on = data.license(laid.plan, "x@x.example", renewed_to=data.license(current, "x@x.example"))
    ready(data, lms)
    night(deps)
    with engine.begin() as connection:  # the renewal is called off
        connection.execute(table(engine, "subscriptionplanrenewal").delete())
    lms.journal.clear()
    [run] = night(deps).values()
    assert (sent(lms, "downgrade"), sent(lms, "unlink")) == ([[str(carried_on)]], [])
    assert counts(run) == {"plans": 1, "downgraded": 1, "held": 0, "unlinked": 0, "protected": 0}
    assert processed(engine) == {laid.plan}
    assert events(engine, DOWNGRADED_EVENT) == Counter(laid.licenses)


# A rehearsal


def lay_everything(data: Data) -> tuple[UUID, list[UUID]]:
    """An enterprise with work of every kind; give its id and its due plans."""
    agreement = data.agreement()
    old = data.plan(agreement, expires=data.now - 120 * DAY)
    recent = data.plan(agreement, expires=data.now - 30 * DAY)
    done = data.plan(agreement, expires=data.now - 130 * DAY, expiration_processed=True)
    waiting, current = data.plan(agreement, expires=data.now - 110 * DAY), data.plan(agreement)
    data.renewal(waiting, None)
    for plan, learners in ((old, 5), (recent, 4), (done, 3), (waiting, 2), (current, 2)):
        for _ in range(learners):
            data.license(plan)
    data.license(old, "Other.Case@x.example")
    data.license(waiting, "also@x.example")
    data.license(current, "other.case@x.example")
    data.license(current, "also@x.example")
    data.license(old, None, status="assigned")
    return agreement.enterprise_customer_uuid, [old, recent]


def test_a_rehearsal_sends_and_writes_nothing_and_counts_as_the_real_run_does(
    lms: Simulator, engine: Engine, make_test_deps: Make
) -> None:
    data = Data(engine)
    enterprise, plans = lay_everything(data)
    ready(data, lms)
    deps = make_test_deps(**batches_of(2), **unlinking(enterprise))
    before = snapshot(engine)
    [rehearsal] = night(deps, dry_run=True).values()
    after = snapshot(engine)
    assert lms.journal.entries == []
    assert [name for name in after if after[name] != before[name]] == ["license_expiry_run"]
    assert (rehearsal.phase, rehearsal.dry_run, rehearsal.live) == (Phase.FINISHED, True, None)
    [real] = night(deps).values()
    expected = {"plans": 2, "downgraded": 5 + 4 + 2 + 1 + 1, "held": 0, "unlinked": 5 + 3 + 2, "protected": 2}
    assert counts(rehearsal) == counts(real) == expected
    assert processed(engine) > set(plans)


@ON_SQLITE
def test_a_rehearsal_leaves_the_held_list_and_confirmations_alone(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=4)
    break_enrollment(lms, laid, laid.licenses[0])
    deps = make_test_deps(**batches_of(4), **unlinking(laid.enterprise))
    engine = deps.database.engine
    night(deps)
    change(engine, "license", laid.licenses[0], status="revoked")
    age_holds(engine)
    before = snapshot(engine)
    [rehearsal] = night(deps, dry_run=True).values()
    after = snapshot(engine)
    assert counts(rehearsal)["plans"] == 1
    assert [name for name in after if after[name] != before[name]] == ["license_expiry_run"]


@ON_SQLITE
def test_a_forced_rehearsal_counts_as_the_real_run_does(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=3, expiration_processed=True)
    deps = make_test_deps(**batches_of(2), **unlinking(laid.enterprise))
    [rehearsal] = night(deps, laid.enterprise, dry_run=True, force=True, reason="a test").values()
    [real] = night(deps, laid.enterprise, force=True, reason="a test").values()
    assert counts(rehearsal) == counts(real)


# Asked for by hand


@ON_SQLITE
def test_force_sends_processed_plans_and_held_licenses_again(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=4, days=30)
    deps = make_test_deps(**batches_of(2), **unlinking(laid.enterprise))
    engine = deps.database.engine
    break_enrollment(lms, laid, laid.licenses[3])
    night(deps)
    assert set(held(engine)) == {laid.licenses[3]}
    mend_enrollment(lms, laid.licenses[3])
    lms.journal.clear()
    [run] = night(deps, plan_uuids=[laid.plan], force=True, reason="restored from backup").values()
    assert (run.phase, run.force, run.reason) == (Phase.FINISHED, True, "restored from backup")
    assert counts(run) == {"plans": 1, "downgraded": 4, "held": 0, "unlinked": 0, "protected": 0}
    assert times_sent(lms, "downgrade") == Counter(texts(laid.licenses))
    assert (held(engine), rows(engine, Downgrade)) == ({}, [])
    before = rows(engine, "subscriptionplan"), rows(engine, "historicalsubscriptionplan")
    lms.journal.clear()
    [run] = night(deps, plan_uuids=[laid.plan], force=True, reason="once more").values()
    assert counts(run)["downgraded"] == 4
    assert times_sent(lms, "downgrade") == Counter(texts(laid.licenses))
    # It was marked already: the plan is not marked a second time.
    assert (rows(engine, "subscriptionplan"), rows(engine, "historicalsubscriptionplan")) == before


@ON_SQLITE
def test_a_forced_run_that_was_cut_short_sends_nothing_twice(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=8, expiration_processed=True)
    deps = make_test_deps(**batches_of(2))
    run_id = open_one(deps, laid.enterprise, force=True, reason="a test")
    lms.faults(Fault(kind="downgrade", first=3, status=503))
    assert attempt(deps, laid.enterprise, run_id, DOWNGRADE, retries=0).retry
    lms.faults()
    assert finish(deps, laid.enterprise, run_id).licenses_downgraded == 8
    assert times_sent(lms, "downgrade", 200) == Counter(texts(laid.licenses))


@dataclass(frozen=True)
class Narrowing:
    asked: dict[str, int | list[int]]
    done: set[int]
    why: str


# Four plans, which expired 91, 92, 93 and 94 days ago.
NARROWINGS = [
    Narrowing({}, {91, 92, 93, 94}, "nothing is narrowed"),
    Narrowing({"plan_uuids": [92, 94]}, {92, 94}, "plans by name"),
    Narrowing({"expired_after": 92}, {91, 92}, "at that very moment, and later"),
    Narrowing({"expired_before": 93}, {93, 94}, "at that very moment, and earlier"),
    Narrowing({"expired_after": 93, "expired_before": 92}, {92, 93}, "a window with both ends"),
    Narrowing({"plan_uuids": [91, 94], "expired_after": 93}, {91}, "both must fit"),
]


@ON_SQLITE
@pytest.mark.parametrize("case", NARROWINGS, ids=lambda case: case.why)
def test_plans_and_windows_narrow_both_steps(case: Narrowing, lms: Simulator, make_test_deps: Make) -> None:
    assert lms.lms.engine is not None
    data = Data(lms.lms.engine)
    agreement = data.agreement()
    expires = {days: data.now - days * DAY for days in (91, 92, 93, 94)}
    plans = {days: data.plan(agreement, expires=expires[days]) for days in expires}
    licenses = {days: data.license(plans[days]) for days in expires}
    ready(data, lms)
    deps = make_test_deps(**unlinking(agreement.enterprise_customer_uuid))
    asked = {
        name: [plans[day] for day in days] if isinstance(days, list) else expires[days].isoformat()
        for name, days in case.asked.items()
    }
    [run] = night(deps, **asked).values()
    done = {licenses[days] for days in case.done}
    assert processed(lms.lms.engine) == {plans[days] for days in case.done}
    assert set(times_sent(lms, "downgrade")) == set(texts(done))
    assert set(events(lms.lms.engine, UNLINKED_EVENT)) == done
    assert counts(run)["unlinked"] == counts(run)["downgraded"] == len(done)


# Learners


@ON_SQLITE
def test_protection_is_asked_again_when_a_page_is_not_fresh_any_more(
    lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.runs.batches.FRESH_SECONDS", 0)
    monkeypatch.setattr("worker.runs.batches.FRESH_READINGS", 0)
    laid = lay(lms, licenses=4)
    deps = make_test_deps(**batches_of(2), **unlinking(laid.enterprise))
    engine = deps.database.engine
    run_id = reach(deps, laid, "unlink")
    saved = laid.licenses[2]
    lms.faults(Fault(kind="unlink", delay=60, nth=1))
    with in_background(lms, lambda: finish(deps, laid.enterprise, run_id)) as running:
        meet(lms, running, lambda: lms.calls("unlink"))
        data = Data(engine, seed=2)
        [address] = emails(engine, saved)
        data.license(add_plan(data, laid, expires=data.now + DAY, title="New"), address.upper())
        data.flush()
        lms.release()
        run = running.result()
    assert counts(run) | {"plans": 1} == {"plans": 1, "downgraded": 4, "held": 0, "unlinked": 3, "protected": 1}
    assert address not in times_sent(lms, "unlink")
    assert saved not in events(engine, UNLINKED_EVENT)


@ON_SQLITE
def test_nobody_is_unlinked_who_came_due_after_the_downgrades(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(**unlinking(laid.enterprise))
    engine = deps.database.engine
    data = Data(engine, seed=2)
    data.renewal(laid.plan, None)
    current = add_plan(data, laid, expires=data.now + DAY, title="Current")
    known = data.license(laid.plan, "known@x.example")
    data.license(current, "known@x.example")
    ready(data, lms)
    run_id = reach(deps, laid, "unlink")
    late = Data(engine, seed=3)
    assigned = late.license(laid.plan, "late@x.example", status="assigned")
    ready(late, lms)
    change(engine, "subscriptionplan", current, is_active=False)  # which protected one of them
    run = finish(deps, laid.enterprise, run_id)
    assert counts(run) == {"plans": 0, "downgraded": 2, "held": 0, "unlinked": 2, "protected": 0}
    assert events(engine, UNLINKED_EVENT) == Counter(laid.licenses)
    lms.journal.clear()
    [run] = night(deps).values()
    assert times_sent(lms, "downgrade") == Counter(texts([known, assigned]))
    assert events(engine, UNLINKED_EVENT) == Counter([*laid.licenses, known, assigned])


@ON_SQLITE
def test_an_address_is_sent_once_in_a_call_and_as_the_license_has_it(lms: Simulator, make_test_deps: Make) -> None:
    assert lms.lms.engine is not None
    data = Data(lms.lms.engine)
    agreement = data.agreement()
    old, older = (data.plan(agreement, expires=data.now - days * DAY) for days in (100, 200))
    as_they_are = ["Twice@X.example", "twice@x.example", " Spaced@x.example ", "Ünder@x.example"]
    licenses = [data.license(old, address) for address in as_they_are[:3]]
    licenses += [data.license(older, as_they_are[0]), data.license(older, as_they_are[2])]
    ready(data, lms)
    [run] = night(make_test_deps(**unlinking(agreement.enterprise_customer_uuid))).values()
    assert sorted(sent(lms, "unlink")[0]) == sorted(as_they_are[:3])
    assert len(sent(lms, "unlink")) == 1
    assert events(lms.lms.engine, UNLINKED_EVENT) == Counter(licenses)
    assert counts(run)["unlinked"] == 5


@ON_SQLITE
def test_a_learner_stays_linked_while_another_license_of_theirs_is_held(lms: Simulator, make_test_deps: Make) -> None:
    assert lms.lms.engine is not None
    data = Data(lms.lms.engine)
    agreement = data.agreement()
    old, older = (data.plan(agreement, expires=data.now - days * DAY) for days in (100, 200))
    bad = data.license(old, "Bob@x.example", lms_user_id=7)
    by_address, by_user = data.license(older, "bob@X.example"), data.license(older, "robert@x.example", lms_user_id=7)
    free = data.license(older)
    ready(data, lms)
    break_enrollment(lms, Laid(agreement.enterprise_customer_uuid, old, []), bad)
    [run] = night(make_test_deps(**unlinking(agreement.enterprise_customer_uuid))).values()
    assert counts(run) == {"plans": 1, "downgraded": 3, "held": 1, "unlinked": 1, "protected": 0}
    assert set(events(lms.lms.engine, UNLINKED_EVENT)) == {free}
    assert {by_address, by_user}.isdisjoint(events(lms.lms.engine, UNLINKED_EVENT))


# What an attempt leaves behind


@ON_SQLITE
@pytest.mark.parametrize("answer", [200, 503])  # to the call that is in flight; the second would be tried again
def test_a_worker_that_lost_its_run_in_the_middle_stops_sending(
    answer: int, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=10)
    deps = make_test_deps(**batches_of(2), **unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    lms.faults(Fault(kind="downgrade", nth=2, delay=60, status=answer, after_work=answer == 200))
    zombies = partial(attempt, deps, laid.enterprise, run_id, DOWNGRADE, owner="zombie")
    with in_background(lms, zombies) as running:
        meet(lms, running, lambda: len(lms.calls("downgrade")) == 2)
        take_over(deps, run_id)
        before = snapshot(deps.database.engine)
        lms.release()
        outcome = running.result()
    assert outcome.run is None
    assert not outcome.more
    assert "was taken over from us" in (outcome.skipped or "")
    assert snapshot(deps.database.engine) == before
    assert len(lms.calls("downgrade")) == 2
    assert sent(lms, "unlink") == []
    run = finish(deps, laid.enterprise, run_id)
    assert counts(run) == {"plans": 1, "downgraded": 10, "held": 0, "unlinked": 10, "protected": 0}
    assert sorted(times_sent(lms, "downgrade").values()) == [1] * 8 + [2] * 2  # what was in flight, again
    assert_order(lms.journal)


@ON_SQLITE
def test_the_second_of_two_deliveries_ends_quietly_and_says_who_has_the_run(
    lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(**unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    lms.faults(Fault(kind="downgrade", delay=60))
    firsts = partial(attempt, deps, laid.enterprise, run_id, DOWNGRADE, owner="the first")
    with in_background(lms, firsts) as running:
        meet(lms, running, lambda: lms.calls("downgrade"))
        for step in STEPS:
            outcome = attempt(deps, laid.enterprise, run_id, step, owner="the second")
            assert outcome.run is None
            assert re.search(r"the first \(\w+\) has it until", outcome.skipped or "")
        lms.release()
        done = running.result()
    assert done.run is not None
    assert done.run.phase == Phase.DOWNGRADED
    assert len(lms.calls("downgrade")) == 1
    assert sent(lms, "unlink") == []


@ON_SQLITE
@pytest.mark.parametrize("kind", KINDS)
def test_an_lms_that_stays_away_fails_the_run_and_nobody_is_unlinked(
    kind: Kind, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(**unlinking(laid.enterprise))
    run_id = reach(deps, laid, kind)
    lms.faults(Fault(kind=kind, status=504))
    retry = attempt(deps, laid.enterprise, run_id, step_of(kind), retries=0).retry
    assert retry is not None
    assert retry.error.reason == "http_504"
    waiting = run_of(deps.database, run_id)
    assert (waiting.live, waiting.owner, waiting.retries) == (laid.enterprise, None, 1)
    assert waiting.lease_until is not None
    assert [(row["step"], row["reason"]) for row in rows(deps.database.engine, Retry)] == [(kind, "http_504")]
    called = [row["calls"] for row in rows(deps.database.engine, LmsCall) if row["outcome"] == "http_504"]
    assert sum(called) == len(lms.calls(kind)), "the calls that came to nothing are counted too"
    left = (waiting.lease_until - deps.database.now()).total_seconds()
    assert left == pytest.approx(retry.seconds + claims_runs.QUEUED_SECONDS, abs=30)
    with pytest.raises(Unavailable, match="http_504"):
        attempt(deps, laid.enterprise, run_id, step_of(kind), retries=deps.settings.TASK_MAX_RETRIES)
    run = run_of(deps.database, run_id)
    assert (run.phase, run.live, run.error) == (Phase.FAILED, None, "the LMS answered 504: look at the LMS [http_504]")
    outcome = attempt(deps, laid.enterprise, run_id, UNLINK)
    assert outcome.skipped == f"run {run_id} is failed"
    assert times_sent(lms, "unlink", 200) == Counter()
    assert events(deps.database.engine, UNLINKED_EVENT) == Counter()
    lms.faults()
    [again] = night(deps).values()  # the next night makes it good
    assert (again.phase, counts(again)["unlinked"]) == (Phase.FINISHED, 2)


@ON_SQLITE
def test_a_plan_that_is_done_is_marked_although_another_one_failed(lms: Simulator, make_test_deps: Make) -> None:
    assert lms.lms.engine is not None
    data = Data(lms.lms.engine)
    agreement = data.agreement()
    good, bad = (data.plan(agreement, expires=data.now - days * DAY) for days in (200, 100))
    data.license(good)
    failing = data.license(bad)
    ready(data, lms)
    lms.faults(Fault(kind="downgrade", license=str(failing), status=503))
    [run] = night(make_test_deps(**unlinking(agreement.enterprise_customer_uuid))).values()
    assert (run.phase, counts(run)["plans"], counts(run)["unlinked"]) == (Phase.FAILED, 1, 0)
    assert processed(lms.lms.engine) == {good}
    assert sent(lms, "unlink") == []


@ON_SQLITE
def test_a_confirmation_from_before_the_plan_was_extended_counts_no_more(lms: Simulator, make_test_deps: Make) -> None:
    laid, _ = lay(lms, licenses=2), lay(lms, days=300, seed=2)
    again, bad = laid.licenses
    break_enrollment(lms, laid, bad)
    deps = make_test_deps()
    engine = deps.database.engine
    night(deps)
    assert [row["license_uuid"] for row in rows(engine, Downgrade)] == [again]
    # Since then: the plan was extended, the learner went on, and the plan has expired for good.
    now = deps.database.now()
    with engine.begin() as connection:
        connection.execute(update(Downgrade).values(confirmed_at=now - 10 * DAY))
    change(engine, "subscriptionplan", laid.plan, expiration_date=now - 5 * DAY)
    change(engine, "license", bad, status="revoked")
    lms.journal.clear()
    lms.faults(Fault(kind="downgrade", status=503))
    [failed] = night(deps, laid.enterprise).values()
    assert (failed.phase, counts(failed)["plans"]) == (Phase.FAILED, 0)
    assert laid.plan not in processed(engine)
    lms.faults()
    [run] = night(deps, laid.enterprise).values()
    assert sent(lms, "downgrade", 200) == [[str(again)]]
    assert counts(run)["plans"] == 1
    assert laid.plan in processed(engine)


@dataclass(frozen=True)
class Refusal:
    kind: Literal["token", "downgrade", "unlink"]
    status: int
    remedy: str
    calls: int = 1


REFUSALS = [
    Refusal("downgrade", 403, "give license-manager's service user the enterprise operator role"),
    Refusal("unlink", 403, "give license-manager's service user the enterprise operator role"),
    Refusal("unlink", 404, "it does not know the enterprise, or the enterprise is not active there"),
    Refusal("downgrade", 404, "LMS_URL is wrong"),
    Refusal("downgrade", 302, "check LMS_URL"),  # a redirect is never taken for success
    Refusal("downgrade", 413, "lower LICENSE_EXPIRATION_BATCH_SIZE"),
    Refusal("downgrade", 401, "BACKEND_SERVICE_EDX_OAUTH2_SECRET", calls=2),  # with one new token
    Refusal("token", 401, "BACKEND_SERVICE_EDX_OAUTH2_SECRET"),
    Refusal("token", 403, "BACKEND_SERVICE_EDX_OAUTH2_SECRET"),
]


@ON_SQLITE
@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: f"{case.kind}-{case.status}")
def test_a_refusal_for_good_fails_the_run_at_once_and_names_the_remedy(
    case: Refusal, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=4)
    deps = make_test_deps(**batches_of(2), **unlinking(laid.enterprise))
    lms.faults(Fault(kind=case.kind, status=case.status, headers={"Location": "/login"}))
    run_id = open_one(deps, laid.enterprise)
    if case.kind == "unlink":
        attempt(deps, laid.enterprise, run_id, DOWNGRADE)
    with pytest.raises(RunRefused):
        attempt(deps, laid.enterprise, run_id, UNLINK if case.kind == "unlink" else DOWNGRADE)
    run = run_of(deps.database, run_id)
    assert (run.phase, run.live, run.retries) == (Phase.FAILED, None, 0)
    assert case.remedy in (run.error or "")
    assert len(lms.calls(case.kind)) == case.calls
    assert events(deps.database.engine, UNLINKED_EVENT) == Counter()
    assert held(deps.database.engine) == {}
    if case.kind != "unlink":
        assert sent(lms, "unlink") == []
        assert processed(deps.database.engine) == set()


class BrokenClient:
    def downgrade(self, *_: Any) -> None:
        raise ZeroDivisionError("secret@x.example")

    unlink = downgrade


@ON_SQLITE
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_of_our_own_fails_the_run_and_is_named_without_its_words(
    kind: Kind, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(**unlinking(laid.enterprise))
    run_id = reach(deps, laid, kind)
    with pytest.raises(ZeroDivisionError):
        attempt(replace(deps, lms=BrokenClient()), laid.enterprise, run_id, step_of(kind))  # type: ignore[arg-type]
    run = run_of(deps.database, run_id)
    assert (run.phase, run.live) == (Phase.FAILED, None)
    assert run.error == "an error of our own, ZeroDivisionError: the worker's log has its traceback"
    assert attempt(deps, laid.enterprise, run_id, UNLINK).skipped == f"run {run_id} is failed"


@ON_SQLITE
def test_a_database_that_is_away_is_for_the_caller_to_try_again(
    lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    laid = lay(lms, licenses=2)
    run_id = open_one(make_test_deps(), laid.enterprise)
    monkeypatch.setattr(database_module, "TRIES", 1)
    away = make_test_deps(DATABASE_URL="mysql://root@127.0.0.1:9/nothing")
    with pytest.raises(Unavailable, match="DATABASE_URL"):
        attempt(away, laid.enterprise, run_id, DOWNGRADE)
    retry = attempt(away, laid.enterprise, run_id, DOWNGRADE, retries=0).retry
    assert retry is not None
    assert retry.error.reason == "database"
    assert "step could not begin" in caplog.text
    assert str(run_id) in caplog.text
    assert finish(make_test_deps(), laid.enterprise, run_id).phase == Phase.FINISHED


# Time slices


@ON_SQLITE
@pytest.mark.parametrize("kind", KINDS)
def test_a_time_slice_that_is_over_loses_nothing(
    kind: Kind, lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = lay(lms, licenses=4)
    deps = make_test_deps(**batches_of(2), **unlinking(laid.enterprise))
    run_id = reach(deps, laid, kind)
    do, count = steps.WORK[kind]
    before = len(lms.calls(kind))
    with monkeypatch.context() as patch:
        over = (lambda deps, claim, scope, _: do(deps, claim, scope, time.monotonic() - 1), count)
        patch.setitem(steps.WORK, kind, over)
        outcome = attempt(deps, laid.enterprise, run_id, step_of(kind))
    assert (outcome.more, outcome.skipped) == (True, None)
    assert outcome.run is not None
    assert (outcome.run.owner, outcome.run.live, outcome.run.retries) == (None, laid.enterprise, 0)
    assert len(lms.calls(kind)) == before
    run = finish(deps, laid.enterprise, run_id)
    assert counts(run) == {"plans": 1, "downgraded": 4, "held": 0, "unlinked": 4, "protected": 0}


@ON_SQLITE
@pytest.mark.parametrize("kind", KINDS)
def test_a_time_slice_that_ends_in_the_middle_is_gone_on_from(
    kind: Kind, lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = lay(lms, licenses=12)
    bad = laid.licenses[0]
    if kind == "downgrade":
        break_enrollment(lms, laid, bad)  # its batch is being split when the time is over
    deps = make_test_deps(**batches_of(3), **unlinking(laid.enterprise))
    run_id = reach(deps, laid, kind)
    seconds = count()  # each look at the clock takes one
    slices, more = 0, True
    with monkeypatch.context() as patch:
        for module in ("batches", "flight"):
            patch.setattr(f"worker.runs.{module}.time", SimpleNamespace(monotonic=lambda: next(seconds)))
        while more:
            slices += 1
            held_claim = claim(deps, laid, run_id, step_of(kind))
            more = not steps.do_step(deps, held_claim, next(seconds) + 8)
    assert slices > 1
    run = finish(deps, laid.enterprise, run_id)
    done = 11 if kind == "downgrade" else 12
    assert (run.phase, counts(run)["held"]) == (Phase.FINISHED, 12 - done)
    assert (counts(run)["downgraded"], counts(run)["unlinked"]) == (done, done)
    assert times_sent(lms, kind, 200).total() == done
    assert set(times_sent(lms, kind, 200).values()) == {1}


# Enterprises


@ON_SQLITE
def test_one_enterprise_that_fails_stops_no_other(lms: Simulator, make_test_deps: Make) -> None:
    laid = sorted((lay(lms, licenses=2, seed=seed) for seed in (1, 2, 3)), key=lambda each: each.enterprise)
    deps = make_test_deps(**unlinking(*(each.enterprise for each in laid)))
    lms.state.inactive.add(laid[0].enterprise)  # 404
    lms.faults(Fault(kind="downgrade", enterprise=str(laid[1].enterprise), status=403))
    runs = night(deps)
    assert [runs[each.enterprise].phase for each in laid] == [Phase.FAILED, Phase.FAILED, Phase.FINISHED]
    assert set(events(deps.database.engine, UNLINKED_EVENT)) == set(laid[2].licenses)
    assert_order(lms.journal)


def test_the_order_is_kept_whoever_calls_what_and_when(lms: Simulator, make_test_deps: Make) -> None:
    laid = [lay(lms, licenses=6, seed=seed) for seed in (1, 2)]
    deps = make_test_deps(**batches_of(2, parallel=2), **unlinking(*(each.enterprise for each in laid)))
    lms.lms.latency = 0.01
    begun = start(deps)
    ended = {Phase.FINISHED, Phase.FAILED}

    def impatient(number: int) -> None:  # four workers for each run, two of which want to unlink all the time
        each, step = begun[number % 2], list(STEPS)[number // 2 % 2]
        while run_of(deps.database, each.run_id).phase not in ended:
            attempt(deps, each.enterprise, each.run_id, step, owner=f"w{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(impatient, range(8)))
    assert {run_of(deps.database, each.run_id).phase for each in begun} == {Phase.FINISHED}
    assert_order(lms.journal)
    for kind in KINDS:
        assert times_sent(lms, kind).total() == 12
        assert set(times_sent(lms, kind).values()) == {1}


# The assertion itself


@pytest.mark.parametrize(
    ("calls", "kept"),
    [
        ("D d U u", True),
        ("D D d d U U u u", True),
        ("U u", True),  # nothing was to be downgraded
        ("D U d u", False),  # in flight
        ("U D u d", False),
        ("U u D d", False),
        ("D d D U d u", False),
        ("D d U u D", False),  # and never ended
    ],
)
def test_assert_order_sees_what_is_out_of_order(calls: str, kept: bool) -> None:
    journal, begun = Journal(), {"D": list[Any](), "U": list[Any]()}
    for call in calls.split():
        if call.isupper():
            begun[call].append(journal.begin("downgrade" if call == "D" else "unlink", "/", enterprises=["one"]))
        else:
            journal.finish(begun[call.upper()].pop(0), 200, None)
    if kept:
        assert_order(journal)
    else:
        with pytest.raises(AssertionError, match="one"):
            assert_order(journal)
