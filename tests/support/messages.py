"""Messages as a client of the broker may post them: ours, and odd ones made of them."""

import base64
import json
import zlib
from collections.abc import Iterator
from typing import Any, cast
from uuid import uuid4

import redis

TASK = "license_expiry.run_nightly"


def message(body: Any = None, headers: dict[str, Any] | None = None, **properties: Any) -> dict[str, Any]:
    """A message as kombu leaves it in Redis: a dry run of the night unless it is told otherwise."""
    task_id = str(uuid4())
    own: dict[str, Any] = {"lang": "py", "task": TASK, "id": task_id, "root_id": task_id, "retries": 0}
    own |= {"shadow": None, "eta": None, "expires": None, "group": None, "group_index": None, "parent_id": None}
    own |= {"timelimit": [3000, None], "argsrepr": "()", "kwargsrepr": "{}", "origin": "test", "ignore_result": False}
    own |= {"replaced_task_nesting": 0, "stamped_headers": None, "stamps": {}}
    content = plain() if body is None else body
    packed = content if isinstance(content, bytes) else json.dumps(content).encode()
    sent: dict[str, Any] = {"correlation_id": task_id, "reply_to": str(uuid4()), "delivery_mode": 2, "priority": 0}
    sent |= {"delivery_info": {"exchange": "", "routing_key": "license_expiry.control"}, "body_encoding": "base64"}
    return {
        "body": base64.b64encode(packed).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": own | (headers or {}),
        "properties": sent | {"delivery_tag": str(uuid4())} | properties,
    }


def states(client: redis.Redis, task: str = "") -> dict[str, str]:
    """The state of each task that has a result, of this name alone when it is given."""
    keys = list(client.scan_iter("license_expiry:celery-task-meta-*", count=10_000))
    results = [json.loads(cast("str", found)) for found in client.mget(keys)] if keys else []
    return {result["task_id"]: result["status"] for result in results if task in (result.get("name"), "")}


def plain(**embedded: Any) -> list[Any]:
    """The body of a dry run; `embedded` is what is said of the tasks after it."""
    return [[], {"dry_run": True}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None} | embedded]


def following(task: str = "license_expiry.unlink_learners", **more: Any) -> dict[str, Any]:
    """A task of a message's chain, as Celery writes it."""
    return {"task": task, "args": [], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": True} | more


BODIES: list[Any] = [
    5,
    "x",
    [],
    {},
    [1],
    [[], {}],
    [[], [], {}],
    [{}, {}, {}],
    [[], {}, 5],
    [[], {}, None],
    b"",
    b"\xff",
]
BODIES += [
    b"null",
    b"[" * 5000,
    b"{",
    [[], {"dry_run": True}, {}, {}],
    plain(chain=5),
    plain(chain=[5]),
    plain(chord=5),
]
BODIES += [plain(chain=[{"task": "celery.backend_cleanup"}]), plain(callbacks=[{"task": TASK}]), plain(errbacks={})]
BODIES += [plain(chain=[following()]), plain(chain=[following(TASK)]), plain(xxx=5)]  # a trigger has no chain
BODIES += [
    plain(**{name: value}) for name, value in {"headers": {"scheduled": True}, "is_eager": True, "id": "x"}.items()
]
STEP = {"task": "license_expiry.downgrade_enrollments"}
CHAINS = [
    [following(TASK)],
    [following(), following()],
    [following(STEP["task"])],
    [following(immutable=False)],
    [following(xxx=5)],
    [following(subtask_type="chain")],
    *(
        [following(options={name: value})]
        for name, value in {"link": [], "queue": "x", "countdown": 5, "task_id": 5}.items()
    ),
]
_OF_EACH: dict[str, list[Any]] = {
    "timelimit": ["5m", 5, [1], [1, 2, 3], ["a", "b"], [None, "5m"], {}, [-1, -1], [float("inf"), None]],
    "id": [5, None, [], {}, "", "x" * 300, True, "a\nb", "\ud800", "é"],
    "task": [5, None, [], {}, "", "celery.map", "celery.chunks", "celery.backend_cleanup", "other"],
    "stamps": [5, "x", [1], {"a": 1}],
    "stamped_headers": [5, {"a": 1}, "x", ["a"]],
    "eta": ["", 5, "tomorrow", [], {}, "9999-12-31T23:59:59+00:00", "2199-01-01"],
    "expires": ["", 5, "tomorrow", [], {}],
    "retries": ["5", -1, 1.5, [], True, 10**30],
    "replaced_task_nesting": ["x", -1],
    "compression": ["application/x-gzip", "gzip", "x", 5],
    "group_index": ["x", 0],
    "headers": [{"scheduled": True}],
    **{
        name: [None, 5]
        for name in ("chain", "callbacks", "args", "is_eager", "called_directly", "update", "_protected")
    },
    "ignore_result": ["x"],
    "scheduled": ["yes"],
    **{name: [5] for name in ("lang", "root_id", "parent_id", "group", "shadow", "origin", "argsrepr", "kwargsrepr")},
}
HEADERS = [{name: value} for name, values in _OF_EACH.items() for value in values]


def odd() -> Iterator[dict[str, Any]]:
    """One message for each thing that may be wrong with one."""
    for body in BODIES:
        yield message(body)
    for chain in CHAINS:
        yield message(plain(chain=chain), STEP)
    for headers in HEADERS:
        yield message(headers=headers)
    yield message([[], {"dry_run": True, "reason": "x" * 300_000}, {}])
    bomb = zlib.compress(json.dumps([[], {"reason": "x" * 50_000_000}, {}]).encode())
    yield message(bomb, {"compression": "application/x-gzip"})
    for content_type in ("application/x-python-serialize", "application/x-yaml", "text/plain", "x"):
        yield message() | {"content-type": content_type}
    without = message()
    del without["headers"]["task"]
    yield without
    yield message() | {"headers": {}}


def raw_odd() -> Iterator[str | bytes]:
    """What a client of Redis may put into a list that is no message."""
    yield from ("", "x", "5", "null", "[]", "{}", '"x"', b"\xff", "[" * 100_000, '{"a": NaN', "\x00")
    for type_, value in (("uuid", 5), ("datetime", 5), ("decimal", "x"), ("bytes", 5), ("other", 5)):
        yield json.dumps(message(headers={"xxx": {"__type__": type_, "__value__": value}}))
    values: list[Any] = [None, 5, "", "x", [], [1], {}]
    for name in ("body", "headers", "properties"):
        for value in values[:-1]:
            yield json.dumps(message() | {name: value})
        without = message()
        del without[name]
        yield json.dumps(without)
    yield json.dumps([message(), "", ""])
    for name in ("delivery_tag", "delivery_info", "body_encoding"):
        for value in values:
            if (name, value) != ("delivery_tag", "x"):
                yield with_property(name, value)
    for name in ("correlation_id", "reply_to"):
        yield with_property(name, [5])


def with_property(name: str, value: Any) -> str:
    """A message with another value of this property, as it stands in Redis."""
    raw = message()
    raw["properties"][name] = value
    return json.dumps(raw)
