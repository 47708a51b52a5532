"""A real beat whose schedule file is worthless starts all the same; and what it sends."""

import dbm.dumb
import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from celery.beat import PersistentScheduler
from support.processes import CELERY, ROOT

from simulator.processes import Processes
from tasks.consumer import OURS

pytestmark = pytest.mark.timeout(180)


def _empty(path: Path) -> None:
    with dbm.dumb.open(str(path), "n") as store:
        store[b"entries"] = pickle.dumps({})
    path.with_name(f"{path.name}.dat").write_bytes(b"")


def _of_no_use(path: Path) -> None:
    with dbm.dumb.open(str(path), "n") as store:
        kept = {"entries": ["a list"], "__version__": "5", "tz": "UTC", "utc_enabled": True}
        store.update({name.encode(): pickle.dumps(value) for name, value in kept.items()})


def _directories(path: Path) -> None:
    for suffix in PersistentScheduler.known_suffixes:
        (path.with_name(f"{path.name}{suffix}") / "not empty").mkdir(parents=True)


def _no_folder(path: Path) -> None:
    path.parent.rmdir()


@pytest.mark.long
@pytest.mark.parametrize(
    ("spoil", "kept"),
    [
        pytest.param(_empty, True, id="its .dat is empty"),
        pytest.param(_of_no_use, True, id="something else is in it"),
        pytest.param(lambda path: path.write_bytes(b"\0garbage" * 99), True, id="garbage"),
        pytest.param(_directories, False, id="directories"),
        pytest.param(_no_folder, False, id="it cannot be written"),
    ],
)
def test_a_worthless_schedule_file_keeps_no_beat_from_starting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spoil: Callable[[Path], None], kept: bool
) -> None:
    path = tmp_path / "beat" / "schedule"
    path.parent.mkdir()
    spoil(path)
    settings = {"DATABASE_URL": f"sqlite:///{tmp_path}/none.sqlite3", "LMS_URL": "http://127.0.0.1:1"}
    settings |= {f"BACKEND_SERVICE_EDX_OAUTH2_{name}": "x" for name in ("KEY", "SECRET")}
    for name, value in (settings | {"CELERY_BROKER_URL": "memory://"}).items():
        monkeypatch.setenv(name, value)
    began = time.time()
    with Processes(tmp_path, ROOT) as processes:
        command = [*CELERY, "worker", "beat", "--loglevel=DEBUG", f"--schedule={path}"]
        beat = processes.start("beat", command, lambda: "beat: Waking up" in processes.log("beat"))
        assert beat.poll() is None
        log = processes.log("beat")
    assert ("beat keeps no schedule file" in log) != kept
    written = [each for each in path.parent.glob("schedule*") if each.is_file()] if path.parent.exists() else []
    assert bool(written) == kept
    assert all(each.stat().st_mtime >= began - 1 for each in written)


_SENT = """
import json, sys
from tasks.beat import Scheduler
from worker.celery import app
scheduler = Scheduler(app, schedule_filename=sys.argv[1])
print(json.dumps([entry.task for entry in scheduler.schedule.values()]))
"""


@pytest.mark.parametrize("broker", ["redis://127.0.0.1:1/0", "amqp://guest:guest@127.0.0.1:1/"])
def test_beat_sends_nothing_that_a_worker_drops(broker: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Celery adds a task of its own that deletes results, where their backend does not do it."""
    monkeypatch.setenv("CELERY_BROKER_URL", broker)
    command = [sys.executable, "-c", _SENT, str(tmp_path / "schedule")]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(json.loads(told.stdout)) == {"license_expiry.run_nightly", "license_expiry.reconcile"} <= OURS
