"""What the nights need of a broker, whichever it is: a server to be struck, and the messages that are on it."""

import subprocess
from random import Random
from typing import Any
from uuid import uuid4

import redis
from amqp.exceptions import AMQPError
from celery import Celery
from kombu.exceptions import OperationalError

from chaos.servers import Server

# What is raised for a broker that is away just now; the driver asks again later.
AWAY = (redis.RedisError, AMQPError, OperationalError, OSError, subprocess.SubprocessError)
PREFIX = "license_expiry."
REMEMBERED = 400
SECONDS = 3  # the driver, which thaws what is frozen, must not wait for what is frozen


class Broker(Server):
    """The server of a broker."""

    url = ""

    def flush(self) -> None:
        """Lose all messages of the workers, those too that they have not acknowledged."""
        raise NotImplementedError

    def messages(self) -> "Messages":
        """The messages on it; the settings must be in the environment, which celeryconfig reads."""
        raise NotImplementedError


class Messages:
    """What lies in the workers' queues, what has been seen there, and what is posted by hand or a second time."""

    def __init__(self, url: str, **options: Any) -> None:
        import celeryconfig

        self.steps_queue = str(celeryconfig.task_default_queue)
        self._app = Celery("chaos-driver", broker=url, set_as_current=False)
        self._app.conf.update(task_default_queue=self.steps_queue, broker_transport_options=options)
        self.queued = 0
        """How many messages waited in the queues when they were last looked at"""
        self.taken = 0
        """How many messages workers had and had not acknowledged"""
        self.seen: dict[bytes, str] = {}
        """The messages of before, each with the name of its task; the newest last, and none of `reconcile`"""

    def look(self) -> None:
        """See what messages there are."""
        raise NotImplementedError

    def _on_their_way(self) -> list[bytes]:
        """The messages that nobody has acknowledged, but for those of `reconcile`."""
        raise NotImplementedError

    def _put(self, message: bytes, times: int) -> None:
        """Put a message that was seen into the queue of the steps."""
        raise NotImplementedError

    def text(self) -> str:
        """All that the messages of before say, to be searched for e-mail addresses."""
        raise NotImplementedError

    def reconnect(self) -> None:
        """Give up the connections of before: they were broken, or are to a server that is gone."""
        raise NotImplementedError

    def duplicate(self, pick: float, times: int) -> bool:
        """Put a message that is on its way there again; was there any?"""
        return self._again(self._on_their_way(), pick, times)

    def replay(self, pick: float, times: int) -> bool:
        """Put a message there that was seen before, this night or an earlier one; was there any?"""
        return self._again(list(self.seen), pick, times)

    def _again(self, messages: list[bytes], pick: float, times: int) -> bool:
        if messages:
            self._put(Random(pick).choice(messages), times)
        return bool(messages)

    def _see(self, message: bytes, task: str) -> None:
        if task != "reconcile":
            self.seen.pop(message, None)
            self.seen[message] = task
        while len(self.seen) > REMEMBERED:
            del self.seen[next(iter(self.seen))]

    def post(self, *calls: tuple[str, dict[str, str]]) -> str:
        """Post tasks by hand, over a connection of its own, each by name and arguments; give the last message's id."""
        with self._app.connection() as connection:
            for task, kwargs in calls:
                task_id = str(uuid4())
                self._app.send_task(PREFIX + task, kwargs=kwargs, task_id=task_id, retry=False, connection=connection)
        return task_id
