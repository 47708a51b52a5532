"""The two steps against a simulated LMS: what is sent, what is recorded, and what an attempt leaves behind."""

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine
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
    texts,
    times_sent,
    unlinking,
)
from support.steps import KINDS, Kind, add_plan, break_enrollment, change, mend_enrollment, reach

from simulator.data.rows import DAY, Data
from simulator.data.schema import table
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db.ledger_tables import Downgrade
from worker.db.license_manager_tables import DOWNGRADED_EVENT, UNLINKED_EVENT
from worker.ledger.order import DOWNGRADE, STEPS, Phase

HOUR = timedelta(hours=1)


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
    deps = make_test_deps(TASK_MAX_RETRIES=5, **batches_of(2, parallel), **unlinking(laid.enterprise))
    run_id = reach(deps, laid, kind)
    step = step_of(kind)
    lms.faults(Fault(kind=kind, first=3, status=503))
    assert attempt(deps, laid.enterprise, run_id, step).retry
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
    deps = make_test_deps(TASK_MAX_RETRIES=5, **batches_of(2), **unlinking(laid.enterprise))
    lms.faults(*(Fault(kind=kind, first=2, last=4, drop="after") for kind in KINDS))
    run_id = open_one(deps, laid.enterprise)
    for step in STEPS:
        assert attempt(deps, laid.enterprise, run_id, step).retry
        let_waits_pass(deps.database)
        attempt(deps, laid.enterprise, run_id, step)
    run = run_of(deps.database, run_id)
    assert counts(run) == {"plans": 1, "downgraded": 6, "held": 0, "unlinked": 6, "protected": 0}
    assert set(events(deps.database.engine, UNLINKED_EVENT).values()) == {1}
    for kind in KINDS:
        assert [len(names) for names in sent(lms, kind, 200)] == [2, 2, 2]
        assert sorted(times_sent(lms, kind).values()) == [1, 1, 1, 1, 4, 4]
    assert_order(lms.journal)


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
    deps = make_test_deps(TASK_MAX_RETRIES=5, **batches_of(2))
    run_id = open_one(deps, laid.enterprise, force=True, reason="a test")
    lms.faults(Fault(kind="downgrade", first=3, status=503))
    assert attempt(deps, laid.enterprise, run_id, DOWNGRADE).retry
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
