"""The product's app with shorter waits, for tests with real processes: `celery -A support.fast_app worker | beat`.

Only constants that are not settings are replaced here; settings come from the environment as everywhere.
"""

from functools import partial

import tasks  # noqa: F401, so that all modules are there
from support.shorten import shorten
from worker.celery import app
from worker.lms.patience import Patience

shorten(
    {
        "worker.settings.CONNECT_SECONDS": 1,
        "worker.lms.answer.CONNECT_TIMEOUT": 1.0,
        "worker.lms.transport.CONNECT_TIMEOUT": 1.0,
        "worker.lms.patience.Patience": partial(Patience, first_wait=0.05, in_place=3.0),
        "worker.ledger.stalled.QUEUED_SECONDS": 1,
        "worker.ledger.waits.PAUSE_SECONDS": 1,
        "tasks._OTHER_LEDGER_SECONDS": 1,
        "worker.ledger.nights.NIGHT_LEASE_SECONDS": 5,
    }
)
app.conf.beat_schedule["reconcile"]["schedule"] = 0.5
