"""What is loaded by loading what: judged in a process of its own, since this one has everything loaded."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from worker.settings import Settings
from worker.settings.sources import CONFIG_FILE_VARIABLE

ROOT = Path(__file__).parents[2]
OURS = ("worker", "tasks", "simulator", "celeryconfig")
CELERY = ("celery", "kombu", "flower")
HTTP = ("requests", "urllib3", "tenacity")
DATABASE = ("sqlalchemy", "alembic")


@cache
def loaded_by(module: str, **settings: str) -> frozenset[str]:
    """The names of all modules that are loaded after importing this one, with these settings and no others."""
    ours = {*Settings.model_fields, CONFIG_FILE_VARIABLE}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(
        [sys.executable, "-c", f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"],
        env=kept | {"PYTHONPATH": str(ROOT)} | settings,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return frozenset(json.loads(done.stdout))


def of(packages: tuple[str, ...], modules: frozenset[str]) -> set[str]:
    return {module for module in modules if module.split(".")[0] in packages}


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        pytest.param("worker.due.conditions", CELERY + HTTP, id="due: what is due knows no Celery and no HTTP"),
        pytest.param("worker.lms.client", CELERY + DATABASE, id="lms: the client knows no Celery and no database"),
        pytest.param("worker.runs.steps", CELERY, id="steps: what a task calls knows no task"),
        pytest.param("worker.runs.start", CELERY, id="start: nor does what opens runs"),
        pytest.param("worker.deps", CELERY, id="deps: nor what wires it up"),
        pytest.param(
            "worker.license_manager.segment",
            (*CELERY, *HTTP, "segment"),
            id="segment: its library only when it is used",
        ),
        pytest.param("worker.settings", (*CELERY, *HTTP, "segment"), id="settings"),
        pytest.param("worker.errors", CELERY + HTTP + DATABASE, id="errors"),
        pytest.param("worker", CELERY + HTTP + DATABASE, id="the package itself loads nothing"),
    ],
)
def test_what_a_module_does_not_load(module: str, unwanted: tuple[str, ...]) -> None:
    modules = loaded_by(module)
    assert module in modules
    assert of(unwanted, modules) == set()


def test_celery_settings_load_our_settings_and_errors_alone() -> None:
    modules = of(OURS, loaded_by("celeryconfig"))
    settings = {"worker.settings", *(f"worker.settings.{name}" for name in ("model", "sources", "urls"))}
    assert modules == {"celeryconfig", "worker", "worker.errors", "worker.masking"} | settings


def test_what_is_due_and_the_client_know_nothing_of_each_other() -> None:
    assert "worker.lms.client" not in loaded_by("worker.due.conditions")
    named = ("client", "connecting", "learners", "transport", "answer", "outcomes", "patience")
    client = {f"worker.lms.{name}" for name in named}
    assert (
        of(OURS, loaded_by("worker.lms.client"))
        == {"worker", "worker.lms", "worker.clock", "worker.errors", "worker.logs", "worker.masking"} | client
    )


def test_importing_the_tasks_reads_no_settings_and_no_simulator() -> None:
    wrong = {CONFIG_FILE_VARIABLE: "/nowhere.yml", "LMS_URL": "wrong", "NIGHTLY_SCHEDULE": "wrong"}
    modules = loaded_by("tasks", **wrong)
    assert {"tasks", "worker.deps", "worker.settings", "worker.lms.client"} <= modules
    assert of(("simulator",), modules) == set()
