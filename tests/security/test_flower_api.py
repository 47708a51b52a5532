"""Flower's HTTP API gives a task its arguments and a time, and nothing else."""

import json
from itertools import product
from typing import Any

import redis
import requests
from support.messages import following
from support.processes import OPERATOR, WORKER_SQLITE

QUEUES = ("license_expiry:license_expiry.control", "license_expiry:license_expiry")
OPTIONS: dict[str, Any] = {
    "headers": {"scheduled": True},
    "link": following(),
    "link_error": following(),
    "chain": [following()],
    "chord": following(),
    "time_limit": 1,
    "soft_time_limit": 1,
    "retries": 10**6,
    "queue": "nobody_reads",
    "routing_key": "nobody_reads",
    "exchange": "nobody_reads",
    "serializer": "pickle",
    "compression": "zlib",
    "priority": 9,
    "shadow": "another name",
    "ignore_result": True,
    "stamped_headers": ["x"],
    "root_id": "x",
    "producer": "x",
    "connection": "x",
}


@WORKER_SQLITE
def test_what_could_change_how_a_task_is_sent_is_refused_with_what_may_be_given(
    redis_server: redis.Redis, flower: str
) -> None:
    def post(how: str, **options: Any) -> requests.Response:
        body = json.dumps({"kwargs": {"dry_run": True}, **options})
        address = f"{flower}/api/task/{how}/license_expiry.run_nightly"
        return requests.post(address, data=body, auth=OPERATOR, timeout=30)

    for how, (name, value) in product(("apply", "async-apply", "send-task"), OPTIONS.items()):
        answer = post(how, **{name: value})
        assert answer.status_code == 400, (how, name)
        assert "give only args, kwargs, countdown, eta" in answer.text, (how, name)
    assert sum(map(redis_server.llen, QUEUES)) == 0
    for name, value in {"countdown": 5, "eta": "2026-12-01 20:00:00.0", "expires": 60, "task_id": "mine"}.items():
        assert post("async-apply", **{name: value}).ok, name
    assert sum(map(redis_server.llen, QUEUES)) == 4
