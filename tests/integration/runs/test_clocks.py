"""Clocks that are too far apart: nothing is sent, and all three are named."""

from datetime import timedelta

import pytest
from support.runs import ON_SQLITE, Make, lay, night, unlinking
from support.steps import change

from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.ledger.claims import Claim
from worker.ledger.order import Phase
from worker.lms.client import LmsClient

MINUTE = timedelta(minutes=1)


@ON_SQLITE
@pytest.mark.parametrize(
    ("whose", "by", "phase"),
    [
        pytest.param("the LMS", 11 * MINUTE, Phase.FAILED, id="the LMS's is ahead"),
        pytest.param("the LMS", -11 * MINUTE, Phase.FAILED, id="the LMS's is behind"),
        pytest.param("the database", 25 * MINUTE, Phase.FAILED, id="the database's is ahead"),
        pytest.param("the database", -25 * MINUTE, Phase.FAILED, id="the database's is behind"),
        pytest.param("the LMS", 9 * MINUTE, Phase.FINISHED, id="not far"),
        pytest.param("the database", -9 * MINUTE, Phase.FINISHED, id="not far either"),
    ],
)
def test_nothing_is_sent_by_clocks_that_are_far_apart(
    whose: str, by: timedelta, phase: Phase, lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(**unlinking(laid.enterprise))
    owner, name = (LmsClient, "lms_now") if whose == "the LMS" else (Claim, "database_now")
    real = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda self: real(self) + by)
    [run] = night(deps).values()
    assert run.phase == phase
    if phase == Phase.FAILED:
        assert lms.calls("downgrade") == lms.calls("unlink") == []
        error = str(run.error)
        assert all(f"{who} has 20" in error for who in ("the LMS", "the database", "this worker"))
        assert error.endswith("correct the wrong clock, and keep it right with NTP [clocks]")


@ON_SQLITE
def test_an_lms_that_tells_no_time_is_left_out(
    lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = lay(lms, licenses=2)
    monkeypatch.setattr(LmsClient, "lms_now", lambda self: None)
    [run] = night(make_test_deps(**unlinking(laid.enterprise))).values()
    assert run.phase == Phase.FINISHED


@ON_SQLITE
def test_a_run_that_sends_nothing_asks_for_no_clock(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=1)
    deps = make_test_deps()
    change(deps.database.engine, "license", laid.licenses[0], status="unassigned")
    lms.faults(Fault(kind="token", status=503))
    [run] = night(deps).values()
    assert run.phase == Phase.FINISHED
