"""Workers of the release before and of this one share a ledger and a broker while an upgrade goes on."""

import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine
from support.eventually import eventually
from support.processes import CELERY, ROOT, assert_all_done, lay, listed, post, runs

from simulator.data.rows import Data
from simulator.lms.server import Simulator
from simulator.processes import Processes
from worker.ledger.order import ENDED
from worker.settings import CONTROL_QUEUE, STEPS_QUEUE

# No release is tagged yet. The one before is the commit before the ledger's latest migrations were added.
LATEST = "worker/ledger/migrations/versions/000[78]_*"


def git(*command: str) -> bytes:
    return subprocess.run(["git", *command], cwd=ROOT, capture_output=True, check=True, timeout=60).stdout


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """The code of the release before."""
    if not (ROOT / ".git").exists():
        pytest.skip("no history here to take the release before from: this is no clone")
    added = git("log", "--diff-filter=A", "--reverse", "--format=%H", "--", LATEST).decode().split()
    if git("rev-parse", "--is-shallow-repository").strip() == b"true":
        reason = "this clone is shallow: fetch its whole history (git fetch --unshallow)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    folder = tmp_path / "before"
    with tarfile.open(fileobj=io.BytesIO(git("archive", f"{added[0]}^"))) as archive:
        archive.extractall(folder, filter="data")
    assert not list(folder.glob(LATEST)), "it would know the latest ledger"
    return folder


@pytest.fixture
def worker_of(monkeypatch: pytest.MonkeyPatch, processes: Processes) -> Callable[..., Any]:
    """Starts a worker that serves one queue, from a folder with a release's code."""

    def start(folder: Path, name: str, queue: str) -> subprocess.Popen[bytes]:
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.setattr(processes, "cwd", folder)
        found = [sys.executable, "-c", "import worker; print(worker.__file__)"]
        assert subprocess.check_output(found, cwd=folder, text=True) == f"{folder}/worker/__init__.py\n"
        command = [*CELERY, "worker", "worker", "--loglevel=INFO", "-c", "1", "-n", f"{name}@%h", "-Q", queue]
        return processes.start(name, command, lambda: re.search(rf"{name}@\S+ ready\.", processes.log(name)))

    return start


@pytest.mark.long
@pytest.mark.parametrize("engine_kind", ["mariadb"], indirect=True)
def test_workers_of_the_release_before_do_what_those_of_this_one_start_and_the_other_way_round(
    monkeypatch: pytest.MonkeyPatch,
    before: Path,
    worker_of: Callable[..., Any],
    processes: Processes,
    engine: Engine,
    lms: Simulator,
    data: Data,
    environment: Callable[..., None],
) -> None:
    enterprises = lay(data, lms, enterprises=2, licenses=120)
    environment(**listed(*enterprises))

    def play(enterprise: UUID, starts: Path, does: Path) -> None:
        control, steps = (f"{side}-{starts.name}" for side in ("control", "steps"))
        together = [worker_of(starts, control, CONTROL_QUEUE), worker_of(does, steps, STEPS_QUEUE)]
        monkeypatch.setattr("support.processes.ROOT", does)  # the trigger is posted by the other release, too
        post(("run_enterprise", {"enterprise_customer_uuid": str(enterprise)}))
        eventually(lambda: enterprise in {run.enterprise_customer_uuid for run in runs(engine, *ENDED)}, 60)
        assert "run_enterprise" in processes.log(control)
        assert "licenses_downgraded=120" in processes.log(steps)
        assert "learners_unlinked=120" in processes.log(steps)
        for process in together:
            processes.stop(process)

    play(enterprises[0], starts=before, does=ROOT)
    play(enterprises[1], starts=ROOT, does=before)
    assert_all_done(engine, lms, enterprises=2, licenses=120)
