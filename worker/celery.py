"""The Celery app, for `celery -A worker worker | beat | flower`; its settings are in celeryconfig.py."""

import sys
from typing import Any

import structlog
from celery import Celery, bootsteps, signals

from worker import flower, logs, settings, shutdown
from worker.db.engine import make_engine
from worker.deps import SHUTDOWN
from worker.errors import Unusable
from worker.settings import CelerySettings, load_settings
from worker.settings_sources import load

SHUTDOWN_SECONDS = 20

app = Celery("license_expiry")
app.config_from_object("celeryconfig")
signals.import_modules.connect(flower.guard)


@signals.setup_logging.connect
def log_in_our_way(loglevel: int, logfile: str | None, **_: Any) -> None:
    """Configure the logging of a worker or beat, in place of Celery."""
    logs.configure(load(CelerySettings).LOG_FORMAT, loglevel, logfile)


@signals.task_prerun.connect
def name_the_task(task_id: str, **_: Any) -> None:
    """Let each log line of a task carry its id."""
    structlog.contextvars.bind_contextvars(task=task_id)


@signals.task_postrun.connect
def forget_the_task(**_: Any) -> None:
    """Let nothing of this task be on the next one's lines."""
    structlog.contextvars.clear_contextvars()


@signals.worker_init.connect
@signals.beat_init.connect
def refuse_wrong_settings(**_: Any) -> None:
    """Stop a worker or beat before it starts when a setting is wrong, saying which and what to do."""
    try:
        make_engine(load_settings(broker=True).DATABASE_URL)  # which imports its driver, once for all processes
    except Unusable as error:
        print(error, file=sys.stderr)  # noqa: T201, before any logging
        raise SystemExit(2) from None


@signals.worker_shutting_down.connect
def hand_back(**_: Any) -> None:
    """Let the steps of a worker that is told to end finish the calls in flight and hand the rest back.

    Celery's own shutdown can hang, on a child that never learns of it or on a broker that is away: it is cut short
    once all calls have had their time.
    """
    SHUTDOWN.begin()
    given = load_settings()
    calls = max(given.BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS, given.BULK_UNLINK_REQUEST_TIMEOUT_SECONDS)
    shutdown.kill_after(settings.CONNECT_SECONDS + calls + SHUTDOWN_SECONDS)


class HandBack(bootsteps.StartStopStep):
    """Does the same where no signal is sent: Flower's and `celery control`'s shutdown, and SIGHUP."""

    def close(self, worker: Any) -> None:
        """Celery's hook: the worker begins to stop."""
        hand_back()


app.steps["worker"].add(HandBack)
