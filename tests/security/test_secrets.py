"""Nothing secret is in any output: what a setting holds, what a database or a driver says, what a task fails with."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError
from support.processes import WORKER_SQLITE, lay, listed
from support.runs import rows

import tasks
from simulator.data.rows import Data
from simulator.lms.server import Simulator
from worker.db.ledger_tables import Run
from worker.errors import BadArgument, Unexpected

COMMAND = [sys.executable, "-c", "from worker.cli.main import main; main()"]
CELERY = [sys.executable, "-m", "celery", "-A", "worker"]
SECRET = "Zebra7Crossing"
PROCESSES = {
    "doctor": [*COMMAND, "doctor"],
    "run": [*COMMAND, "run"],
    "serve": [*COMMAND, "serve", "--port", "8001"],
    "worker": [*CELERY, "worker"],
    "beat": [*CELERY, "beat"],
    "flower": [*CELERY, "flower"],
}
WRONG = {
    "CELERY_BROKER_URL": f"redis://:1/{SECRET}@127.0.0.1/5",
    "CELERY_RESULT_BACKEND": f"redis://:{SECRET}@h1/5;redis://:{SECRET}@h2/5",
    "DATABASE_URL": f"mysql://u:short@{SECRET}@127.0.0.1/d",
    "LMS_URL": f"https://u:{SECRET}@lms.example.com",
}
READ_BY = {
    "worker": list(WRONG),
    "doctor": list(WRONG),
    "beat": ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"],
    "flower": ["CELERY_BROKER_URL"],
    "serve": ["DATABASE_URL"],
    "run": ["DATABASE_URL", "CELERY_BROKER_URL"],
}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Good settings of a database that is empty and of an LMS that is not there."""
    good = {
        "DATABASE_URL": f"sqlite:///{tmp_path}/none.sqlite3",
        "CELERY_BROKER_URL": "memory://",
        "LMS_URL": "http://127.0.0.1:1",
        "BACKEND_SERVICE_EDX_OAUTH2_KEY": "key",
        "BACKEND_SERVICE_EDX_OAUTH2_SECRET": SECRET,
        "FLOWER_BASIC_AUTH": f"somebody:{SECRET}",
    }
    for name, value in good.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("process", "name"), [(process, name) for process, names in READ_BY.items() for name in names])
def test_a_wrong_url_ends_each_process_with_a_sentence_that_has_none_of_it(
    settings: None, monkeypatch: pytest.MonkeyPatch, process: str, name: str
) -> None:
    monkeypatch.setenv(name, WRONG[name])
    done = subprocess.run(PROCESSES[process], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2])
    said = done.stdout + done.stderr
    assert done.returncode in (1, 2), said
    assert SECRET not in said
    assert "Traceback" not in said
    assert name in said


ADDRESS = "jane.doe@learner.example"


@pytest.mark.long
@WORKER_SQLITE
def test_an_address_that_sqlite_quotes_is_in_no_output(
    engine: Engine, data: Data, lms: Simulator, environment: Callable[..., None]
) -> None:
    environment(TASK_MAX_RETRIES=0, **listed(*lay(data, lms)))
    with engine.begin() as connection:
        broken = text("UPDATE subscriptions_license SET user_email = CAST(:bytes AS TEXT)")
        connection.execute(broken, {"bytes": ADDRESS.encode() + b"\xff"})
        with pytest.raises(OperationalError, match="with text"):  # this is what it quotes
            connection.execute(text("SELECT user_email FROM subscriptions_license")).all()
    commands = [("run", "--here"), ("status", "--json"), ("due",)]
    said = [subprocess.run([*COMMAND, *each], capture_output=True, text=True, timeout=90) for each in commands]
    output = "".join(f"{done.stdout}{done.stderr}" for done in said)
    assert "OperationalError" in output, "it did meet them"
    assert [part for part in (ADDRESS, "jane.doe") if part in output] == []
    assert "jane" not in str(rows(engine, Run))


@pytest.mark.parametrize(
    "task", [tasks.run_nightly, tasks.run_enterprise, tasks.downgrade_enrollments, tasks.reconcile]
)
def test_a_task_that_fails_by_itself_has_its_type_and_no_text_in_its_result(
    monkeypatch: pytest.MonkeyPatch, task: Any
) -> None:
    def fail() -> None:
        raise KeyError(f"{ADDRESS} redis://:{SECRET}@h")

    monkeypatch.setattr(tasks, "get_deps", fail)
    arguments = [] if task in (tasks.run_nightly, tasks.reconcile) else [str(uuid4()), str(uuid4())]
    done = task.apply(arguments[: 1 if task is tasks.run_enterprise else 2])
    assert isinstance(done.result, Unexpected | BadArgument), done.result
    assert "KeyError" in str(done.result)
    assert [part for part in (ADDRESS, SECRET) if part in f"{done.result!r} {done.traceback}"] == []


@pytest.mark.parametrize("names", [{"dryrun": True}, {ADDRESS: True}, {"dry_run": True, "scheduled": True}])
def test_an_unknown_argument_fails_with_its_name_and_no_address(names: dict[str, Any]) -> None:
    done = tasks.run_nightly.apply((), names)
    assert isinstance(done.result, BadArgument)
    assert ADDRESS not in str(done.result)
    assert "unexpected keyword argument" in str(done.result)
