"""The numbered points of a worker: where each of its processes can be killed, frozen, or lose an answer.

Nothing of the product knows of this: the points are hung on its seams (the LMS client, the database driver, Celery's
signals) by `install`, which fails loudly when a seam is no longer there.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from celery.signals import after_task_publish, before_task_publish, task_postrun, task_prerun
from celery.states import SUCCESS
from celery.worker.request import Request
from sqlalchemy import Engine
from sqlalchemy.engine.interfaces import Dialect

import worker.deps
import worker.lms.client
from chaos.counter import EPOCH_VARIABLE, FOLDER_VARIABLE, Counter, Order

BEFORE_CALL, SENDING, ANSWERED = "before call", "sending", "answered"
BEFORE_COMMIT, AFTER_COMMIT = "before commit", "after commit"
BEFORE_PUBLISH, AFTER_PUBLISH = "before publish", "after publish"
BEFORE_ACK, AFTER_ACK = "before acknowledgement", "after acknowledgement"
TASK_START, TASK_END = "task start", "task end"
LOST = {
    "postgresql": ("server closed the connection unexpectedly",),
    "mysql": (2013, "Lost connection to server during query"),
    "mariadb": (2013, "Lost connection to server during query"),
}


class Points:
    """This process's way to the shared count, and what it is working on."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._main = os.getpid()
        self._epoch = float(os.environ[EPOCH_VARIABLE])
        self._lock = threading.Lock()
        self.task: dict[str, str | None] = {}
        os.register_at_fork(after_in_child=self._forked)

    def _forked(self) -> None:
        self._lock, self.task = threading.Lock(), {}

    def reach(self, point: str, task: dict[str, str | None] | None = None) -> Order | None:
        """Reach a point; what is ordered there happens now, but for `commit_lost`, which is returned."""
        main = os.getpid() == self._main
        about = {
            "point": point,
            "pid": os.getpid(),
            "group": os.getpgrp(),
            "main": main,
            "time": self._epoch + time.monotonic(),
        }
        # This process's other threads wait at its own lock, so that none of them stops with the shared one in hand.
        with self._lock:
            with self._counter.reach(**about, **(self.task if task is None else task)) as order:
                if order and order.kind != "commit_lost" and (main or order.kind.endswith("worker")):
                    self._others(signal.SIGKILL if order.kind.startswith("kill") else signal.SIGSTOP)
            if order and order.kind.startswith("kill"):
                os.kill(os.getpid(), signal.SIGKILL)
            if order and order.kind.startswith("freeze"):
                os.kill(os.getpid(), signal.SIGSTOP)
        return order

    @staticmethod
    def _others(number: signal.Signals) -> None:
        """Strike the rest of this process group; stopped ones stop while we have the lock, so none of them has it."""
        others = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _group(pid) == os.getpgrp()]
        others.remove(os.getpid())
        for pid in others:
            os.kill(pid, number)
        deadline = time.monotonic() + 2
        while number == signal.SIGSTOP and time.monotonic() < deadline:
            if all(_state(pid) in "TtZX" for pid in others):
                return
            os.sched_yield()


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return ["X", "0", "0"]


def _group(pid: int) -> int:
    return int(_stat(pid)[2])


def _state(pid: int) -> str:
    return _stat(pid)[0]


def install() -> None:
    """Hang the points on the seams of the product, in this process and those forked from it."""
    points = Points(Counter(Path(os.environ[FOLDER_VARIABLE])))
    _on_tasks(points)
    _on_calls(points)
    _on_commits(points)
    _on_acknowledgements(points)


def _on_tasks(points: Points) -> None:
    def start(task: Any = None, kwargs: Any = None, **_: Any) -> None:
        points.task = _about(task.name, kwargs)
        points.reach(TASK_START)

    def end(task_id: str = "", state: str | None = None, **_: Any) -> None:
        points.task["succeeded"] = task_id if state == SUCCESS else None
        points.reach(TASK_END)
        points.task = {}

    task_prerun.connect(start, weak=False)
    task_postrun.connect(end, weak=False)
    before_task_publish.connect(lambda **_: points.reach(BEFORE_PUBLISH), weak=False)
    after_task_publish.connect(lambda **_: points.reach(AFTER_PUBLISH), weak=False)


def _about(name: str, kwargs: Any) -> dict[str, str | None]:
    known = kwargs if isinstance(kwargs, dict) else {}
    return {"task": name, "enterprise": known.get("enterprise_customer_uuid"), "run": known.get("run_id")}


def _wrap(owner: Any, name: str, before: Callable[..., object], after: Callable[..., object]) -> None:
    """Have a method of a class do something before itself, and after itself whether it succeeds or not."""
    original = getattr(owner, name)  # fails when the product has none any more, and so it shall

    def wrapped(self: Any, *arguments: Any, **named: Any) -> Any:
        before(self)
        try:
            return original(self, *arguments, **named)
        finally:
            after(self)

    setattr(owner, name, wrapped)


def _on_calls(points: Points) -> None:
    """Before a call is before its guard is asked; it is being sent once the guard has said yes."""
    _wrap(worker.lms.client.LmsClient, "post", lambda _: points.reach(BEFORE_CALL), lambda _: None)
    _wrap(requests.Session, "send", lambda _: points.reach(SENDING), lambda _: points.reach(ANSWERED))


def _on_commits(points: Points) -> None:
    make_engine = worker.deps.make_engine  # type: ignore[attr-defined]  # the name that make_deps looks up

    def made(*arguments: Any, **named: Any) -> Engine:
        engine = make_engine(*arguments, **named)
        commit = engine.dialect.do_commit

        def do_commit(connection: Any) -> None:
            points.reach(BEFORE_COMMIT)
            commit(connection)
            if points.reach(AFTER_COMMIT):
                _lose(engine.dialect, connection)

        engine.dialect.do_commit = do_commit  # type: ignore[assignment, method-assign]
        return engine

    worker.deps.make_engine = made  # type: ignore[attr-defined]


def _lose(dialect: Dialect, connection: Any) -> None:
    """The commit has been made; its answer is lost with the connection."""
    connection.dbapi_connection.close()
    raise dialect.loaded_dbapi.OperationalError(*LOST[dialect.name])


def _on_acknowledgements(points: Points) -> None:
    def about(request: Any) -> dict[str, str | None]:
        return _about(request.name, request.kwargs)

    _wrap(
        Request,
        "acknowledge",
        lambda request: points.reach(BEFORE_ACK, about(request)),
        lambda request: points.reach(AFTER_ACK, about(request)),
    )
