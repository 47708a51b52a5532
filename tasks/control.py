"""The process that serves the queue of triggers and `reconcile`, because all others may be busy in a step.

It is a separate worker with one process. The main worker starts it, restarts it if it ends, and stops it at the end. A
worker whose queues are named on its command line (-Q) starts none.

Also the queues that a worker should consume and does not: it writes them into its liveness file, and answers them to
`license-expiry doctor`.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from functools import cache
from typing import Any

import click
from celery import bootsteps
from celery.worker.control import inspect_command

from tasks.alive import EVERY_SECONDS, note_alive
from worker.celery import hand_back
from worker.ledger.identity import ledger_at
from worker.logs import get_logger
from worker.settings import CONTROL_QUEUE, load_settings

log = get_logger(__name__)

_WORKER = "LICENSE_EXPIRY_WORKER"  # the id of the process that started this one
_LOOK_SECONDS = 5.0
_ORPHAN_SECONDS = 1.0


class ControlProcess(bootsteps.StartStopStep):
    """Starts and ends that process (a step of the worker's start; the methods are Celery's hooks)."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, worker: Any, **_: Any) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._command: list[str] = []
        self._closing = False
        worker.given_queues = frozenset(worker.app.amqp.queues.consume_from)  # cancel_consumer leaves it as is

    def include_if(self, worker: Any) -> bool:
        """Only in a worker that was started by `celery worker`, with no queues named."""
        context = click.get_current_context(silent=True)
        return context is not None and context.info_name == "worker" and not context.params["queues"]

    def start(self, worker: Any) -> None:
        """Start it, and restart it when it ends."""
        self._command = _command(worker, click.get_current_context())
        self._begin()
        worker.timer.call_repeatedly(_LOOK_SECONDS, self._tend)

    def close(self, worker: Any) -> None:
        """Ask it to stop, because this worker is stopping."""
        self._closing = True
        if self._process is not None:
            self._process.terminate()

    def stop(self, worker: Any) -> None:
        """Wait until it has ended, no longer than this worker's own shutdown takes (`hand_back`)."""
        if self._process is not None:
            self._process.wait()

    def terminate(self, worker: Any) -> None:
        """As `stop`: `close` was called before."""
        self.stop(worker)

    def _begin(self) -> None:
        environment = os.environ | {_WORKER: str(os.getpid())}
        self._process = subprocess.Popen(  # noqa: S603, our own command
            self._command, stdin=subprocess.DEVNULL, env=environment
        )

    def _tend(self) -> None:
        if self._process is not None and self._process.poll() is not None and not self._closing:
            log.warning("the control process has ended: started again", status=self._process.returncode)
            self._begin()


class EndsWithItsWorker(bootsteps.Step):
    """Ends that process when the worker that started it is gone, even by SIGKILL."""

    requires = ("celery.worker.components:Timer",)

    def include_if(self, worker: Any) -> bool:
        """Only in that process (Celery's hook)."""
        return _WORKER in os.environ

    def create(self, worker: Any) -> None:
        """Start watching (Celery's hook)."""
        worker.timer.call_repeatedly(_ORPHAN_SECONDS, int)  # wakes its loop, so that it notices a request to stop
        threading.Thread(target=_end_without, args=(int(os.environ[_WORKER]),), daemon=True).start()


class NotesThatItIsAlive(bootsteps.Step):
    """Keeps the liveness file of a worker or control process, with the queues that it leaves alone."""

    requires = ("celery.worker.components:Timer",)

    def create(self, worker: Any) -> None:
        """Note it now, and from the event loop from now on (Celery's hook)."""
        note_alive(worker.hostname)
        worker.timer.call_repeatedly(EVERY_SECONDS, self._note, (worker,))

    def _note(self, worker: Any) -> None:
        missing = _missing(worker.consumer) if worker.consumer.task_consumer else []
        note_alive(worker.hostname, ". ".join(takes_nothing_from(worker.hostname, missing)) if missing else "")


@inspect_command()
def license_expiry_ledger(state: Any) -> dict[str, Any]:
    """The id of this worker's ledger, and the queues that it should consume and does not."""
    return {"ledger": _ledger(), "missing": _missing(state.consumer)}


def takes_nothing_from(worker: str, missing: list[str]) -> tuple[str, str]:
    """The message and the remedy for a worker that takes no messages from these queues."""
    what = f"{worker} takes no messages from its queue {' and '.join(missing)}: somebody sent it cancel_consumer"
    commands = (f"celery -A worker control --destination {worker} add_consumer {queue}" for queue in missing)
    return what, f"restart it, or: {'; '.join(commands)}"


def _missing(consumer: Any) -> list[str]:
    taken = {queue.name for queue in consumer.task_consumer.queues} if consumer.task_consumer else set()
    return sorted(consumer.controller.given_queues - taken)


@cache
def _ledger() -> str:
    return str(ledger_at(load_settings().DATABASE_URL))


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_ORPHAN_SECONDS)
    log.warning("the worker of this control process is gone: it ends")
    hand_back()
    os.kill(os.getpid(), signal.SIGTERM)


def _command(worker: Any, context: click.Context) -> list[str]:
    """The worker's own command (interpreter, wrapper, app, logs), for one process and the control queue."""
    name, _, host = worker.hostname.partition("@")
    options = ["-Q", CONTROL_QUEUE, "-c", "1", "-n", f"{name}-control@{host}", "--without-gossip", "--without-mingle"]
    options += ["--loglevel", logging.getLevelName(worker.loglevel)]
    if context.params.get("logfile"):
        options += ["--logfile", context.params["logfile"]]
    start = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    return [*start, "-A", context.find_root().params["app"], "worker", *options]
