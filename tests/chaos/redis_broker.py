"""Redis as the broker of the nights: a list for a queue, and a hash of what nobody has acknowledged."""

import base64
import json
from contextlib import suppress
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from chaos.broker import PREFIX, SECONDS, Broker, Messages
from chaos.servers import WITH_US, binary


class Redis(Broker):
    """A Redis that keeps nothing."""

    name = "redis"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        never = Retry(NoBackoff(), 0)
        self.client = redis.Redis(port=self.port, socket_timeout=SECONDS, socket_connect_timeout=SECONDS, retry=never)
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        options = ["--port", str(self.port), "--save", "", "--appendonly", "no", "--bind", "127.0.0.1"]
        return [*WITH_US, binary("redis-server"), *options]

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def reset(self) -> None:
        for kind in ("normal", "pubsub"):
            with suppress(redis.RedisError):
                self.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "no")  # type: ignore[no-untyped-call]

    def flush(self) -> None:
        self.client.flushall()

    def messages(self) -> Messages:
        return RedisMessages(self)


class RedisMessages(Messages):
    """The messages, by the names that Celery gives to its keys."""

    def __init__(self, server: Redis) -> None:
        import celeryconfig

        prefix = str(celeryconfig.broker_transport_options["global_keyprefix"])
        super().__init__(server.url, global_keyprefix=prefix, socket_timeout=SECONDS)
        self._client = server.client
        self._queue = prefix + self.steps_queue
        self._unacked = f"{prefix}unacked"
        self._way: list[bytes] = []

    def look(self) -> None:
        queued = [bytes(each) for each in self._client.lrange(self._queue, 0, -1) if isinstance(each, bytes)]
        taken = [json.dumps(json.loads(each)[0]).encode() for each in self._client.hvals(self._unacked)]
        queued, taken = ([each for each in found if _task(each) != "reconcile"] for found in (queued, taken))
        self.queued, self.taken, self._way = len(queued), len(taken), queued + taken
        for message in self._way:
            self._see(message, _task(message))

    def _on_their_way(self) -> list[bytes]:
        return self._way

    def _put(self, message: bytes, times: int) -> None:
        self._client.lpush(self._queue, *[message] * times)

    def text(self) -> str:
        messages = [json.loads(each) for each in self.seen]
        bodies = [base64.b64decode(each["body"]).decode() for each in messages]
        return "\n".join([*map(json.dumps, messages), *bodies])

    def reconnect(self) -> None:
        self._client.close()


def _task(message: bytes) -> str:
    try:
        return str(json.loads(message)["headers"]["task"]).removeprefix(PREFIX)
    except (ValueError, KeyError, TypeError):
        return ""
