"""Drawn messages against a real worker: none ends it, starts what it does not ask for, or goes without a line.

FUZZ=100000 draws more.
"""

import json
import os
from collections import Counter
from random import Random
from typing import Any
from uuid import uuid4

import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from sqlalchemy import Engine
from support.eventually import eventually
from support.messages import following, message, states
from support.processes import WORKER_SQLITE, a_minute_ago, at, lay, runs

from simulator.data.rows import Data
from simulator.lms.server import Simulator
from simulator.processes import Processes
from tasks.consumer import OURS

COUNT = int(os.environ.get("FUZZ", "300"))
BATCH = 5000
QUEUES = ("license_expiry:license_expiry.control", "license_expiry:license_expiry")
UNACKED = "license_expiry:unacked"
DROPPED = "message dropped: "

TYPED = st.builds(
    lambda kind, value: {"__type__": kind, "__value__": value},
    st.sampled_from(["uuid", "datetime", "date", "decimal", "bytes", "base64", "other"]),
    st.none() | st.integers() | st.text(max_size=5) | st.just({"hex": uuid4().hex}) | st.just("2026-01-01"),
)
LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20) | TYPED
ANYTHING = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
MOMENT = st.datetimes().map(str) | st.sampled_from(["2026-01-01T00:00:00Z", "0001-01-01T00:00:00+14:00", "2026-01-31"])
NAMES = [
    "dry_run",
    "plan_uuids",
    "expired_after",
    "expired_before",
    "force",
    "reason",
    "approve_unlinks",
    "triggered_by",
]
NAMES += ["judged_by", "enterprise_customer_uuid", "run_id", "message_number", "ledger", "self", "x"]
HEADERS = [*message()["headers"], "scheduled", "headers", "chain", "callbacks", "is_eager", "meth", "x"]
ODD = ["content", "embedded", "chain", "headers", "more headers", "entry", "properties", "text"]
OF_EACH_DRAW = 50


class Maker:
    """Makes messages of values that hypothesis has drawn."""

    def __init__(self, values: list[Any], random: Random, enterprise: str) -> None:
        self.values, self.random, self.enterprise = values, random, enterprise

    def value(self) -> Any:
        """One of the values."""
        return self.random.choice(self.values)

    def message(self) -> tuple[str, str]:
        """The id of a message, and it as an entry of a Redis list: odd in its arguments, and in two places more."""
        random, task = self.random, self.random.choice(sorted(OURS))
        odd = random.sample(ODD, random.choice([0, 1, 1, 2, 2, 2]))
        content: Any = [*self.arguments(task), {}]
        if "embedded" in odd:
            content[2][random.choice(["chain", "callbacks", "chord", "headers", "id"])] = self.value()
        if "chain" in odd:
            content[2]["chain"] = [following(random.choice(sorted(OURS))) for _ in range(random.choice([0, 1, 2]))]
        if "content" in odd:
            content = random.choice([self.value(), json.dumps(self.value()).encode()[:-1]]) or 5
        raw = message(content, {"task": task})
        task_id = raw["headers"]["id"]
        for name in [random.choice(HEADERS) for place in ("headers", "more headers") if place in odd]:
            value = self.value()
            raw["headers"][name] = task_id + value if name == "id" and isinstance(value, str) else value
        if raw["headers"]["ignore_result"] is True:  # a result is looked for
            raw["headers"]["ignore_result"] = None
        if "properties" in odd:
            raw["properties"][random.choice(sorted(raw["properties"]))] = self.value()
        if "entry" in odd:
            raw[random.choice(sorted(raw))] = self.value()
        return task_id, str(self.value()) if "text" in odd else json.dumps(raw)

    def arguments(self, task: str) -> tuple[list[Any], dict[str, Any]]:
        """Its arguments: a few, with or without those that it must have. Nobody asks for a night that is not dry."""
        random = self.random
        kwargs = {random.choice(NAMES): self.value() for _ in range(random.choice([0, 0, 1, 2]))}
        if random.random() < 0.7 and not task.endswith(("nightly", "reconcile")):
            kwargs["enterprise_customer_uuid"] = self.enterprise
        if task.startswith("license_expiry.run_"):
            kwargs["dry_run"] = random.choice([True, self.not_false()])
        elif random.random() < 0.7 and not task.endswith("reconcile"):
            kwargs["run_id"] = str(uuid4())
        return [self.not_false() for _ in range(random.choice([0, 0, 0, 1, 2]))], kwargs

    def not_false(self) -> Any:
        """One of the values, but no."""
        value = self.value()
        return True if value is False else value


def draw_messages(count: int, enterprise: str) -> dict[str, str]:
    """So many messages by their ids."""
    made: dict[str, str] = {}
    phases, unhealthy = [Phase.generate], list(HealthCheck)

    @settings(max_examples=-(-count // OF_EACH_DRAW), database=None, phases=phases, suppress_health_check=unhealthy)
    @given(st.lists(ANYTHING, min_size=5, max_size=10), st.lists(MOMENT, min_size=2, max_size=2), st.randoms())
    def collect(values: list[Any], moments: list[str], random: Random) -> None:
        maker = Maker(values + moments, Random(random.random()), enterprise)
        made.update(maker.message() for _ in range(OF_EACH_DRAW))

    collect()
    return made


@WORKER_SQLITE
@pytest.mark.timeout(180 + COUNT // 10)
def test_no_drawn_message_ends_a_worker_or_starts_a_real_night_or_is_lost(
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    worker: Any,
    redis_server: redis.Redis,
    processes: Processes,
) -> None:
    [enterprise] = lay(data, lms)
    environment(**at(a_minute_ago()))
    started = worker(app="support.fast_app")
    posted: set[str] = set()
    while len(posted) < COUNT:
        batch = draw_messages(min(BATCH, COUNT - len(posted)), str(enterprise))
        posted |= batch.keys()
        for number, text in enumerate(batch.values()):
            redis_server.lpush(QUEUES[number % 2], text.encode(errors="surrogatepass"))
        eventually(lambda: started.poll() is not None or not any(map(redis_server.llen, QUEUES)), 600, "empty queues")
        eventually(
            lambda: started.poll() is not None or not redis_server.hlen(UNACKED), what="an end of what was begun"
        )
        assert started.poll() is None, processes.log("worker")[-5000:]
    dropped = processes.log("worker").count(DROPPED)
    ended = Counter(state for task_id, state in states(redis_server).items() if task_id[:36] in posted)
    told = f"{len(posted)} messages: {dropped} dropped with a line, {dict(ended)}"
    print(told)  # noqa: T201, shown by -s: what a long run is made for
    assert dropped + ended.total() == len(posted), told
    assert {run.dry_run for run in runs(engine)} == {True}
    assert lms.calls("downgrade") == lms.calls("unlink") == []
