"""Unlinking under the address that the LMS has now; and the limit on what one run unlinks."""

from collections import Counter
from uuid import UUID

import pytest
from sqlalchemy import Engine
from support.runs import (
    ON_EACH,
    ON_SQLITE,
    Laid,
    Make,
    age_holds,
    batches_of,
    counts,
    emails,
    events,
    finish,
    held,
    lay,
    night,
    open_one,
    ready,
    run_of,
    start,
    times_sent,
    unlinking,
)
from support.steps import add_plan, break_enrollment, change, reach

from simulator.data.rows import DAY, Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db.license_manager_tables import UNLINKED_EVENT
from worker.ledger.order import Phase
from worker.lms.client import NOBODYS_EMAIL

MOVED = "moved@elsewhere.example"


def lay_known(lms: Simulator, licenses: int = 3) -> Laid:
    """An enterprise whose licenses bear the user ids 100, 101, …"""
    laid = lay(lms, licenses=licenses)
    assert lms.lms.engine is not None
    for number, license in enumerate(laid.licenses):
        change(lms.lms.engine, "license", license, lms_user_id=100 + number)
    lms.seed()
    return laid


def unlinks(lms: Simulator) -> list[str]:
    """The addresses that were sent and taken, and nobody's."""
    return [address for entry in lms.calls("unlink") if entry.status == 200 for address in entry.emails]


@ON_SQLITE
@pytest.mark.parametrize("address", [MOVED, "Moved@Elsewhere.EXAMPLE", " moved@elsewhere.example "])
def test_a_learner_is_unlinked_under_the_address_that_the_lms_has_now(
    address: str, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay_known(lms)
    lms.change_email(101, address)
    deps = make_test_deps(**unlinking(laid.enterprise))
    [run] = night(deps).values()
    first, _, third = emails(deps.database.engine, *laid.licenses)
    assert Counter(unlinks(lms)) == Counter([first, address, third])
    assert counts(run)["unlinked"] == 3
    assert set(events(deps.database.engine, UNLINKED_EVENT)) == set(laid.licenses)


def protect(engine: Engine, laid: Laid, address: str, **columns: object) -> UUID:
    """Give whoever has this address a license that is current."""
    data = Data(engine, seed=7)
    license = data.license(add_plan(data, laid, expires=data.now + DAY, title="Current"), address, **columns)  # type: ignore[arg-type]
    data.flush()
    return license


@ON_EACH
@pytest.mark.parametrize("written", [MOVED, "MOVED@elsewhere.example", "\u2003moved@elsewhere.example\u00a0"])
def test_an_address_that_protects_a_learner_is_not_unlinked_though_the_lms_has_it(
    written: str, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay_known(lms)
    deps = make_test_deps(**unlinking(laid.enterprise))
    protect(deps.database.engine, laid, written)
    lms.change_email(101, MOVED)
    [run] = night(deps).values()
    assert MOVED not in unlinks(lms)
    assert counts(run)["unlinked"] == 2
    assert laid.licenses[1] not in events(deps.database.engine, UNLINKED_EVENT)


@ON_SQLITE
def test_an_address_of_a_held_license_is_not_unlinked_though_the_lms_has_it(
    lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay_known(lms)
    deps = make_test_deps(**unlinking(laid.enterprise))
    engine = deps.database.engine
    change(engine, "license", laid.licenses[0], lms_user_id=None)
    break_enrollment(lms, laid, laid.licenses[0])
    [address] = emails(engine, laid.licenses[0])
    lms.change_email(102, address.upper())
    night(deps)
    assert set(held(engine)) == {laid.licenses[0]}
    assert set(events(engine, UNLINKED_EVENT)) == {laid.licenses[1]}


@ON_SQLITE
def test_who_is_not_linked_any_more_is_recorded_without_a_call_for_them(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay_known(lms, licenses=4)
    deps = make_test_deps(**batches_of(2), **unlinking(laid.enterprise))
    gone = emails(deps.database.engine, *laid.licenses[:3])
    lms.state.linked[laid.enterprise] -= set(gone)
    [run] = night(deps).values()
    # The first batch has nobody to send: a call that concerns nobody shows that this service user may unlink at all.
    assert unlinks(lms) == [NOBODYS_EMAIL, *emails(deps.database.engine, laid.licenses[3])]
    assert (run.phase, counts(run)["unlinked"]) == (Phase.FINISHED, 4)
    assert set(events(deps.database.engine, UNLINKED_EVENT)) == set(laid.licenses)


@ON_SQLITE
def test_a_service_user_that_is_not_staff_records_nobody_as_unlinked(lms: Simulator, make_test_deps: Make) -> None:
    """It is told that nobody is linked, which is not so."""
    laid = lay_known(lms)
    lms.staff(False)
    deps = make_test_deps(**unlinking(laid.enterprise))
    [run] = night(deps).values()
    assert run.phase == Phase.FAILED
    assert "is staff" in str(run.error)
    assert events(deps.database.engine, UNLINKED_EVENT) == Counter()


@ON_SQLITE
@pytest.mark.parametrize("status", [400, 403, 404])
def test_where_the_lms_does_not_say_the_licenses_address_is_used(
    status: int, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay_known(lms)
    lms.faults(Fault(kind="learners", status=status))
    deps = make_test_deps(**unlinking(laid.enterprise))
    [run] = night(deps).values()
    assert (run.phase, counts(run)["unlinked"]) == (Phase.FINISHED, 3)
    assert Counter(unlinks(lms)) == Counter(emails(deps.database.engine, *laid.licenses))


@ON_SQLITE
def test_while_the_lms_cannot_say_nobody_is_unlinked(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay_known(lms)
    lms.faults(Fault(kind="learners", status=503))
    deps = make_test_deps(**unlinking(laid.enterprise))
    [run] = night(deps).values()
    assert (run.phase, unlinks(lms)) == (Phase.FAILED, [])


# The limit


def limited(laid: Laid, limit: int) -> dict[str, object]:
    return {**batches_of(2), **unlinking(laid.enterprise), "UNLINK_LIMIT": limit}


@ON_SQLITE
def test_more_learners_than_the_limit_are_downgraded_and_none_is_unlinked(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=5)
    [run] = night(make_test_deps(**limited(laid, 4))).values()
    assert (run.phase, counts(run)["downgraded"], counts(run)["unlinked"]) == (Phase.FAILED, 5, 0)
    assert lms.calls("unlink") == []
    error = str(run.error)
    assert "5 learners are due to be unlinked: UNLINK_LIMIT is 4; nobody was unlinked" in error
    assert f"license-expiry due --enterprise {laid.enterprise}" in error
    assert f"license-expiry run --enterprise {laid.enterprise} --approve-unlinks 5 --reason TEXT" in error
    assert error.endswith("[needs_approval]")


@ON_SQLITE
@pytest.mark.parametrize("limit", [5, 6, 0])
def test_as_many_learners_as_the_limit_are_unlinked(limit: int, lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=5)
    [run] = night(make_test_deps(**limited(laid, limit))).values()
    assert (run.phase, counts(run)["unlinked"]) == (Phase.FINISHED, 5)


@ON_SQLITE
@pytest.mark.parametrize(
    ("approved", "unlinked"),
    [
        pytest.param(5, 5, id="all of them"),
        pytest.param(9, 5, id="more than there are"),
        pytest.param(4, 0, id="fewer: what came since was not looked at"),
        pytest.param(1, 0, id="fewer than the limit"),
    ],
)
def test_leave_is_for_so_many_at_most_and_is_kept_with_who_and_why(
    approved: int, unlinked: int, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=5)
    deps = make_test_deps(**limited(laid, 3))
    asked = {"approve_unlinks": approved, "reason": "contract ended", "triggered_by": "ada"}
    [run] = night(deps, laid.enterprise, **asked).values()
    assert counts(run)["unlinked"] == unlinked
    assert {name: getattr(run, name) for name in asked} == asked
    assert ("needs_approval" in str(run.error)) == (not unlinked)


@ON_SQLITE
def test_learners_who_come_due_in_the_middle_stop_the_run_at_its_limit(
    lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody switches off the plan that protected them all, by mistake."""
    monkeypatch.setattr("worker.runs.batches.PAGE_BATCHES", 1)
    laid = lay(lms, licenses=9)
    deps = make_test_deps(**limited(laid, 4))
    engine = deps.database.engine
    data = Data(engine, seed=3)
    current = add_plan(data, laid, expires=data.now + DAY, title="Current")
    for address in emails(engine, *laid.licenses[3:]):
        data.license(current, address)
    data.flush()
    run_id = reach(deps, laid, "unlink")
    lms.faults(Fault(kind="unlink", nth=1, delay=0.0))
    real = deps.lms.unlink

    def unlink(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        change(engine, "subscriptionplan", current, is_active=False)

    monkeypatch.setattr(deps.lms, "unlink", unlink)
    run = finish(deps, laid.enterprise, run_id)
    assert run.phase == Phase.FAILED
    assert "needs_approval" in str(run.error)
    assert f"; {counts(run)['unlinked']} were unlinked before" in str(run.error)
    assert 0 < counts(run)["unlinked"] <= 4
    assert sum(times_sent(lms, "unlink", 200).values()) == counts(run)["unlinked"]


@ON_SQLITE
def test_a_run_that_is_resumed_counts_what_it_has_unlinked_before(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=4)
    deps = make_test_deps(**limited(laid, 5))
    run_id = reach(deps, laid, "unlink")
    lms.faults(Fault(kind="unlink", first=2, status=503))
    run = finish(deps, laid.enterprise, run_id)
    assert counts(run)["unlinked"] == 2
    lms.faults()
    more = Data(deps.database.engine, seed=2)
    plan = add_plan(more, laid, title="Another")
    for _ in range(3):
        more.license(plan)
    ready(more, lms)
    age_holds(deps.database.engine)
    again = open_one(deps, laid.enterprise)  # a run of its own: it counts anew
    assert counts(finish(deps, laid.enterprise, again))["unlinked"] == 5
    assert start(deps, laid.enterprise) == []
    assert run_of(deps.database, run_id).phase == Phase.FAILED
