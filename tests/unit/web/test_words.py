"""The pages' explanation of a failed run, and the command that starts it again."""

import shlex
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from worker.db.ledger_tables import Run
from worker.ledger.order import Phase
from worker.web.words import again, day, reason_of, second, soon, stamp

MOMENT = datetime(2026, 11, 24, 2, 0, 7, tzinfo=UTC)
ENTERPRISE, PLAN = UUID(int=7), UUID(int=8)


def run(**columns: Any) -> Run:
    asked: dict[str, Any] = {"force": False, "dry_run": False} | columns
    return Run(id=uuid4(), enterprise_customer_uuid=ENTERPRISE, phase=Phase.FAILED, **asked)


def test_the_line_asks_for_all_that_the_run_was_asked_for() -> None:
    assert again(run()) == f"license-expiry run --enterprise {ENTERPRISE}"
    asked = {
        "plan_uuids": [str(PLAN)],
        "expired_after": MOMENT,
        "expired_before": MOMENT,
        "force": True,
        "approve_unlinks": 1200,
        "reason": "Bob's; rm -rf $HOME",
    }
    said = again(run(**asked))
    window = ["--expired-after", "2026-11-24T02:00:07+00:00", "--expired-before", "2026-11-24T02:00:07+00:00"]
    wanted = ["license-expiry", "run", "--enterprise", str(ENTERPRISE), "--plan", str(PLAN), *window, "--force"]
    assert shlex.split(said) == [*wanted, "--approve-unlinks", "1200", "--reason", "Bob's; rm -rf $HOME"]
    assert again(run(dry_run=True, reason="")).endswith(" --dry-run")


@pytest.mark.parametrize(
    ("phase", "error", "reason"),
    [
        (Phase.FAILED, "the LMS answered 403: give it the role [http_403]", "http_403"),
        (Phase.FAILED, "1,200 learners are due [needs_approval]", "needs_approval"),
        (Phase.FAILED, "internal error, KeyError: the worker's log has its traceback", "unknown"),
        (Phase.FAILED, None, "unknown"),
        (Phase.ABANDONED, "given up while unlinking; last: the LMS answered 503 [http_503]", "abandoned"),
    ],
)
def test_the_reason_of_a_run_that_went_wrong(phase: Phase, error: str | None, reason: str) -> None:
    assert reason_of(phase, error) == reason


def test_every_moment_has_its_zone() -> None:
    assert [stamp(MOMENT), second(MOMENT), day(MOMENT)] == [
        "2026-11-24 02:00 UTC",
        "2026-11-24 02:00:07 UTC",
        "24 November 2026, 02:00:07 UTC",
    ]
    assert soon(MOMENT, MOMENT) == "02:00:07 UTC"
    assert soon(MOMENT, datetime(2026, 11, 23, 23, 0, tzinfo=UTC)) == "2026-11-24 02:00:07 UTC"
