"""Started where another package has the name of one of ours, no process of ours runs on: it says where that lies."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine
from support.processes import CELERY, COMMAND, ROOT, WORKER_SQLITE

PROCESSES = {
    "worker": [*CELERY, "worker", "worker"],
    "beat": [*CELERY, "worker", "beat"],
    "flower": [*CELERY, "worker", "flower"],
    "command": [sys.executable, "-P", *COMMAND[1:], "run", "--no-wait"],  # as its script: without this folder
}


def end(process: str, folder: Path) -> tuple[int, str]:
    """How this process ends that is started in this folder: its status, and what it says."""
    done = subprocess.run(PROCESSES[process], cwd=folder, capture_output=True, text=True, timeout=170, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(autouse=True)
def settings(engine: Engine, environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Good ones, and nothing but the folder for Python to look into."""
    environment()
    monkeypatch.delenv("PYTHONPATH")


@pytest.mark.long
@WORKER_SQLITE
@pytest.mark.parametrize(
    ("process", "found"),
    [
        ("worker", "tasks/__init__.py"),
        ("beat", "tasks/__init__.py"),
        ("flower", "tasks/__init__.py"),
        ("worker", "tasks.py"),
        ("worker", "celeryconfig.py"),
        ("command", "celeryconfig.py"),
    ],
)
def test_another_package_of_a_name_of_ours_is_refused_with_both_paths(process: str, found: str, tmp_path: Path) -> None:
    other = tmp_path / "other" / found
    other.parent.mkdir(parents=True)
    other.write_text("")
    status, told = end(process, tmp_path / "other")
    assert status == 2, told
    assert f"was found at {other}, not in {ROOT}: start in another folder" in told


@WORKER_SQLITE
def test_with_another_worker_nothing_starts(tmp_path: Path) -> None:
    # None of our code runs then, and Celery says so; from an editable installation Python mixes the two.
    (tmp_path / "worker").mkdir()
    (tmp_path / "worker" / "__init__.py").write_text("")
    status, told = end("worker", tmp_path)
    assert status == 2, told
    assert "Unable to load celery application" in told or f"worker was found at {tmp_path}" in told


@WORKER_SQLITE
def test_the_command_does_not_look_for_our_packages_where_it_is_started(tmp_path: Path) -> None:
    for name in ("worker", "tasks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit(5)")
    assert end("command", tmp_path) == (0, "Nothing is due.\n")
