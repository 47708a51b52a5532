"""The Celery app of the chaos worker and beat: the product's own, with shorter waits and the numbered points.

`celery -A chaos.app worker | beat`. Only constants that are not settings are replaced here; the settings themselves
come from the environment as everywhere.
"""

import faulthandler
import signal
import sys
from functools import partial
from typing import Any

import worker.db.transactions
import worker.ledger.claims
import worker.ledger.nights
import worker.lms.client
import worker.settings
import worker.shutdown


def _replace(module: Any, name: str, value: Any) -> None:
    if not hasattr(module, name):
        raise AttributeError(
            f"{module.__name__} has no {name} any more: tell chaos.app how its waits are shortened now"
        )
    setattr(module, name, value)


_replace(worker.settings, "CONNECT_SECONDS", 1)  # before any settings are loaded
_replace(worker.lms.client, "CONNECT_TIMEOUT", 1.0)
_replace(worker.ledger.claims, "QUEUED_SECONDS", 4)
_replace(worker.ledger.nights, "LEASE_SECONDS", 4)
_replace(worker.db.transactions, "IDLE_SECONDS", 12)
_replace(worker.db.transactions, "LOCK_SECONDS", 2)
_patience = partial(worker.shutdown.Patience, first_wait=0.05, longest_wait=0.5, longest_throttle=5.0)
_patience()  # fails here when it has no such fields any more
_replace(worker.lms.client, "Patience", _patience)

import tasks  # noqa: E402
from chaos import points  # noqa: E402
from worker.celery import app  # noqa: E402

_replace(worker.celery, "SHUTDOWN_SECONDS", 5)
_replace(tasks, "_BROKER_RETRY_SECONDS", 1)
app.conf.beat_schedule["reconcile"]["schedule"] = 1.0
# How often Redis is searched for messages that nobody acknowledged: 100 s else, far above our visibility time-out.
app.conf.broker_transport_options |= {"unacked_restore_interval": 2, "unacked_restore_throttle": 1}

if "worker" in sys.argv:  # beat's publications are not points of the worker's
    points.install()

faulthandler.register(signal.SIGUSR2, all_threads=True)  # one that does not end says in its log where it stands
