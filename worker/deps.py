"""The composition root: makes the database, the LMS client and the threads, and passes them to everything else."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Any
from uuid import UUID

from worker.db.engine import make_engine
from worker.db.transactions import Database
from worker.ledger import limits
from worker.ledger.identity import ledger_id
from worker.ledger.lms_calls import CallTimings
from worker.license_manager.plan_history import PlanHistory
from worker.license_manager.segment import Lifecycle
from worker.lms.client import LmsClient
from worker.lms.patience import Patience
from worker.settings import Settings, load_settings
from worker.shutdown import Shutdown

# Shared by all processes of a worker: made before they are forked.
SHUTDOWN = Shutdown()


@dataclass(frozen=True)
class Deps:
    """The dependencies of the steps."""

    settings: Settings
    database: Database
    lms: LmsClient
    executor: ThreadPoolExecutor
    calls: CallTimings
    plan_history: PlanHistory
    lifecycle: Lifecycle
    shutdown: Shutdown

    @cached_property
    def ledger(self) -> UUID | None:
        """The id of the database's ledger. Raises Unavailable."""
        return ledger_id(self.database)

    def close(self) -> None:
        """Close every connection and end the threads."""
        self.executor.shutdown()
        self.lms.close()
        self.database.engine.dispose()


def make_deps(settings: Settings, patience: Patience | None = None, shutdown: Shutdown | None = None) -> Deps:
    """Wire everything up from settings; connects to nothing yet. `patience` replaces the LMS client's default."""
    shutdown = shutdown or Shutdown()
    database = Database(make_engine(settings.DATABASE_URL, connections=settings.LMS_PARALLEL_REQUESTS + 1))
    calls = CallTimings()
    lms = make_lms_client(
        settings,
        patience=patience or Patience(),
        sleep=shutdown.sleep,
        observe=calls.observe,
        next_call_in=partial(limits.book_next_call, database, settings.calls_per_minute),
    )
    # A step takes half of a task's time limit; with a quarter more it still ends before the task is killed.
    seconds = settings.TASK_TIME_LIMIT_SECONDS / 4
    return Deps(
        settings=settings,
        database=database,
        lms=lms,
        executor=ThreadPoolExecutor(settings.LMS_PARALLEL_REQUESTS, thread_name_prefix="lms"),
        calls=calls,
        plan_history=PlanHistory(),
        lifecycle=Lifecycle(settings.SEGMENT_KEY, settings.SEGMENT_INCLUDE_EMAIL, seconds),
        shutdown=shutdown,
    )


def make_lms_client(settings: Settings, **options: Any) -> LmsClient:
    """Make the LMS client of these settings; `options` are those of LmsClient."""
    return LmsClient(
        settings.LMS_URL,
        settings.SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT or settings.LMS_URL,
        settings.BACKEND_SERVICE_EDX_OAUTH2_KEY,
        settings.BACKEND_SERVICE_EDX_OAUTH2_SECRET,
        downgrade_timeout=settings.BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS,
        unlink_timeout=settings.BULK_UNLINK_REQUEST_TIMEOUT_SECONDS,
        **options,
    )


@cache
def get_deps() -> Deps:
    """This process's own wiring, made when first asked for: after the fork, in a worker."""
    return make_deps(load_settings(), shutdown=SHUTDOWN)


os.register_at_fork(after_in_child=get_deps.cache_clear)
