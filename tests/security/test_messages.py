"""No message ends a worker, starts anything that it does not ask for, or goes without a line."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from subprocess import Popen
from typing import Any
from uuid import uuid4

import pytest
import redis
from hypothesis import HealthCheck, given, settings, strategies as st
from kombu import Connection
from kombu.message import Message
from sqlalchemy import Engine
from support.eventually import eventually
from support.messages import BODIES, TASK, following, message, odd, plain, raw_odd, states
from support.processes import WORKER_SQLITE, ended, runs

from simulator.lms.server import Simulator
from simulator.processes import Processes
from tasks.consumer import complaint_about
from worker.ledger.order import DOWNGRADE

CONTROL = "license_expiry:license_expiry.control"
ODD = list(odd())


def received(raw: dict[str, Any]) -> Message:
    """The message as kombu gives it to a worker."""
    with Connection("memory://") as connection:
        channel = connection.channel()
        return channel.Message(raw, channel=channel, accept={"application/json"})  # type: ignore[no-any-return, attr-defined]


def test_what_celery_writes_for_us_is_ours() -> None:
    assert complaint_about(received(message())) is None
    assert complaint_about(received(message(plain(callbacks=[], errbacks=[]), {"timelimit": [0, None]}))) is None
    later = {"eta": (datetime.now(UTC) + timedelta(days=1)).isoformat(), "expires": "2026-12-01T20:00:00Z"}
    assert complaint_about(received(message(headers=later | {"scheduled": True, "timelimit": [1.5, None]}))) is None
    for more in ({}, {"replaced_task_nesting": 1}):
        sent = following() | {"options": {"task_id": str(uuid4()), "reply_to": str(uuid4())} | more}
        assert complaint_about(received(message(plain(chain=[sent]), later | {"task": DOWNGRADE.task}))) is None
    traced = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "sentry-trace": "x"}
    assert complaint_about(received(message(headers=traced))) is None, "what watches Celery has headers of its own"


@pytest.mark.parametrize("number", range(len(ODD)))
def test_each_odd_message_is_dropped_with_a_complaint_that_has_nothing_of_it(number: int) -> None:
    complaint = complaint_about(received(ODD[number]))
    assert complaint, ODD[number]
    assert len(complaint) < 200
    assert "xxx" not in complaint


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(message()["headers"])), value=ANYTHING, body=ANYTHING | st.binary())
def test_a_message_is_judged_without_an_error_whatever_stands_in_it(name: str, value: Any, body: Any) -> None:
    complaint_about(received(message(headers={name: value})))
    assert complaint_about(received(message(body if body is not None else 5))), "nothing drawn is a body of ours"


@WORKER_SQLITE
def test_no_message_ends_a_worker_and_each_is_reported_in_a_line(
    engine: Engine, lms: Simulator, attacked: Popen[bytes], redis_server: redis.Redis, processes: Processes
) -> None:
    for raw in ODD:
        redis_server.lpush(CONTROL, json.dumps(raw))

    def dropped() -> int:
        return processes.log("worker").count("message dropped: not a license-expiry task")

    eventually(lambda: dropped() >= len(ODD), 60, what="a line for each")
    assert dropped() == len(ODD)
    for headers in ({"retries": 10**6}, {"timelimit": [1e-9, None]}, {"timelimit": [10**9, 1e-9]}, {"expires": "2026"}):
        redis_server.lpush(CONTROL, json.dumps(message(headers=headers)))  # taken, though odd
    redis_server.lpush(CONTROL, json.dumps(message()))
    triggered = {"SUCCESS": 4, "REVOKED": 1}  # the last: it expired when 2026 began
    eventually(lambda: Counter(states(redis_server, TASK).values()) == triggered, what="the triggers that are ours")
    eventually(lambda: runs(engine) and ended(engine), what="their dry runs")
    assert "time limit" not in processes.log("worker"), "the worker's own holds, whatever the sender says"
    assert "Discarding revoked task" in processes.log("worker")
    assert attacked.poll() is None
    assert {run.dry_run for run in runs(engine)} == {True}
    assert lms.calls("downgrade") == lms.calls("unlink") == []
    eventually(lambda: redis_server.hlen("license_expiry:unacked") == 0, what="an end of what was begun")


@WORKER_SQLITE
def test_what_is_no_message_at_all_does_not_end_a_worker_either(
    engine: Engine, attacked: Popen[bytes], redis_server: redis.Redis, processes: Processes
) -> None:
    raw = list(raw_odd())
    redis_server.lpush(CONTROL, *raw)
    redis_server.lpush(CONTROL, json.dumps(message()))
    eventually(lambda: [run for run in runs(engine) if run.ended_at], what="the dry run behind them")
    assert processes.log("worker").count("message dropped: ") == len(raw)
    assert attacked.poll() is None
    eventually(lambda: redis_server.hlen("license_expiry:unacked") == 0, what="an end of what was begun")


@WORKER_SQLITE
def test_no_command_or_event_that_is_odd_ends_a_worker(
    engine: Engine, attacked: Popen[bytes], redis_server: redis.Redis
) -> None:
    commands = [plain(), {"method": "no_such"}, {"method": 5, "arguments": []}, {"arguments": {"a": 1}}]
    entries = [*raw_odd(), *(json.dumps(message(body)) for body in [*BODIES, *commands])]
    heard = 0
    for entry in entries:
        for channel in ("license_expiry:/0.celery.pidbox", "license_expiry:/0.celeryev/worker.heartbeat"):
            heard += int(redis_server.publish(channel, entry))
    assert heard >= len(entries), "somebody subscribes to these"
    redis_server.lpush(CONTROL, json.dumps(message()))
    eventually(lambda: [run for run in runs(engine) if run.ended_at], what="the dry run after them")
    assert attacked.poll() is None
    assert redis_server.publish("license_expiry:/0.celery.pidbox", json.dumps(message({"method": "ping"})))
