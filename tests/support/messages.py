"""Messages as a client of the broker may post them: ours, and odd ones made of them."""

import base64
import json
import zlib
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

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


def plain(**embedded: Any) -> list[Any]:
    """The body of a dry run; `embedded` is what is said of the tasks after it."""
    return [[], {"dry_run": True}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None} | embedded]


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
_OF_EACH: dict[str, list[Any]] = {
    "timelimit": ["5m", 5, [1], [1, 2, 3], ["a", "b"], [None, "5m"], {}, [-1, -1], [float("inf"), None]],
    "id": [5, None, [], {}, "", "x" * 300, True],
    "task": [5, None, [], {}, "", "celery.map", "celery.chunks", "celery.backend_cleanup", "other"],
    "stamps": [5, "x", [1]],
    "stamped_headers": [5, {"a": 1}, "x"],
    "eta": [5, "tomorrow", [], {}],
    "expires": [5, "tomorrow", [], {}],
    "retries": ["5", -1, 1.5, [], True, 10**30],
    "replaced_task_nesting": ["x", -1],
    "compression": ["application/x-gzip", "gzip", "x", 5],
    "group_index": ["x"],
    "ignore_result": ["x"],
    "scheduled": ["yes"],
    **{name: [5] for name in ("root_id", "parent_id", "group", "shadow", "origin", "argsrepr", "kwargsrepr")},
}
HEADERS = [{name: value} for name, values in _OF_EACH.items() for value in values]


def odd() -> Iterator[dict[str, Any]]:
    """One message for each thing that may be wrong with one."""
    for body in BODIES:
        yield message(body)
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
