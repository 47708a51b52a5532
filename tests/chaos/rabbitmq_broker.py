"""RabbitMQ as the broker of the nights: a node of its own, with an epmd of its own, that the machine's never meets.

Nobody can look into its queues. How many messages wait in one, and how many are not acknowledged, is asked inside the
node (`erl_call`). What messages say is read from copies: the node traces its one vhost (RabbitMQ's "firehose"), because
Celery publishes through the default exchange, to which no second queue can be bound.
"""

import json
import os
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import amqp
from amqp.exceptions import AMQPError

from chaos.broker import PREFIX, SECONDS, Broker, Messages
from chaos.servers import WITH_US, binary
from simulator.processes import free_port
from worker.settings import CONTROL_QUEUE, STEPS_QUEUE

QUEUES = (STEPS_QUEUE, CONTROL_QUEUE)
COPIES = "chaos.copies"
TRACE = "amq.rabbitmq.trace"
# Of a connection of the driver's.
OPTIONS: dict[str, Any] = {
    "confirm_publish": True,
    "connect_timeout": SECONDS,
    "read_timeout": SECONDS,
    "write_timeout": SECONDS,
}
MOST_COPIES = 1000  # the driver looks twenty times a second
# One core, and as few threads as it takes: the workers need the machine.
THREADS = "+S 1:1 +SDcpu 1:1 +SDio 1 +A 1"
# How many messages wait and how many are not acknowledged, of each queue that is there.
COUNT = """[begin
  [{_, Ready}, {_, Taken}] = rabbit_amqqueue:info(Queue, [messages_ready, messages_unacknowledged]),
  {Ready, Taken}
end || Name <- [%s], {ok, Queue} <- [rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, Name))]]"""
# As if the network had cut them: nobody is told.
CUT = "[exit(Connection, kill) || Connection <- rabbit_networking:local_connections()]"


class RabbitMQ(Broker):
    """A RabbitMQ that keeps its queues and messages over a kill, as durable ones are."""

    name = "rabbitmq"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        self._inside, self._names = free_port(), free_port()  # where the node and its epmd answer Erlang
        self._epmd: subprocess.Popen[bytes] | None = None
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        (self.folder / "plugins").write_text("[].")
        (self.folder / "advanced.config").write_text('[{rabbit, [{trace_vhosts, [<<"/">>]}]}].')

    def environment(self) -> dict[str, str]:
        others = {name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))}
        own: dict[str, object] = {
            "RABBITMQ_NODENAME": f"chaos{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_DIST_PORT": self._inside,
            "RABBITMQ_MNESIA_BASE": self.folder / "data",
            "RABBITMQ_LOG_BASE": self.folder / "log",
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_CONF_ENV_FILE": self.folder / "none",
            "RABBITMQ_CONFIG_FILE": self.folder / "none",
            "RABBITMQ_ADVANCED_CONFIG_FILE": self.folder / "advanced.config",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.folder / "plugins",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{THREADS} -kernel inet_dist_use_interface {{127,0,0,1}}",
            "RUNNING_UNDER_SYSTEMD": 1,  # so that the script becomes the node, and no shell stays before it
            "ERL_EPMD_PORT": self._names,
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "HOME": self.folder,  # where the cookie is
        }
        return others | {name: str(value) for name, value in own.items()}

    def command(self) -> list[str]:
        return [*WITH_US, binary("rabbitmq-server")]

    def launch(self) -> None:
        if self._epmd is None:
            # A node that finds none starts one as a daemon, which would outlive us.
            command = [*WITH_US, binary("epmd"), "-port", str(self._names), "-address", "127.0.0.1"]
            self._epmd = subprocess.Popen(command, start_new_session=True, cwd=self.folder)
        super().launch()

    def close(self) -> None:
        super().close()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()

    def answers(self) -> bool:
        try:
            with self.connection():
                return True
        except (OSError, AMQPError):
            return False

    def reset(self) -> None:
        self.inside(CUT)

    def flush(self) -> None:
        """Delete the queues: purged ones would keep what is not acknowledged."""
        with self.connection() as connection:
            for queue in QUEUES:
                connection.channel().queue_delete(queue)

    def messages(self) -> Messages:
        return RabbitMessages(self)

    @contextmanager
    def connection(self) -> Iterator[Any]:
        """A connection, open until the block ends."""
        connection = self.connect()
        try:
            yield connection
        finally:
            with suppress(OSError, AMQPError):
                connection.close()

    def connect(self) -> Any:
        """Open a connection."""
        connection = amqp.Connection(f"127.0.0.1:{self.port}", **OPTIONS)
        connection.connect()
        return connection

    def inside(self, expression: str) -> str:
        """Have the node evaluate an Erlang expression; give what comes of it."""
        command = [binary("erl_call"), "-address", f"127.0.0.1:{self._inside}", "-e"]
        done = subprocess.run(
            command,
            input=f"{expression}.\n",
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
            env=self.environment(),
        )
        if not done.stdout.startswith("{ok,"):
            raise OSError(f"{expression}: {done.stdout}")
        return done.stdout

    def counts(self) -> list[tuple[int, int]]:
        """How many messages wait, and how many are not acknowledged, in each of the workers' queues."""
        answer = self.inside(COUNT % ", ".join(f'<<"{queue}">>' for queue in QUEUES))
        return [(int(ready), int(taken)) for ready, taken in re.findall(r"\{(\d+), ?(\d+)\}", answer)]


class RabbitMessages(Messages):
    """The messages, by their copies; those of `reconcile` count as well, which are soon gone."""

    def __init__(self, server: RabbitMQ) -> None:
        super().__init__(server.url, **OPTIONS)
        self._server = server
        self._connection: Any = None
        self._channel: Any = None

    def look(self) -> None:
        counts = self._server.counts()
        self.queued, self.taken = sum(ready for ready, _ in counts), sum(taken for _, taken in counts)
        try:
            self._listen()
            while (copy := self._channel.basic_get(COPIES, no_ack=True)) is not None:
                message = _original(copy)
                self._see(message, _task(message))
        except (OSError, AMQPError):
            self.reconnect()
            raise

    def _listen(self) -> None:
        """Have copies kept from now on; the queue of the copies is still there when the connection was broken."""
        if self._channel is None:
            self._connection = self._server.connect()
            self._channel = self._connection.channel()
            limits = {"x-max-length": MOST_COPIES}
            self._channel.queue_declare(COPIES, durable=True, auto_delete=False, arguments=limits)
            self._channel.queue_bind(COPIES, TRACE, "publish.#")

    def _on_their_way(self) -> list[bytes]:
        """The newest, as many as there are: nobody tells which they are."""
        count = self.queued + self.taken
        return list(self.seen)[-count:] if count else []

    def _put(self, message: bytes, times: int) -> None:
        self._listen()
        about = json.loads(message)
        for _ in range(times):
            again = amqp.Message(about["body"], application_headers=about["headers"], **about["properties"])
            self._channel.basic_publish(again, routing_key=self.steps_queue)

    def text(self) -> str:
        return b"\n".join(self.seen).decode()

    def reconnect(self) -> None:
        if self._connection is not None:
            with suppress(OSError, AMQPError):
                self._connection.collect()
        self._connection = self._channel = None


def _original(copy: Any) -> bytes:
    """The message that a copy tells of."""
    properties = dict(copy.headers["properties"])
    headers = properties.pop("headers", {})
    body = copy.body if isinstance(copy.body, str) else bytes(copy.body).decode()
    return json.dumps({"headers": headers, "properties": properties, "body": body}, default=str).encode()


def _task(message: bytes) -> str:
    return str(json.loads(message)["headers"].get("task", "")).removeprefix(PREFIX)
