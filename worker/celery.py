"""The Celery app, for `celery -A worker worker | beat | flower`; its settings are in celeryconfig.py."""

import sys
from typing import Any

from celery import Celery
from celery.signals import beat_init, worker_init

from worker.errors import Unusable
from worker.settings import load_settings

app = Celery("license_expiry")
app.config_from_object("celeryconfig")


@worker_init.connect
@beat_init.connect
def refuse_wrong_settings(**_: Any) -> None:
    """Stop a worker or beat before it starts when a setting is wrong, saying which and what to do."""
    try:
        load_settings(broker=True)
    except Unusable as error:
        print(error, file=sys.stderr)  # noqa: T201, before any logging
        raise SystemExit(2) from None
