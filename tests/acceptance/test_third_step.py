"""The order is a table: whoever adds a row to it has a third step, in its place, and held to it."""

from typing import Any

import pytest
from sqlalchemy import Engine, text
from support.eventually import eventually
from support.processes import WORKER_SQLITE, lay, listed, post
from support.runs import assert_order, times_sent

from simulator.data.rows import Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator

COLUMNS = ("downgrade_began_at", "downgraded_at", "unlink_began_at", "unlinked_at", "survey_began_at", "ended_at")


@pytest.fixture
def row(engine: Engine) -> Any:
    """Reads the only run, as a mapping."""

    def read() -> Any:
        with engine.connect() as connection:
            return connection.execute(text("SELECT * FROM license_expiry_run")).mappings().one_or_none()

    with engine.begin() as connection:
        for column in ("unlinked_at", "survey_began_at"):
            connection.execute(text(f"ALTER TABLE license_expiry_run ADD COLUMN {column} VARCHAR(26)"))
    return read


@pytest.mark.long
@WORKER_SQLITE
def test_a_third_step_runs_third_and_cannot_be_claimed_before(
    data: Data, lms: Simulator, environment: Any, worker: Any, row: Any
) -> None:
    (enterprise,) = lay(data, lms)
    environment(**listed(enterprise))
    lms.faults(Fault(kind="unlink", delay=100))
    worker(app="support.third_step")
    post(("run_enterprise", {"enterprise_customer_uuid": str(enterprise)}))
    eventually(lambda: lms.calls("unlink"), what="an unlink in flight")

    names = {"enterprise_customer_uuid": str(enterprise), "run_id": str(row()["id"])}
    [early] = post(("survey", names), wait=True)
    assert "is unlinking" in early["skipped"], "the second step has not ended"
    assert row()["survey_began_at"] is None

    lms.release()
    eventually(lambda: row()["phase"] == "finished", what="all three steps")
    moments = [row()[column] for column in COLUMNS]
    assert None not in moments
    assert moments == sorted(moments)
    assert_order(lms.journal)
    assert set(times_sent(lms, "unlink").values()) == {1}

    [late] = post(("survey", names), wait=True)
    assert "is finished" in late["skipped"]
