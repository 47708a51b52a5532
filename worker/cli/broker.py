"""Celery, as the command needs it: loaded only when one of these is called."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
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
    """Return what gives the scheduled night after a moment, both UTC; it may be called in any thread."""
    from tasks.schedule import following_night

    app = celery_app()
    schedule = app.conf.beat_schedule["nightly"]["schedule"]
    schedule.app = app  # for its time zone: each thread has a current app of its own
    return partial(following_night, schedule)


@contextmanager
def connected() -> Iterator[Any]:
    """A connection to the broker, which has let us in; raises Unusable."""
    from kombu.exceptions import OperationalError

    with celery_app().connection_for_write() as connection:
        try:
            connection.ensure_connection(max_retries=1, timeout=5)
        except (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors) as error:
            what = f"The broker {connection.as_uri()} cannot be used ({error})"
            remedy = "check CELERY_BROKER_URL and the broker; or use run --here, which needs none"
            raise Unusable(what, remedy) from None
        yield connection


def publisher() -> Publish:
    """Return tasks.publish, once the broker has answered; raises Unusable."""
    from kombu.exceptions import OperationalError

    from tasks import publish

    with connected():
        pass

    def checked(enterprise: UUID, run_id: UUID) -> None:
        try:
            publish(enterprise, run_id)
        except OperationalError as error:
            remedy = (
                f"check CELERY_BROKER_URL and the broker. Run {run_id} stays queued: reconcile publishes it again. For "
                "the enterprises after it, start anew"
            )
            raise Unusable(f"The broker went away ({error})", remedy) from None

    return checked
