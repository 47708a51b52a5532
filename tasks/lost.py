"""The error of a task whose process was lost, for Flower, the result and the log: says when the run is resumed."""

from datetime import UTC, datetime, timedelta
from typing import Any

from billiard.exceptions import WorkerLostError
from celery.worker.request import Request as CeleryRequest

from worker.settings import load_settings


class Request(CeleryRequest):
    """A task as the worker's main process knows it (Celery's Task.Request)."""

    def on_failure(self, exc_info: Any, *arguments: Any, **names: Any) -> Any:
        """Put a sentence in place of Celery's error when the process was lost (Celery's hook)."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, WorkerLostError):
            until = datetime.now(UTC) + timedelta(seconds=load_settings().LEASE_SECONDS)
            told = f"the process that ran this task was lost ({str(error).partition(' Job:')[0]})"
            told += f"; its run is resumed after {until:%Y-%m-%d %H:%M:%S} UTC, when its lease has ended, by reconcile"
            exc_info.exception = WorkerLostError(f"{told}, which beat sends every 5 minutes")
        return super().on_failure(exc_info, *arguments, **names)
