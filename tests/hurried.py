"""The product's app with shorter waits, for tests with real processes: `celery -A hurried worker | beat`.

Only constants that are not settings are replaced here; settings come from the environment as everywhere.
"""

from functools import partial

import worker.ledger
import worker.lms
import worker.nights
import worker.settings
from worker.waits import Patience

worker.settings.CONNECT_SECONDS = 1  # before any settings are loaded
worker.lms.CONNECT_TIMEOUT = 1.0
vars(worker.lms)["Patience"] = partial(Patience, first_wait=0.05, longest_wait=0.5)
worker.ledger.QUEUED_SECONDS = 1
worker.nights.LEASE_SECONDS = 2

from worker.celery import app  # noqa: E402

app.conf.beat_schedule["reconcile"]["schedule"] = 0.5
