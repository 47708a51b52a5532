"""The messages: what lies in Redis, what has been seen there, and what is posted by hand or a second time."""

import json
from random import Random
from typing import Any
from uuid import uuid4

from celery import Celery

from chaos.servers import Redis

PREFIX = "license_expiry."
REMEMBERED = 400


class Broker:
    """The queue of the workers, by Celery's names for its keys; `celeryconfig` says which, and needs settings."""

    def __init__(self, server: Redis) -> None:
        import celeryconfig

        self._server = server
        prefix = str(celeryconfig.broker_transport_options.get("global_keyprefix", ""))
        self._queue = prefix + celeryconfig.task_default_queue
        self._unacked = f"{prefix}unacked"
        self._app = Celery("chaos-driver", broker=server.url, set_as_current=False)
        self._app.conf.update(
            task_default_queue=celeryconfig.task_default_queue,
            broker_transport_options={"global_keyprefix": prefix, "socket_timeout": 3},
        )
        self._queued: list[bytes] = []
        self._taken: list[bytes] = []
        self.seen: dict[bytes, str] = {}

    def look(self) -> None:
        """See what messages there are."""
        client = self._server.client
        self._queued = [bytes(each) for each in client.lrange(self._queue, 0, -1) if isinstance(each, bytes)]
        self._taken = [json.dumps(json.loads(each)[0]).encode() for each in client.hvals(self._unacked)]
        for message in (*self._queued, *self._taken):
            name = _task(message)
            if name != "reconcile":
                self.seen.pop(message, None)
                self.seen[message] = name
        while len(self.seen) > REMEMBERED:
            del self.seen[next(iter(self.seen))]

    @property
    def queued(self) -> int:
        """How many messages lay in the queue when it was last looked at, but for reconcile's."""
        return sum(_task(message) != "reconcile" for message in self._queued)

    @property
    def taken(self) -> int:
        """How many messages workers had and had not acknowledged, but for reconcile's."""
        return sum(_task(message) != "reconcile" for message in self._taken)

    def duplicate(self, pick: float, times: int) -> bool:
        """Put a message that is on its way there again; was there any?"""
        return self._again([each for each in (*self._queued, *self._taken) if _task(each) != "reconcile"], pick, times)

    def replay(self, pick: float, times: int) -> bool:
        """Put a message there that was seen before, this night or an earlier one; was there any?"""
        return self._again(list(self.seen), pick, times)

    def _again(self, messages: list[bytes], pick: float, times: int) -> bool:
        if messages:
            message = Random(pick).choice(messages)
            self._server.client.lpush(self._queue, *[message] * times)
        return bool(messages)

    def post(self, task: str, times: int = 1, **kwargs: Any) -> str:
        """Post a task by hand, over a connection of its own; give the id of the last message."""
        with self._app.connection() as connection:
            for _ in range(times):
                task_id = str(uuid4())
                self._app.send_task(
                    PREFIX + task,
                    kwargs=kwargs,
                    task_id=task_id,
                    retry=False,
                    ignore_result=False,
                    connection=connection,
                )
        return task_id

    def result(self, task_id: str) -> dict[str, Any] | None:
        """What a task answered, once it has ended well."""
        for key in self._server.client.keys(f"*celery-task-meta-{task_id}"):
            meta = json.loads(self._server.client.get(key) or b"{}")
            if meta.get("status") == "SUCCESS":
                return dict(meta["result"])
        return None

    def reset(self) -> None:
        """Open new connections: the old ones are to a server that is gone."""
        self._server.client.close()


def _task(message: bytes) -> str:
    try:
        return str(json.loads(message)["headers"]["task"]).removeprefix(PREFIX)
    except (ValueError, KeyError, TypeError):
        return ""
