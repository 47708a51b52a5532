"""What an attempt at a step leaves behind, whatever happens to it."""

import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from types import SimpleNamespace
from typing import Any, Literal
from uuid import UUID

import pytest
from sqlalchemy import update
from support.runs import (
    ON_SQLITE,
    Laid,
    Make,
    assert_order,
    attempt,
    batches_of,
    counts,
    emails,
    events,
    finish,
    held,
    lay,
    let_waits_pass,
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
    times_sent,
    unlinking,
)
from support.steps import (
    KINDS,
    Kind,
    break_enrollment,
    change,
    in_background,
    meet,
    reach,
)

from simulator.data.rows import DAY, Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db import transactions as database_module
from worker.db.ledger_tables import Downgrade, LmsCall, Retry
from worker.db.license_manager_tables import UNLINKED_EVENT
from worker.deps import Deps
from worker.errors import RunRefused, Unavailable
from worker.ledger import claims
from worker.ledger.claims import Claim
from worker.ledger.order import DOWNGRADE, STEPS, UNLINK, Phase, Step
from worker.ledger.stalled import QUEUED_SECONDS
from worker.lms.patience import Patience
from worker.runs import steps


def claim(deps: Deps, laid: Laid, run_id: UUID, step: Step) -> Claim:
    return claims.claim(deps.database, run_id, laid.enterprise, step, "a test", deps.settings.LEASE_SECONDS)


# The worker's shutdown


@ON_SQLITE
@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_that_is_stopped_finishes_what_is_in_flight_and_hands_the_run_back(
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
def test_a_worker_that_is_stopped_does_not_sit_a_wait_out(
    fault: dict[str, Any],
    lms: Simulator,
    make_test_deps: Make,
) -> None:
    laid = lay(lms, licenses=4)
    deps = make_test_deps(Patience(first_wait=300, in_place=600), **batches_of(2))
    run_id = open_one(deps, laid.enterprise)
    lms.faults(Fault(kind="downgrade", times=1, **fault))
    with in_background(lms, lambda: attempt(deps, laid.enterprise, run_id, DOWNGRADE)) as running:
        meet(lms, running, lambda: [entry for entry in lms.calls("downgrade") if entry.status])
        deps.shutdown.begin()
        assert running.result(timeout=30).more
    assert len(lms.calls("downgrade")) == 1


# What an attempt leaves behind


@ON_SQLITE
@pytest.mark.parametrize("answer", [200, 503])  # to the call that is in flight; the second would be tried again
def test_a_worker_that_lost_its_run_in_the_middle_stops_sending(
    answer: int, lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "CHECKED_SECONDS", 0.0)  # for so long a worker relies on its last check
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
    assert "was taken over by another worker" in (outcome.skipped or "")
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
def test_an_lms_that_stays_unreachable_fails_the_run_and_nobody_is_unlinked(
    kind: Kind, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(TASK_MAX_RETRIES=1, **unlinking(laid.enterprise))
    run_id = reach(deps, laid, kind)
    lms.faults(Fault(kind=kind, enterprise=str(laid.enterprise), status=504))
    retry = attempt(deps, laid.enterprise, run_id, step_of(kind)).retry
    assert retry is not None
    assert retry.error.reason == "http_504"
    waiting = run_of(deps.database, run_id)
    assert (waiting.live, waiting.owner, waiting.retries) == (laid.enterprise, None, 1)
    assert waiting.lease_until is not None
    assert [(row["step"], row["reason"]) for row in rows(deps.database.engine, Retry)] == [(kind, "http_504")]
    called = [row["calls"] for row in rows(deps.database.engine, LmsCall) if row["outcome"] == "http_504"]
    assert sum(called) == len(lms.calls(kind)), "the calls that came to nothing are counted too"
    left = (waiting.lease_until - deps.database.now()).total_seconds()
    assert left == pytest.approx(retry.seconds + QUEUED_SECONDS, abs=30)
    let_waits_pass(deps.database)
    with pytest.raises(Unavailable, match="http_504"):
        attempt(deps, laid.enterprise, run_id, step_of(kind))
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
    calls: int = 1  # two where a call that concerns nobody is asked what it means


REFUSALS = [
    Refusal("downgrade", 403, "give license-manager's service user the enterprise operator role", calls=2),
    Refusal("unlink", 403, "give license-manager's service user the enterprise operator role", calls=2),
    Refusal("unlink", 404, "it does not know the enterprise, or the enterprise is not active there", calls=2),
    Refusal("unlink", 404, '"is staff"', calls=2),
    Refusal("downgrade", 404, "LMS_URL is wrong", calls=2),
    Refusal("downgrade", 302, "check LMS_URL"),  # a redirect is never taken for success
    Refusal("downgrade", 413, "raise the limit", calls=2),
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


@ON_SQLITE
def test_a_firewall_that_dislikes_one_address_holds_that_license_alone(lms: Simulator, make_test_deps: Make) -> None:
    """It failed the run, night after night, and all licenses after that batch waited for ever."""
    laid = lay(lms, licenses=20)
    deps = make_test_deps(**unlinking(laid.enterprise))
    engine = deps.database.engine
    [address] = emails(engine, laid.licenses[7])
    lms.faults(
        Fault(containing=address, status=403, body="<html>Blocked</html>"),
        Fault(kind="downgrade", containing=str(laid.licenses[9]), status=403, body="<html>Blocked</html>"),
    )
    [run] = night(deps).values()
    assert counts(run) == {"plans": 0, "downgraded": 19, "held": 2, "unlinked": 18, "protected": 0}
    assert held(engine) == dict.fromkeys((laid.licenses[7], laid.licenses[9]), "not_the_lms")


@ON_SQLITE
def test_a_body_that_is_too_large_goes_through_in_parts(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=20)
    deps = make_test_deps(**unlinking(laid.enterprise))
    lms.faults(Fault(longer_than=400, status=413))
    [run] = night(deps).values()
    assert counts(run) == {"plans": 1, "downgraded": 20, "held": 0, "unlinked": 20, "protected": 0}


class BrokenClient:
    def downgrade(self, *_: Any) -> None:
        raise ZeroDivisionError("secret@x.example")

    unlink = downgrade
    named = nullcontext


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
    assert run.error == "internal error, ZeroDivisionError: the worker's log has its traceback"
    assert attempt(deps, laid.enterprise, run_id, UNLINK).skipped == f"run {run_id} is failed"


@ON_SQLITE
def test_a_database_that_is_unreachable_is_for_the_caller_to_try_again(
    lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    laid = lay(lms, licenses=2)
    run_id = open_one(make_test_deps(), laid.enterprise)
    monkeypatch.setattr(database_module, "TRIES", 1)
    away = make_test_deps(DATABASE_URL="mysql://root@127.0.0.1:9/nothing")
    retry = attempt(away, laid.enterprise, run_id, DOWNGRADE).retry
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
        patch.setattr("worker.runs.flight.time", SimpleNamespace(monotonic=lambda: next(seconds)))
        while more:
            slices += 1
            held_claim = claim(deps, laid, run_id, step_of(kind))
            more = not steps.do_step(deps, held_claim, next(seconds) + 4)
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
    lms.faults(Fault(kind="downgrade", enterprise=str(laid[1].enterprise), status=401))
    runs = night(deps)
    assert [runs[each.enterprise].phase for each in laid] == [Phase.FAILED, Phase.FAILED, Phase.FINISHED]
    assert set(events(deps.database.engine, UNLINKED_EVENT)) == set(laid[2].licenses)
    assert_order(lms.journal)


def test_the_order_is_kept_whoever_calls_what_and_when(lms: Simulator, make_test_deps: Make) -> None:
    laid = [lay(lms, licenses=6, seed=seed) for seed in (1, 2)]
    retries = {"TASK_MAX_RETRIES": 5}  # a busy machine lets a selection grow old
    deps = make_test_deps(**retries, **batches_of(2, parallel=2), **unlinking(*(each.enterprise for each in laid)))
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
