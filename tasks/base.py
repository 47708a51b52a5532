"""Base classes of the five tasks: they log failures, and show no text of an error that is not ours."""

from inspect import signature
from typing import Any, ClassVar

from celery import Task
from celery.exceptions import TaskPredicate

from worker.errors import BadArgument, LicenseExpiryError, Unexpected
from worker.logs import get_logger
from worker.masking import kind_of

log = get_logger(__name__)


class OurTask(Task[Any, Any]):
    """Base class of the tasks: Flower, the result and the log show only our own texts of a failure."""

    Request = "tasks.lost:Request"
    logged: ClassVar[type[LicenseExpiryError]] = BadArgument  # the failures it logs; a step logs all others itself

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do the task (Celery's hook). Raises BadArgument for an unknown argument, Unexpected for another error."""
        try:
            signature(self.run).bind(*args, **kwargs)
        except TypeError as error:
            raise BadArgument(f"{self.name}: {error}", "docs/reference/tasks.md names the arguments") from None
        try:
            return self.run(*args, **kwargs)
        except (LicenseExpiryError, TaskPredicate):
            raise
        except Exception as error:
            log.exception("an error of our own", name=self.name)
            what = f"an error of our own, {kind_of(error)}"
            raise Unexpected(what, "the worker's log has its traceback: report it with that") from None

    def on_failure(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Log a failure of a kind that Celery does not (its hook)."""
        if isinstance(exc, self.logged):
            log.error("task failed", name=self.name, error=str(exc))


class Trigger(OurTask):
    """Base class of the tasks that start runs: logs their failures and retries, which no step does."""

    logged = LicenseExpiryError

    def on_retry(self, exc: Exception, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Log that the task is retried (Celery's hook)."""
        log.warning("task retried", name=self.name, error=str(exc))
