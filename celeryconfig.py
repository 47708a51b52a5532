"""Celery's settings and the beat schedule. Names tasks by string: reading it imports settings, nothing else of ours."""

from typing import Any

from celery.schedules import ParseException, crontab

from worker.errors import Unusable, WrongSetting, exit_with
from worker.settings import CONTROL_QUEUE, STEPS_QUEUE, TRIGGERS, CelerySettings, load_settings
from worker.settings.sources import load


def _settings() -> CelerySettings:
    try:
        return load(CelerySettings)
    except Unusable:
        pass
    try:
        return load_settings(broker=True)  # reports all wrong settings together
    except Unusable as error:
        exit_with(error)


def _nightly(settings: CelerySettings) -> crontab:
    try:
        return crontab.from_string(settings.NIGHTLY_SCHEDULE)
    except (ValueError, ParseException) as error:
        exit_with(WrongSetting(f"NIGHTLY_SCHEDULE: {error}", "Give five cron fields, for example 0 2 * * *"))


_s = _settings()

# Only JSON goes over the wire: ids, phases and counts.
task_serializer = "json"
result_serializer = "json"
accept_content = ["json"]

broker_url = _s.CELERY_BROKER_URL or None
result_backend = _s.result_backend
# Redis expires results by itself. For any other backend beat would send Celery's cleanup task, which our workers drop.
result_expires = 7 * 24 * 3600 if (result_backend or "").startswith("redis") else None
result_extended = True
imports = ["tasks"]
task_default_queue = STEPS_QUEUE
# Tasks that start runs have a queue and a process of their own (tasks/control.py): all others may be busy in a step.
task_routes = {trigger: {"queue": CONTROL_QUEUE} for trigger in TRIGGERS}
timezone = _s.TIME_ZONE
enable_utc = True

# A task is acknowledged when it has ended. If its process is killed, the broker does not redeliver it at once: the
# run's lease must lapse first. Then `reconcile` resumes the run, and counts how often it did.
task_acks_late = True
task_reject_on_worker_lost = False
worker_prefetch_multiplier = 1
worker_consumer = "tasks.consumer:Consumer"
worker_cancel_long_running_tasks_on_connection_loss = False
task_time_limit = _s.TASK_TIME_LIMIT_SECONDS
broker_connection_retry_on_startup = True
broker_connection_max_retries = None  # a broker that is down ends no worker
# Retry a failed publication for half a minute, so that a restart of the broker loses no message.
task_publish_retry_policy = {"max_retries": 12, "interval_start": 0.2, "interval_step": 0.5, "interval_max": 4}
_redis: dict[str, Any] = {
    "visibility_timeout": _s.VISIBILITY_TIMEOUT_SECONDS,
    "global_keyprefix": "license_expiry:",  # not to share unacknowledged messages with another app in this database
    "socket_timeout": 30,
    "socket_connect_timeout": 10,
    "socket_keepalive": True,
    "health_check_interval": 25,
}
_options = {"redis": _redis, "rediss": _redis, "amqp": {"confirm_publish": True}, "amqps": {"confirm_publish": True}}
# py-amqp checks the certificate by default, but its host name only with server_hostname: None is the URL's.
broker_use_ssl = {"server_hostname": None} if _s.CELERY_BROKER_URL.startswith("amqps:") else None
broker_transport_options = _options.get(_s.CELERY_BROKER_URL.partition(":")[0], {})
result_backend_transport_options = _redis
redis_socket_timeout = _redis["socket_timeout"]
redis_socket_connect_timeout = _redis["socket_connect_timeout"]
redis_socket_keepalive = True
redis_backend_health_check_interval = _redis["health_check_interval"]

# For Flower.
worker_send_task_events = True
task_send_sent_event = True
task_track_started = True

beat_scheduler = "tasks.beat:Scheduler"
beat_max_loop_interval = 60  # how often beat records that it is alive (tasks/alive.py)
# No message expires. A worker whose clock is an hour fast would drop every message. After an outage, each message that
# piled up costs one query.
beat_schedule = {
    "nightly": {
        "task": "license_expiry.run_nightly",
        "schedule": _nightly(_s),
        "options": {"headers": {"scheduled": True}},
    },
    "reconcile": {"task": "license_expiry.reconcile", "schedule": 300.0},
}
