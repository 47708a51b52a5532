"""The Celery app of the chaos worker and beat: the product's own, with shorter waits and the numbered points.

`celery -A chaos.app worker | beat`. Only constants that are not settings are replaced here; the settings themselves
come from the environment as everywhere.
"""

import faulthandler
import signal
import sys
from functools import partial

from support.shorten import shorten

import tasks  # noqa: F401, so that all modules are there
from chaos import points
from worker.celery import app
from worker.lms.patience import Patience

shorten(
    {
        "worker.settings.CONNECT_SECONDS": 1,
        "worker.lms.answer.CONNECT_TIMEOUT": 1.0,
        "worker.lms.transport.CONNECT_TIMEOUT": 1.0,
        "worker.lms.patience.Patience": partial(Patience, first_wait=0.05, in_place=0.5),
        "worker.ledger.stalled.QUEUED_SECONDS": 4,
        "worker.ledger.waits.PAUSE_SECONDS": 1,
        "worker.ledger.nights.NIGHT_LEASE_SECONDS": 4,
        "worker.db.sessions.IDLE_SECONDS": 12,
        "worker.db.sessions.LOCK_SECONDS": 2,
        "worker.celery.SHUTDOWN_SECONDS": 5,
        "tasks._BROKER_RETRY_SECONDS": 1,
        "tasks._OTHER_LEDGER_SECONDS": 1,
    }
)
app.conf.beat_schedule["reconcile"]["schedule"] = 1.0
if str(app.conf.broker_url).startswith("redis"):
    # How often it is searched for messages that nobody acknowledged: 100 s else, far above our visibility time-out.
    app.conf.broker_transport_options |= {"unacked_restore_interval": 2, "unacked_restore_throttle": 1}

if "worker" in sys.argv:  # beat's publications are not points of the worker's
    points.install()

faulthandler.register(signal.SIGUSR2, all_threads=True)  # one that does not end says in its log where it stands
