"""Flower's saved list of tasks: it is read back with our kind of task, and a file that cannot be read is replaced."""

import dbm
import os
import pickle
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
from celery.events.state import State, Task
from flower.events import EventsState  # type: ignore[import-untyped]
from support.eventually import eventually
from support.processes import CELERY, ROOT, seconds_to_end

from simulator.processes import Processes, free_port, listens
from worker.flower.task_list import Retried


def told(state: EventsState, kind: str, task: str, **fields: Any) -> None:
    """Let Flower hear of one event of a task."""
    moment = time.time()
    event = {
        "type": f"task-{kind}",
        "uuid": task,
        "hostname": "celery@a",
        "timestamp": moment,
        "local_received": moment,
    }
    state.event({**event, "clock": 1, "pid": 1, "utcoffset": 0, **fields})


@pytest.mark.parametrize("kind", [Retried, Task])
def test_a_saved_list_is_read_back_and_goes_on(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(State, "Task", kind)
    state = EventsState(max_tasks_in_memory=10)
    told(state, "received", "trigger", name="a", retries=0)
    told(state, "received", "step", name="b", retries=0, parent_id="trigger", root_id="trigger")
    told(state, "started", "step")
    told(state, "retried", "step", exception="away")
    monkeypatch.setattr(State, "Task", Retried)
    restored = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(state))))
    assert {name: task.state for name, task in restored.tasks.items()} == {"trigger": "RECEIVED", "step": "RETRY"}
    told(restored, "received", "step", retries=1)
    assert restored.tasks["step"].state == ("RETRY" if kind is Retried else "RECEIVED")
    told(restored, "started", "step")
    told(restored, "succeeded", "step", result="done")
    told(restored, "received", "next", name="b", parent_id="step", root_id="trigger")
    step = restored.tasks["step"].as_dict()
    assert (step["state"], step["parent"], step["root"], step["exception"]) == ("SUCCESS", "trigger", "trigger", "away")
    assert restored.tasks["next"].state == "RECEIVED"


def damaged(file: Path) -> None:
    """Nothing of it is as it was written."""
    with dbm.open(str(file), "n") as made:
        made["events"] = b"x" * 5000
    for path in file.parent.iterdir():
        path.write_bytes(os.urandom(path.stat().st_size or 100))


def cut_off(file: Path) -> None:
    """Half of what was saved."""
    with dbm.open(str(file), "n") as made:
        made["events"] = pickle.dumps(EventsState(max_tasks_in_memory=10))[:-40]


def of_another_release(file: Path) -> None:
    """Its tasks are of a class that is not there."""
    with dbm.open(str(file), "n") as made:
        made["events"] = b"cworker.flower.task_list\nOfAnotherRelease\n."


@pytest.mark.long
@pytest.mark.parametrize("spoil", [damaged, cut_off, of_another_release])
def test_a_file_that_cannot_be_read_is_put_aside_with_one_line(
    spoil: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "operator:secret")
    kept = tmp_path / "kept"
    kept.mkdir()
    spoil(kept / "flower")
    for complaints in (1, 0):  # the second one reads what the first one wrote
        port = free_port()
        start = [*CELERY, "worker", "flower", f"--port={port}", "--persistent=True", f"--db={kept}/flower"]
        with Processes(tmp_path, ROOT) as processes:
            process = processes.start("flower", start, partial(listens, port))
            assert requests.get(f"http://127.0.0.1:{port}/tasks", auth=("operator", "secret"), timeout=10).ok
            eventually(lambda: "Registered tasks" in processes.log("flower"), what="the end of the start")
            seconds_to_end(process, signal.SIGTERM)
            assert process.returncode == 0
            lines = processes.log("flower").splitlines()
        assert len([line for line in lines if "Failed to load state from" in line]) == complaints
        assert not [line for line in lines if "Traceback" in line]
    assert [path for path in kept.iterdir() if path.suffix == ".corrupt"]
