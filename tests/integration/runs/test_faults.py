"""The fourteen faults of license-manager's own two jobs, each of which must not come back."""

import logging
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from sqlalchemy import Engine, event, update
from support.command_line import command
from support.runs import (
    ON_SQLITE,
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
    night,
    open_one,
    processed,
    ready,
    rows,
    run_of,
    sent,
    start,
    texts,
    times_sent,
    together,
    unlinking,
)

from simulator.data.rows import DAY, Data
from simulator.data.schema import table
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.lms.state import Enrollment, EnrollmentFault
from worker import deps as deps_module
from worker.db.ledger_tables import Run
from worker.db.license_manager_tables import DOWNGRADED_EVENT, UNLINKED_EVENT
from worker.deps import Deps
from worker.errors import LicenseExpiryError
from worker.ledger.order import DOWNGRADE, UNLINK, Phase
from worker.lms import client as lms_module
from worker.lms.patience import Patience


def purge(engine: Engine, *licenses: UUID, status: str = "revoked") -> None:
    """What license-manager's retire_old_licenses does."""
    license = table(engine, "license")
    with engine.begin() as connection:
        cleared = {"user_email": None, "lms_user_id": None, "status": status}
        connection.execute(update(license).where(license.c.uuid.in_(licenses)).values(cleared))


@ON_SQLITE
def test_fault_01_the_two_jobs_are_unordered(lms: Simulator, make_test_deps: Make) -> None:
    laid = [lay(lms, licenses=6, seed=seed) for seed in (1, 2)]
    deps = make_test_deps(**batches_of(2), **unlinking(*(each.enterprise for each in laid)))
    begun = start(deps)
    for each in begun:  # whoever starts with the second job finds that it is not its turn
        skipped = attempt(deps, each.enterprise, each.run_id, UNLINK).skipped
        assert skipped == f"run {each.run_id} is queued: it is not ready for this step"
    assert lms.calls() == []
    lms.faults(Fault(kind="downgrade", nth=3, delay=60))
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(finish, deps, each.enterprise, each.run_id) for each in begun]
        lms.wait_for(lambda: len(lms.calls("downgrade")) >= 3)
        going = [each for each in begun if run_of(deps.database, each.run_id).phase == Phase.DOWNGRADING]
        for each in going:  # nor while a downgrade is in flight
            assert attempt(deps, each.enterprise, each.run_id, UNLINK).skipped
        assert going
        lms.release()
        assert [each.result().phase for each in running] == [Phase.FINISHED] * 2
    assert (len(sent(lms, "downgrade")), len(sent(lms, "unlink"))) == (6, 6)
    assert_order(lms.journal)


# What the LMS can answer to an unlink that it has not done, and what it looks like to the run.
NOT_DONE = {
    "400": (Fault(kind="unlink", status=400), Phase.FAILED),
    "403": (Fault(kind="unlink", status=403), Phase.FAILED),
    "404": (Fault(kind="unlink", status=404), Phase.FAILED),
    "500": (Fault(kind="unlink", status=500), Phase.FAILED),
    "502": (Fault(kind="unlink", status=502, body="<html>"), Phase.FAILED),
    "302 to a page that says 200": (Fault(kind="unlink", status=302, headers={"Location": "/login"}), Phase.FAILED),
    "a closed connection": (Fault(kind="unlink", drop="before"), Phase.FAILED),
}


@ON_SQLITE
@pytest.mark.parametrize("answer", NOT_DONE)
def test_fault_02_a_refused_unlink_is_recorded_as_done(answer: str, lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=3)
    deps = make_test_deps(**unlinking(laid.enterprise))
    engine = deps.database.engine
    linked = set(lms.state.linked[laid.enterprise])
    fault, phase = NOT_DONE[answer]
    lms.faults(fault)
    [run] = night(deps).values()
    assert (run.phase, run.learners_unlinked) == (phase, 0)
    assert run.error
    assert events(engine, UNLINKED_EVENT) == Counter()
    assert lms.state.linked[laid.enterprise] == linked
    lms.faults()
    [run] = night(deps).values()
    assert (run.phase, run.learners_unlinked) == (Phase.FINISHED, 3)
    assert events(engine, UNLINKED_EVENT) == Counter(laid.licenses)
    assert lms.state.linked[laid.enterprise] == set()


@ON_SQLITE
@pytest.mark.parametrize("bad", ["no-at-sign.example", "two@@x.example", "@x.example", "x@", "a b@x.example"])
def test_fault_02_one_malformed_address_has_the_whole_batch_recorded_as_done(
    bad: str, lms: Simulator, make_test_deps: Make
) -> None:
    assert lms.lms.engine is not None
    data = Data(lms.lms.engine)
    agreement = data.agreement()
    plan = data.plan(agreement, expires=data.now - 100 * DAY)
    good, malformed = [data.license(plan) for _ in range(4)], data.license(plan, bad)
    ready(data, lms)
    [run] = night(make_test_deps(**unlinking(agreement.enterprise_customer_uuid))).values()
    assert (counts(run)["unlinked"], counts(run)["held"]) == (4, 1)
    assert events(lms.lms.engine, UNLINKED_EVENT) == Counter(good)
    assert held(lms.lms.engine) == {malformed: "http_400"}
    assert lms.state.linked[agreement.enterprise_customer_uuid] == {bad}


@ON_SQLITE
@pytest.mark.parametrize("days", [0.5, 3, 40])
def test_fault_03_a_failed_plan_is_lost(days: float, lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=3, days=days)
    deps = make_test_deps()
    for status in (503, 403, 500):
        lms.faults(Fault(kind="downgrade", status=status))
        [run] = night(deps).values()
        assert (run.phase, processed(deps.database.engine)) == (Phase.FAILED, set())
    lms.faults()
    [run] = night(deps).values()
    assert (run.phase, counts(run)["plans"]) == (Phase.FINISHED, 1)
    assert processed(deps.database.engine) == {laid.plan}
    assert times_sent(lms, "downgrade", 200) == Counter(texts(laid.licenses))


SECOND = DAY / 86_400


@ON_SQLITE
def test_fault_04_plans_fall_between_two_nights(lms: Simulator, make_test_deps: Make) -> None:
    assert lms.lms.engine is not None
    data = Data(lms.lms.engine)
    # Seven seconds between two windows of a day, a night that was missed, a worker that was off for a year.
    ago = [SECOND, DAY - SECOND, DAY + 3 * SECOND, DAY + 7 * SECOND, 2 * DAY, 3 * DAY, 400 * DAY]
    plans = {data.plan(data.agreement(), expires=data.now - each) for each in ago}
    coming = data.plan(data.agreement(), expires=data.now + 3600 * SECOND)
    licenses = [data.license(plan) for plan in plans]
    data.license(coming)
    ready(data, lms)
    runs = night(make_test_deps())
    assert {run.phase for run in runs.values()} == {Phase.FINISHED}
    assert processed(lms.lms.engine) == plans
    assert times_sent(lms, "downgrade") == Counter(texts(licenses))


def test_fault_05_a_failed_prior_plan_is_lost(lms: Simulator, engine: Engine, make_test_deps: Make) -> None:
    data = Data(engine)
    agreement = data.agreement()
    a, b, c = (data.plan(agreement, expires=data.now - days * DAY) for days in (750, 385, 20))
    data.renewal(a, b, effective=data.now - 750 * DAY)
    data.renewal(b, c, effective=data.now - 385 * DAY)
    in_c = data.license(c)
    in_b = data.license(b, renewed_to=in_c)
    in_a = data.license(a, renewed_to=in_b)
    ready(data, lms)
    deps = make_test_deps(**batches_of(10), **unlinking(agreement.enterprise_customer_uuid))
    lms.state.add_license(in_b, agreement.enterprise_customer_uuid, [Enrollment(fault="locked")])
    [first] = night(deps).values()
    assert (processed(engine), held(engine)) == ({a, c}, {in_b: "http_422"})
    assert sent(lms, "downgrade", 200) == [[str(in_a)], [str(in_c)]]  # the oldest first
    assert counts(first)["plans"] == 2
    lms.journal.clear()
    lms.state.add_license(in_b, agreement.enterprise_customer_uuid, [Enrollment()])
    [second] = night(deps, agreement.enterprise_customer_uuid, force=True, reason="mended").values()
    assert str(in_b) in times_sent(lms, "downgrade", 200)
    assert (second.phase, processed(engine), held(engine)) == (Phase.FINISHED, {a, b, c}, {})


@ON_SQLITE
@pytest.mark.parametrize("parallel", [1, 4])
def test_fault_05_a_prior_plan_whose_call_failed_is_lost(parallel: int, lms: Simulator, make_test_deps: Make) -> None:
    assert lms.lms.engine is not None
    data = Data(lms.lms.engine)
    agreement = data.agreement()
    a, b, c = (data.plan(agreement, expires=data.now - days * DAY) for days in (30, 20, 10))
    data.renewal(a, b)
    data.renewal(b, c)
    of = {plan: data.license(plan) for plan in (a, b, c)}
    ready(data, lms)
    deps = make_test_deps(**batches_of(10, parallel))
    lms.faults(Fault(kind="downgrade", license=str(of[b]), status=503))
    [first] = night(deps).values()
    assert first.phase == Phase.FAILED
    assert processed(lms.lms.engine) == ({a} if parallel == 1 else {a, c})  # what was in flight is recorded
    lms.faults()
    lms.journal.clear()
    [second] = night(deps).values()
    assert (second.phase, processed(lms.lms.engine)) == (Phase.FINISHED, {a, b, c})
    assert times_sent(lms, "downgrade") == Counter(texts([of[b]] if parallel == 4 else [of[b], of[c]]))


@ON_SQLITE
@pytest.mark.parametrize("fault", ["locked", "no_overview", "no_history"])
def test_fault_06_one_bad_enrollment_blocks_its_plan_for_ever(
    fault: EnrollmentFault, lms: Simulator, make_test_deps: Make
) -> None:
    laid, other = lay(lms, licenses=20, seed=1), lay(lms, licenses=2, seed=2)
    bad = laid.licenses[13]
    lms.state.add_license(bad, laid.enterprise, [Enrollment(fault=fault)])
    deps = make_test_deps(**unlinking(laid.enterprise, other.enterprise))
    engine = deps.database.engine
    runs = night(deps)
    assert counts(runs[laid.enterprise]) == {"plans": 0, "downgraded": 19, "held": 1, "unlinked": 19, "protected": 0}
    assert counts(runs[other.enterprise]) == {"plans": 1, "downgraded": 2, "held": 0, "unlinked": 2, "protected": 0}
    assert held(engine) == {bad: "http_422" if fault == "locked" else "http_500"}
    assert [each for each in laid.licenses if "verified" in {one.mode for one in lms.state.enrollments(each)}] == [bad]
    assert lms.state.linked[laid.enterprise] == set(emails(engine, bad))


@ON_SQLITE
def test_fault_07_one_failing_enterprise_stops_all_that_follow(
    lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = sorted((lay(lms, licenses=2, seed=seed) for seed in range(1, 6)), key=lambda each: each.enterprise)
    listed = [each.enterprise for each in laid]
    stranger = UUID(int=1)  # on the list, and before all others: license-manager has no agreement with it
    deps = make_test_deps()
    lms.state.inactive.add(listed[0])
    lms.state.two_accounts.update(lms.state.linked[listed[1]])
    lms.faults(
        Fault(kind="downgrade", enterprise=str(listed[2]), status=401),
        Fault(kind="unlink", enterprise=str(listed[3]), status=302, headers={"Location": "/login"}),
    )
    monkeypatch.setattr(deps_module, "Patience", partial(Patience, first_wait=0.01, in_place=1.0))
    result = command(lms, deps, "run", "--here", "--json", **unlinking(stranger, *listed))
    assert result.exit_code == 1, result.output
    runs = {row["enterprise_customer_uuid"]: row for row in rows(deps.database.engine, Run)}
    phases = [runs[enterprise]["phase"] for enterprise in listed]
    assert phases == [Phase.FAILED, Phase.FINISHED, Phase.FAILED, Phase.FAILED, Phase.FINISHED]
    assert (runs[listed[1]]["licenses_held"], runs[listed[4]]["learners_unlinked"]) == (2, 2)
    assert runs[stranger]["phase"] == Phase.FAILED
    assert "has no customer agreement in license-manager: check the UUID" in runs[stranger]["error"]
    assert lms.state.linked[listed[4]] == set()


@ON_SQLITE
def test_fault_07_an_error_of_our_own_in_one_enterprise_stops_all_that_follow(
    lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = sorted((lay(lms, licenses=2, seed=seed) for seed in (1, 2)), key=lambda each: each.enterprise)
    deps = make_test_deps()
    real = lms_module.LmsClient.downgrade

    def breaks(client: Any, select: Any, *rest: Any) -> None:
        if set(select().items) & set(laid[0].licenses):
            raise ZeroDivisionError
        real(client, select, *rest)

    monkeypatch.setattr(lms_module.LmsClient, "downgrade", breaks)
    result = command(lms, deps, "run", "--here", "--json")
    assert result.exit_code == 1
    runs = {row["enterprise_customer_uuid"]: row["phase"] for row in rows(deps.database.engine, Run)}
    assert runs == {laid[0].enterprise: Phase.FAILED, laid[1].enterprise: Phase.FINISHED}


@dataclass(frozen=True)
class Mishap:
    """Something that a job without retries and time-outs fails on, or hangs on."""

    name: str
    faults: tuple[Fault, ...]
    retries: int = 0


MISHAPS = [
    Mishap("429", (Fault(kind="downgrade", times=2, status=429, headers={"Retry-After": "0"}),)),
    Mishap("503", (Fault(kind="downgrade", times=2, status=503), Fault(kind="unlink", times=2, status=503))),
    Mishap("503 with Retry-After", (Fault(kind="unlink", times=1, status=503, headers={"Retry-After": "60"}),), 1),
    Mishap("502 of a load balancer", (Fault(kind="unlink", times=1, status=502, body="<html>", after_work=True),)),
    Mishap("dropped before the work", (Fault(kind="downgrade", times=2, drop="before"),)),
    Mishap("dropped after the work", (Fault(kind="unlink", times=2, drop="after"),)),
    Mishap("an answer cut short", (Fault(kind="unlink", times=1, truncate=True),)),
    Mishap("no token at first", (Fault(kind="token", times=2, status=503),)),
    Mishap("a 500 that passes", (Fault(kind="downgrade", times=1, status=500),)),
    Mishap("401", (Fault(kind="unlink", times=1, status=401),)),
]


@ON_SQLITE
@pytest.mark.parametrize("mishap", MISHAPS, ids=lambda mishap: mishap.name)
def test_fault_08_there_are_no_retries(mishap: Mishap, lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=3)
    deps = make_test_deps(TASK_MAX_RETRIES=5, **unlinking(laid.enterprise))
    for fault in mishap.faults:
        fault.met = fault.fired = 0
    lms.faults(*mishap.faults)
    [run] = night(deps).values()
    assert (run.phase, run.error, run.retries) == (Phase.FINISHED, None, mishap.retries)
    assert counts(run) == {"plans": 1, "downgraded": 3, "held": 0, "unlinked": 3, "protected": 0}
    assert events(deps.database.engine, UNLINKED_EVENT) == Counter(laid.licenses)
    assert all(fault.fired for fault in mishap.faults)
    assert_order(lms.journal)


@ON_SQLITE
def test_fault_08_a_forgotten_token_fails_the_batch(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=6)
    deps = make_test_deps(**batches_of(2), **unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    attempt(deps, laid.enterprise, run_id, DOWNGRADE)
    lms.forget_tokens()
    run = finish(deps, laid.enterprise, run_id)
    assert (run.phase, counts(run)["unlinked"]) == (Phase.FINISHED, 6)
    assert len(lms.calls("token")) == 2
    assert [entry.status for entry in lms.calls("unlink")] == [401, 200, 200, 200]


@ON_SQLITE
def test_fault_08_a_hanging_lms_holds_the_job_for_ever(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=2)
    timeouts = {"BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS": 1, "BULK_UNLINK_REQUEST_TIMEOUT_SECONDS": 1}
    deps = make_test_deps(Patience(tries=1), **timeouts, **unlinking(laid.enterprise))
    lms.faults(Fault(kind="downgrade", delay=100))
    [run] = night(deps).values()
    lms.release()
    assert run.phase == Phase.FAILED
    assert run.error == f"the LMS at {urlsplit(lms.url).netloc} did not answer in time: look at the LMS [timeout]"
    assert sent(lms, "unlink") == []
    result = command(lms, deps, "status", "--json")
    assert result.exit_code == 1  # the failure can be seen from outside
    assert run.error in result.output


def test_fault_09_a_null_address_is_sent_and_protects_everybody(
    lms: Simulator, engine: Engine, make_test_deps: Make
) -> None:
    data = Data(engine)
    agreement = data.agreement()
    old, current = data.plan(agreement, expires=data.now - 100 * DAY), data.plan(agreement)
    nobody = [data.license(old, None, status="assigned"), data.license(old, None, lms_user_id=7)]
    blank = [data.license(old, "", status="assigned"), data.license(old, "  ")]
    learners = [data.license(old) for _ in range(3)]
    for _ in range(3):
        data.license(current, status="unassigned")
    data.license(current, None, lms_user_id=8, status="revoked")
    data.license(current, "")
    ready(data, lms)
    [run] = night(make_test_deps(**unlinking(agreement.enterprise_customer_uuid))).values()
    assert run.phase == Phase.FINISHED
    assert times_sent(lms, "unlink") == Counter(emails(engine, *learners))
    assert events(engine, UNLINKED_EVENT) == Counter(learners)
    assert counts(run) == {"plans": 1, "downgraded": 7, "held": 0, "unlinked": 3, "protected": 0}
    assert times_sent(lms, "downgrade") == Counter(texts([*nobody, *blank, *learners]))


def statements_of(deps: Deps) -> list[str]:
    """Gather what the database is asked from now on, but for what begins a transaction or asks for a table's form."""
    asked: list[str] = []

    @event.listens_for(deps.database.engine, "before_cursor_execute")
    def gather(_c: Any, _u: Any, statement: str, *_: Any) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")) and "sqlite_master" not in statement:
            asked.append(statement)

    return asked


def night_of_batches(lms: Simulator, make_test_deps: Make, batches: int, waiting: bool) -> list[str]:
    """Carry through a night of so many calls of ten licenses in either step; give what the database was asked."""
    assert lms.lms.engine is not None
    data = Data(lms.lms.engine, seed=batches)
    agreement = data.agreement()
    plan = data.plan(agreement, expires=data.now - 100 * DAY)
    if waiting:
        data.renewal(plan, None)
    for number in range(10 * batches):
        data.license(plan, lms_user_id=1000 * batches + number)
    ready(data, lms)
    lms.journal.clear()
    deps = make_test_deps(**batches_of(10), **unlinking(agreement.enterprise_customer_uuid))
    statements = statements_of(deps)
    [run] = night(deps).values()
    assert counts(run)["downgraded"] == counts(run)["unlinked"] == 10 * batches
    assert len(sent(lms, "downgrade")) == len(sent(lms, "unlink")) == batches
    return statements


@ON_SQLITE
@pytest.mark.parametrize("waiting", [False, True])
def test_fault_10_there_is_one_query_per_license(waiting: bool, lms: Simulator, make_test_deps: Make) -> None:
    few, many = (len(night_of_batches(lms, make_test_deps, batches, waiting)) for batches in (2, 8))
    assert (many - few) / (2 * 8 - 2 * 2) <= 6
    assert few <= 6 * 2 * 2 + 33


# Which of a night's statements give a row for each license, and so must be limited to a page.
BY_LICENSE = re.compile(
    r"^ ?SELECT (?:subscriptions_license|anon_1)\.uuid,|^SELECT license_expiry_downgrade|^DELETE[\s\S]* RETURNING",
    re.MULTILINE,
)


@ON_SQLITE
@pytest.mark.parametrize("waiting", [False, True])
def test_fault_10_every_license_is_loaded_into_memory(waiting: bool, lms: Simulator, make_test_deps: Make) -> None:
    statements = night_of_batches(lms, make_test_deps, 3, waiting)
    by_license = [each for each in statements if BY_LICENSE.search(each)]
    assert len(by_license) >= 2, "a page of each step"
    assert [each for each in by_license if not re.search(r"LIMIT \?(?: OFFSET \?)?\s*$", each)] == []


@ON_SQLITE
def test_fault_11_the_purge_can_win_the_race(lms: Simulator, make_test_deps: Make) -> None:
    assert lms.lms.engine is not None
    engine = lms.lms.engine
    data = Data(engine)
    agreement = data.agreement()
    plan = data.plan(agreement, expires=data.now - 90 * DAY - 60 * SECOND)
    learners = [data.license(plan) for _ in range(6)]
    ready(data, lms)
    deps = make_test_deps(**batches_of(2), **unlinking(agreement.enterprise_customer_uuid))
    addresses = emails(engine, *learners)
    # The purge came first to two of them, in the middle of the night to two more, and after it to the others.
    purge(engine, learners[0])
    purge(engine, learners[1], status="assigned")
    run_id = open_one(deps, agreement.enterprise_customer_uuid)
    attempt(deps, agreement.enterprise_customer_uuid, run_id, DOWNGRADE)
    purge(engine, *learners[2:4])
    run = finish(deps, agreement.enterprise_customer_uuid, run_id)
    assert (run.phase, run.error, held(engine)) == (Phase.FINISHED, None, {})
    assert times_sent(lms, "unlink") == Counter(addresses[4:])
    assert events(engine, UNLINKED_EVENT) == Counter(learners[4:])
    purge(engine, *learners)
    lms.journal.clear()
    assert night(deps) == {}
    assert lms.journal.entries == []


@ON_SQLITE
def test_fault_11_an_operator_can_let_the_unlink_be_first_by_a_day(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=2, days=89.5)  # the purge takes them half a day from now
    assert night(make_test_deps(**unlinking(laid.enterprise)))[laid.enterprise].learners_unlinked == 0
    earlier = make_test_deps(UNLINK_AFTER_DAYS=89, **unlinking(laid.enterprise))
    assert night(earlier)[laid.enterprise].learners_unlinked == 2
    assert events(earlier.database.engine, UNLINKED_EVENT) == Counter(laid.licenses)


def test_fault_12_two_overlapping_runs_both_unlink_everybody(
    lms: Simulator, engine: Engine, make_test_deps: Make
) -> None:
    data = Data(engine)
    laid = [data.agreement() for _ in range(2)]
    licenses = []
    for agreement in laid:
        plan, waiting = (data.plan(agreement, expires=data.now - days * DAY) for days in (100, 110))
        data.renewal(waiting, None)
        licenses += [data.license(each) for each in (plan, waiting) for _ in range(4)]
    ready(data, lms)
    listed = unlinking(*(agreement.enterprise_customer_uuid for agreement in laid))
    workers = [make_test_deps(**batches_of(2, parallel=2), **listed) for _ in range(3)]
    outcomes = together(3, lambda number: night(workers[number]))
    assert [each for each in outcomes if isinstance(each, LicenseExpiryError)] == []
    for agreement in laid:  # one of them had it
        theirs = [
            row for row in rows(engine, Run) if row["enterprise_customer_uuid"] == agreement.enterprise_customer_uuid
        ]
        first, *later = sorted(theirs, key=lambda row: row["opened_at"])
        assert first["phase"] == Phase.FINISHED
        # A rival that had looked before, and opened its run after, found nothing left to do.
        assert [row["learners_unlinked"] + row["licenses_downgraded"] for row in later] == [0] * len(later)
    assert events(engine, UNLINKED_EVENT) == Counter(licenses)
    assert set(events(engine, DOWNGRADED_EVENT).values()) == {1}
    assert times_sent(lms, "unlink") == Counter(emails(engine, *licenses))
    assert times_sent(lms, "downgrade") == Counter(texts(licenses))
    assert_order(lms.journal)


# Loggers of libraries that could tell what they are sent; SQLAlchemy's at the level at which it shows parameters.
CHATTY = {"sqlalchemy": logging.INFO, "urllib3": logging.DEBUG, "alembic": logging.DEBUG, "worker": logging.DEBUG}


@ON_SQLITE
def test_fault_13_addresses_are_written_to_the_log(
    lms: Simulator, engine: Engine, make_test_deps: Make, caplog: pytest.LogCaptureFixture
) -> None:
    data = Data(engine)
    agreement = data.agreement()
    old, waiting = (data.plan(agreement, expires=data.now - days * DAY) for days in (100, 110))
    current = data.plan(agreement)
    data.renewal(waiting, None)
    known = [data.license(old) for _ in range(6)] + [data.license(old, "malformed.address.example")]
    data.license(current, "KEPT@x.example", lms_user_id=7)
    data.license(old, "kept@x.example")
    data.license(waiting, "other@x.example")
    ready(data, lms)
    lms.state.add_license(known[0], agreement.enterprise_customer_uuid, [Enrollment(fault="locked")])
    addresses = [row["user_email"].lower() for row in rows(engine, "license")]
    deps = make_test_deps(**batches_of(3), **unlinking(agreement.enterprise_customer_uuid))
    lms.faults(
        Fault(kind="unlink", nth=1, status=503, body=f"{addresses}"),
        Fault(kind="unlink", nth=2, drop="after"),
        Fault(kind="downgrade", nth=1, status=429, headers={"Retry-After": "0"}),
    )
    caplog.set_level(logging.DEBUG)
    for name, level in CHATTY.items():
        caplog.set_level(level, name)
    night(deps, dry_run=True)
    [run] = night(deps).values()
    assert (run.phase, counts(run)["held"]) == (Phase.FINISHED, 2)
    lms.faults(Fault(kind="unlink", status=403, body='{"user_emails": {"0": ["last@x.example"]}}'))
    data.license(old, "last@x.example")
    data.flush()
    [run] = night(deps).values()
    assert run.phase == Phase.FAILED
    told = "\n".join(f"{record.name} {record.getMessage()} {record.exc_text}" for record in caplog.records).lower()
    told += "".join(str(row) for row in rows(engine, Run)).lower()
    assert str(known[0]) in told
    assert "unlink_users" in told
    assert "begin immediate" in told
    assert [address for address in [*addresses, "last@x.example", "@x.example"] if address in told] == []


def test_fault_14_another_case_is_another_learner(lms: Simulator, engine: Engine, make_test_deps: Make) -> None:
    data = Data(engine)
    agreement = data.agreement()
    old, current = data.plan(agreement, expires=data.now - 100 * DAY), data.plan(agreement)
    pairs = [("Bob@x.org", "bob@x.org"), ("ann@x.org", "ANN@X.ORG"), ("eve@x.org", " Eve@x.org ")]
    for address, other in pairs:
        data.license(old, address)
        data.license(current, other)
    gone = data.license(old, "Carol@x.org")
    ready(data, lms)
    [run] = night(make_test_deps(**unlinking(agreement.enterprise_customer_uuid))).values()
    assert sent(lms, "unlink") == [["Carol@x.org"]]
    assert events(engine, UNLINKED_EVENT) == Counter([gone])
    assert counts(run) == {"plans": 1, "downgraded": 4, "held": 0, "unlinked": 1, "protected": 3}


def test_every_fault_has_its_test() -> None:
    tested = {name.split("_")[2] for name in globals() if name.startswith("test_fault_")}
    assert tested == {f"{number:02}" for number in range(1, 15)}
