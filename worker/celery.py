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
    """Stop a process that would import other modules named `worker`, `tasks` or `celeryconfig`; show their path."""
    ours = Path(__file__).resolve().parents[1]
    with cwd_in_path():  # where Celery looks first
        for name in ("worker", "tasks", "celeryconfig"):
            spec = find_spec(name)
            found = Path(spec.origin).resolve() if spec and spec.origin else None
            if found not in (ours / name / "__init__.py", ours / f"{name}.py"):
                what = f"the module {name} was found at {found}, not in {ours}"
                exit_with(
                    Unusable(
                        what,
                        f"start in another folder (cd ~), and remove the folder of the other {name} from PYTHONPATH",
                    )
                )


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
    """Add the task's id to each of its log lines."""
    structlog.contextvars.bind_contextvars(task=task_id)


@signals.task_postrun.connect
def forget_the_task(**_: Any) -> None:
    """Remove this task's id from the log lines after it."""
    structlog.contextvars.clear_contextvars()


@signals.worker_init.connect
@signals.beat_init.connect
def refuse_to_start(signal: Any, **_: Any) -> None:
    """Stop a worker or beat with a remedy if a setting is wrong, or the database or the broker refuses it.

    It starts even if they do not answer: they may later. Beat only publishes: it uses no database and no LMS.
    """
    from tasks.broker import check_broker

    worker = signal is signals.worker_init
    try:
        given = load_settings(broker=True) if worker else load(BeatSettings)
        if worker:
            logs.configure(given.LOG_FORMAT)  # Celery configures a worker's logs only later, and beat's before
        for what, remedy in exposed(dict(given)):
            log.warning(what, remedy=remedy)
        if isinstance(given, Settings):
            _check_database(given)
        with suppress(Away):  # Celery retries, and logs it
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


CONTROL = ("ControlProcess", "EndsWithItsWorker", "NotesThatItIsAlive")
app.steps["worker"].update({HandBack, *(f"tasks.control:{step}" for step in CONTROL)})
