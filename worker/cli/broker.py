"""The command's use of Celery: imported only when one of these is called."""

import io
from collections.abc import Callable
from contextlib import redirect_stderr
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

from worker.errors import Unusable
from worker.runs.start import Publish


def celery_app() -> Any:
    """Our Celery app, its settings read; raises Unusable."""
    from worker.celery import app

    with redirect_stderr(io.StringIO()):
        try:
            _ = app.conf.beat_schedule
        except SystemExit as end:  # of celeryconfig.py, which has printed the error
            if isinstance(end.__cause__, Unusable):
                raise end.__cause__ from None
            raise
    return app


def next_night() -> Callable[[datetime], datetime]:
    """Return a function, for any thread, that gives the scheduled night after a moment; both UTC."""
    from tasks.schedule import following_night

    app = celery_app()
    schedule = app.conf.beat_schedule["nightly"]["schedule"]
    schedule.app = app  # for its time zone: each thread has a current app of its own
    return partial(following_night, schedule)


def publisher(ledger: UUID | None) -> Publish:
    """Return tasks.publish for this ledger, once the broker has taken a message; raises Unusable."""
    from kombu.exceptions import OperationalError

    from tasks import publish
    from tasks.broker import check_broker, publish_failed

    try:
        check_broker(celery_app(), listens=False)
    except Unusable as error:
        raise Unusable(error.what, f"{error.remedy}; or use run --here, which needs no broker") from None

    def checked(enterprise: UUID, run_id: UUID, number: int) -> None:
        try:
            publish(enterprise, run_id, number, ledger)
        except OperationalError as error:
            what, remedy = publish_failed(celery_app(), error)
            more = f"Run {run_id} stays queued: reconcile publishes it again. For the others, run the command again"
            raise Unusable(what, f"{remedy}. {more}") from None

    return checked
