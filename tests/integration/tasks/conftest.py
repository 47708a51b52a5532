"""What the tests of the tasks share."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, current_app
from celery.schedules import crontab
from support.runs import Make
from support.wired import Queue

import tasks
from worker.deps import Deps


@pytest.fixture
def queue() -> Iterator[Queue]:
    before = current_app._get_current_object()  # type: ignore[attr-defined]
    app = Celery("a test", broker="memory://", backend="cache+memory://")
    app.conf.update(task_default_queue="license_expiry", task_acks_late=True, result_extended=True)
    app.conf.beat_schedule = {"nightly": {"schedule": crontab(minute="0", hour="2")}}
    app.finalize()
    app.set_current()
    queue = Queue(app)
    yield queue
    while not queue.empty():
        queue.take()
    before.set_current()


@pytest.fixture
def wired(make_test_deps: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes the wiring that the tasks find."""

    def make(**settings: Any) -> Deps:
        deps = make_test_deps(**settings)
        monkeypatch.setattr(tasks, "get_deps", lambda: deps)
        return deps

    return make
