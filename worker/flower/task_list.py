"""Formats the tasks of runs for Flower's task list and task page."""

import re
from typing import Any
from uuid import UUID

from celery.events.state import State, Task
from celery.states import RETRY

from worker.flower.database import Names

# Flower's own columns do not say which enterprise and run a task is of, nor why one is retried.
_COLUMNS = "state,name,kwargs,exception,received,runtime,uuid"
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"

# As the tasks write it: tasks._shown.
_NEXT_TRY = re.compile(r"retried at [-\d]+ (?P<time>[:\d]+) UTC.*\[(?P<reason>\w+)\]")
MOST_LETTERS = 36  # of a name, as many as a UUID has
MOST_OF_EXCEPTION = 70

names = Names()


class Retried(Task):
    """A task as Flower knows it. While it waits for its retry it stays in RETRY.

    Celery tells that its message was sent and received again before or after it tells of the retry; after it, the task
    would look as if it had never begun, and be missing among those retried.
    """

    def event(self, type_: str | None, *args: Any, **kwargs: Any) -> str | None:
        """Take in one event (Celery's hook)."""
        before = self.state
        told = super().event(type_, *args, **kwargs)
        if before == RETRY and type_ in ("sent", "received"):
            self.state = before
        return told


def prepare(options: Any) -> None:
    """Give Flower our columns and names of tasks, unless its options (tornado's) have others."""
    if options.tasks_columns == options._options["tasks-columns"].default:
        options.tasks_columns = _COLUMNS
    options.format_task = options.format_task or in_short
    State.Task = Retried
    names.read()


def in_short(task: Any) -> Any:
    """Flower's format_task hook: the arguments as ENTERPRISE/RUN, the enterprise by its name where that is known."""
    text = re.sub(r", '(message_number|ledger)': [^,}]*", "", task.kwargs or "").strip("{}").replace("'", "")
    text = text.replace("enterprise_customer_uuid: ", "").replace(", run_id: ", "/")
    task.kwargs = re.sub(f"^{_UUID}", lambda customer: names.of(UUID(customer[0]))[:MOST_LETTERS], text)
    return task


def in_list(task: Any) -> Any:
    """Format a task from `in_short` for the list: its exception starts with the reason and the next try."""
    told = _NEXT_TRY.search(task.exception or "")
    if told:
        task.exception = f"{told['reason']}, next try {told['time']} UTC: {task.exception}"
    if task.exception and len(task.exception) > MOST_OF_EXCEPTION:
        task.exception = f"{task.exception[:MOST_OF_EXCEPTION]}…"
    return task


def run_of(task: Any) -> UUID | None:
    """The run that a task of Flower's is a step of; None of another task."""
    named = re.search(rf"(?:/|run_id\W+)({_UUID})", str(getattr(task, "kwargs", "")))
    return UUID(named[1]) if named else None
