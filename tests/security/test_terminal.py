"""Names and reasons are what others typed: no command hands a terminal what it would obey."""

import json
import logging
import unicodedata
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, update
from support.command_line import LIST, license_expiry
from support.processes import WORKER_SQLITE
from support.runs import rows

from simulator.data.rows import DAY, Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker import logs
from worker.db.ledger_tables import HeldLicense, Run
from worker.db.transactions import Database
from worker.ledger import waits

EVIL = "Acme\x1b[2J\x1b]0;owned\x07\x9b31m\r\x08\x7f\u202e University\nNothing is held."


@pytest.fixture
def broker() -> str:
    """None: nothing here needs one."""
    return "redis://127.0.0.1:1/0"


@pytest.fixture
def enterprise(data: Data, lms: Simulator, environment: Any) -> UUID:
    """An enterprise with a wicked name, of whose licenses the LMS refuses one."""
    agreement = data.agreement(name=EVIL)
    plan = data.plan(agreement, expires=data.now - 100 * DAY, title=EVIL)
    bad = next(data.license(plan) for _ in range(4))
    data.flush()
    lms.seed()
    lms.faults(Fault("downgrade", status=422, license=str(bad)))
    environment(**{LIST: str(agreement.enterprise_customer_uuid)})
    return agreement.enterprise_customer_uuid


def assert_tame(*arguments: object) -> None:
    done = license_expiry(*arguments)
    printed = done.stdout + done.stderr
    wild = {letter for letter in printed if unicodedata.category(letter) in ("Cc", "Cf") and letter != "\n"}
    assert wild == set(), arguments
    assert "\nNothing is held." not in printed, arguments
    assert "Acme" in printed, printed


@WORKER_SQLITE
def test_no_command_prints_what_a_terminal_obeys(engine: Engine, enterprise: UUID) -> None:
    assert_tame("due")
    assert_tame("run", "--here", "--enterprise", enterprise)
    wicked = {"error": EVIL, "triggered_by": EVIL, "reason": EVIL, "stopped_by": EVIL, "stop_reason": EVIL}
    with engine.begin() as connection:
        connection.execute(update(Run).values(**wicked))
    waits.pause(Database(engine), EVIL, EVIL)
    [license] = [row["license_uuid"] for row in rows(engine, HeldLicense)]
    for command in (["status"], ["status", "--enterprise", enterprise], ["status", "--watch"], ["held"]):
        assert_tame(*command)
        assert_tame(*command[:3], "--json")
    assert_tame("explain", license)
    assert_tame("pause", "--reason", "another")
    assert_tame("resume")


def test_no_log_line_has_what_a_terminal_obeys(tmp_path: Path) -> None:
    for form in ("keyvalue", "json"):
        file = tmp_path / form
        logs.configure(form, file=file)
        logs.get_logger("worker").warning("pause ended", by=EVIL)
        logging.getLogger("a.library").warning(EVIL)
        written = file.read_text()
        assert written.count("\n") == 2
        assert all(unicodedata.category(letter) not in ("Cc", "Cf") for letter in written.replace("\n", ""))
        assert written.count("Acme") == 2
    assert json.loads(written.splitlines()[0])["by"] == EVIL
