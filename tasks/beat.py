"""Beat's scheduler: replaces a schedule file that it cannot read. The ledger knows which nights began."""

import shelve
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery.beat import PersistentScheduler
from kombu.utils.objects import cached_property

from tasks.alive import note_alive, noting
from worker.logs import get_logger

log = get_logger(__name__)


class Scheduler(PersistentScheduler):
    """Celery's scheduler removes a file that it cannot open, but exits on one whose contents it cannot read."""

    schedule_filename: str
    persistence: Any
    _remove_db: Callable[[], None]

    @cached_property
    def connection(self) -> Any:
        """Celery's own, which notes with each try to connect that beat is alive."""
        return noting("beat", self.app.connection_for_write())

    def tick(self, *arguments: Any, **names: Any) -> Any:
        """Do what is due (Celery's hook), and note that beat is alive, every `beat_max_loop_interval` at least."""
        note_alive("beat")
        return super().tick(*arguments, **names)

    def setup_schedule(self) -> None:
        """Read the schedule file (Celery's hook). If that fails, start a new one; else keep the schedule in memory."""
        try:
            super().setup_schedule()
            return
        except Exception as error:  # each kind of dbm, and pickle, has its own
            what = "beat starts a new schedule file: the old one cannot be read. The ledger knows which nights began"
            log.warning(what, file=self.schedule_filename, error=repr(error))
        with suppress(OSError):
            self._remove_db()
        try:
            super().setup_schedule()
        except Exception as error:
            remedy = "give --schedule a file that beat may write"
            log.warning("beat keeps no schedule file", file=self.schedule_filename, error=repr(error), remedy=remedy)
            self.persistence = _InMemory
            super().setup_schedule()


class _InMemory:
    @staticmethod
    def open(*_: Any, **__: Any) -> shelve.Shelf[Any]:
        return shelve.Shelf({}, writeback=True)
