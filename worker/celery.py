"""The Celery app, for `celery -A worker worker | beat | flower`; its settings are in celeryconfig.py."""

from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog
from celery import Celery, bootsteps, signals
from celery.utils.imports import cwd_in_path

from worker import logs, settings, shutdown
from worker.db.engine import make_engine
from worker.db.writes import check_answers
from worker.deps import SHUTDOWN
from worker.errors import Away, Unusable, exit_with
from worker.flower import guard
from worker.settings import BeatSettings, CelerySettings, Settings, load_settings
from worker.settings.network import exposed
from worker.settings.sources import load

SHUTDOWN_SECONDS = 20

log = logs.get_logger(__name__)


def _check_neighbors() -> None:
    """Stop a process that would run somebody else's code under the common names of ours, saying where that lies."""
    ours = Path(__file__).resolve().parents[1]
    with cwd_in_path():  # where Celery looks first
        for name in ("worker", "tasks", "celeryconfig"):
            spec = find_spec(name)
            found = Path(spec.origin).resolve() if spec and spec.origin else None
            if found not in (ours / name / "__init__.py", ours / f"{name}.py"):
                what = f"{name} was found at {found}, and not in {ours}, where this code lies"
                exit_with(Unusable(what, f"start in another folder, and let PYTHONPATH lead to no other {name}"))


_check_neighbors()
app = Celery("license_expiry")
app.config_from_object("celeryconfig")
signals.import_modules.connect(guard.guard)
guard.mount_pages()


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
def refuse_to_start(signal: Any, **_: Any) -> None:
    """Stop a worker or beat, saying what to do, when a setting is wrong, or when the database or the broker refuses it.

    It starts when these do not answer: they may later. Beat only publishes: it has no database and no LMS.
    """
    from tasks.broker import check_broker

    worker = signal is signals.worker_init
    try:
        given = load_settings(broker=True) if worker else load(BeatSettings)
        if worker:
            logs.configure(given.LOG_FORMAT)  # which Celery asks for only later, and beat has asked for
        for what, remedy in exposed(dict(given)):
            log.warning(what, remedy=remedy)
        if isinstance(given, Settings):
            _check_database(given)
        with suppress(Away):  # Celery tries it again, and says so
            check_broker(app, listens=worker)
    except Unusable as error:
        exit_with(error)


def _check_database(given: Settings) -> None:
    try:
        check_answers(make_engine(given.DATABASE_URL))  # its driver is imported once, for all processes
    except Away as error:
        log.warning("the database does not answer", error=str(error))


@signals.worker_shutting_down.connect
def hand_back(**_: Any) -> None:
    """Shut down: steps finish their calls in flight and hand their runs back.

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


app.steps["worker"].update({HandBack, "tasks.control:ControlProcess", "tasks.control:EndsWithItsWorker"})
