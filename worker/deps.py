"""The composition root: makes the database, the LMS client and the threads; everything else is handed them."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

from worker import shutdown
from worker.db.transactions import Database, make_engine
from worker.ledger import rate_limit
from worker.ledger.lms_calls import Calls
from worker.license_manager.segment import Lifecycle
from worker.lms.client import LmsClient
from worker.lms.host_slots import Slots, folder_of
from worker.settings import Settings, load_settings
from worker.shutdown import Patience


@dataclass(frozen=True)
class Deps:
    """What the steps are handed."""

    settings: Settings
    database: Database
    lms: LmsClient
    executor: ThreadPoolExecutor
    calls: Calls
    lifecycle: Lifecycle
    slots: Slots

    def close(self) -> None:
        """Close every connection and end the threads."""
        self.executor.shutdown()
        self.lms.close()
        self.slots.close()
        self.database.engine.dispose()


def make_deps(settings: Settings, patience: Patience | None = None) -> Deps:
    """Wire everything up from settings; connects to nothing yet. `patience` replaces the LMS client's own."""
    database = Database(make_engine(settings.DATABASE_URL, connections=settings.LMS_PARALLEL_REQUESTS + 1))
    calls = Calls()
    lms = LmsClient(
        settings.LMS_URL,
        settings.SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT or settings.LMS_URL,
        settings.BACKEND_SERVICE_EDX_OAUTH2_KEY,
        settings.BACKEND_SERVICE_EDX_OAUTH2_SECRET,
        downgrade_timeout=settings.BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS,
        unlink_timeout=settings.BULK_UNLINK_REQUEST_TIMEOUT_SECONDS,
        patience=patience,
        sleep=shutdown.sleep,
        observe=calls.observe,
        pace=partial(rate_limit.seconds_to_next_call, database, settings.LMS_REQUESTS_PER_MINUTE),
    )
    executor = ThreadPoolExecutor(settings.LMS_PARALLEL_REQUESTS, thread_name_prefix="lms")
    # A step goes on for half of a task's time: with a quarter besides, it ends before the task is killed.
    lifecycle = Lifecycle(settings.SEGMENT_KEY, settings.SEGMENT_INCLUDE_EMAIL, settings.TASK_TIME_LIMIT_SECONDS / 4)
    slots = Slots(folder_of(settings.LMS_URL), settings.LMS_PARALLEL_REQUESTS_PER_HOST)
    return Deps(settings, database, lms, executor, calls, lifecycle, slots)


@cache
def get_deps() -> Deps:
    """This process's own wiring, made when first asked for: after the fork, in a worker."""
    return make_deps(load_settings())


os.register_at_fork(after_in_child=get_deps.cache_clear)
