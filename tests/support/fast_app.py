"""The product's app with shorter waits, for tests with real processes: `celery -A support.fast_app worker | beat`.

Only constants that are not settings are replaced here; settings come from the environment as everywhere.
"""

from functools import partial

import worker.ledger.claims
import worker.ledger.nights
import worker.lms.client
import worker.settings
from worker.shutdown import Patience

worker.settings.CONNECT_SECONDS = 1  # before any settings are loaded
worker.lms.client.CONNECT_TIMEOUT = 1.0
vars(worker.lms.client)["Patience"] = partial(Patience, first_wait=0.05, longest_wait=0.5)
worker.ledger.claims.QUEUED_SECONDS = 1
worker.ledger.nights.LEASE_SECONDS = 2

from worker.celery import app  # noqa: E402

app.conf.beat_schedule["reconcile"]["schedule"] = 0.5
