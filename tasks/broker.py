"""Checks the broker for `license-expiry doctor` and before a worker or beat starts; counts the messages in it."""

from contextlib import suppress
from typing import Any
from uuid import uuid4

from amqp.exceptions import IrrecoverableChannelError, IrrecoverableConnectionError, NotAllowed
from celery.events.event import get_exchange
from kombu import Consumer, Producer, Queue
from kombu.exceptions import OperationalError
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
)

from worker.errors import Away, Unusable, WrongSetting
from worker.logs import get_logger
from worker.masking import kind_of

log = get_logger(__name__)

SECONDS = 5  # for a connection, and for a message to come back
_OURS: dict[str, Any] = {
    "durable": False,
    "auto_delete": True,
    "expires": 10.0,
}  # removes a queue of ours that we could not delete
_REFUSALS = (
    *(AuthenticationError, AuthorizationError, ResponseError),
    *(IrrecoverableConnectionError, IrrecoverableChannelError),
)
_REMEDIES: tuple[tuple[tuple[type[Exception], ...], str], ...] = (
    ((NoPermissionError,), "give its user the rights that docs/how-to/accounts.md lists (ACL SETUSER)"),
    ((AuthenticationError, AuthorizationError), "correct the user and the password in CELERY_BROKER_URL"),
    ((ReadOnlyError, MasterDownError), "set CELERY_BROKER_URL to the Redis that takes writes, not to a replica"),
    ((OutOfMemoryError,), "its memory is full: raise maxmemory in redis.conf, or delete other data in this Redis"),
    ((NotAllowed,), "correct the vhost at the end of CELERY_BROKER_URL, or let its user in (set_permissions)"),
    (
        (IrrecoverableChannelError,),
        "correct user and password in CELERY_BROKER_URL, or give its user all rights on the vhost (set_permissions)",
    ),
)


def check_broker(app: Any, *, listens: bool = True) -> None:
    """Publish a message that expires, and receive it, as a worker would.

    With `listens`, also subscribe to the commands and events that workers send each other. The queues are its own, and
    are deleted. Raises Unusable when the broker refuses or a URL has wrong options, Away when it does not answer.
    """
    for name, use in (
        ("CELERY_RESULT_BACKEND", lambda: app.backend),
        ("CELERY_BROKER_URL", lambda: _try(app, listens)),
    ):
        try:
            use()
        except Unusable:
            raise
        except Exception as error:  # Celery, kombu and the drivers check the options of a URL only on use
            what = f"{name} cannot be used as it is ({kind_of(error)})"
            raise WrongSetting(what, "Check its scheme and its options") from error


def _try(app: Any, listens: bool) -> None:
    with app.connection_for_write() as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=SECONDS)
            _send_and_receive(app, connection, listens)
        except _errors_of(connection) as error:
            what = f"The broker {connection.as_uri()} cannot be used ({_cause(error)})"
            cause = _origin(error)
            if isinstance(cause, _REFUSALS):
                raise Unusable(what, _remedy(cause)) from None
            raise Away(what, _remedy(cause)) from None


def publish_failed(app: Any, error: Exception) -> tuple[str, str]:
    """The message and remedy when `error` ended a publication: the broker's address, and the cause."""
    with app.connection_for_write() as connection:
        what = f"the broker {connection.as_uri()} took no message ({_cause(error)})"
    return what, _remedy(_origin(error))


def _origin(error: BaseException) -> BaseException:
    return error.__cause__ if isinstance(error, OperationalError) and error.__cause__ else error


def _cause(error: BaseException) -> str:
    """The cause of an error on one line."""
    return " ".join(str(_origin(error)).split()) or "no answer"


def count_messages(app: Any) -> int | None:
    """The number of step messages in the broker that no worker has received.

    None, with a log line, when the broker does not answer.
    """
    with app.connection_for_read() as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=SECONDS)
            # Not passively: with a global_keyprefix, kombu would find no queue in Redis.
            queue = app.amqp.queues[app.conf.task_default_queue](connection.channel())
            return int(queue.queue_declare().message_count)
        except _errors_of(connection) as error:
            what = "the queue length cannot be read from the broker: no run is published again"
            log.warning(what, broker=connection.as_uri(), error=_cause(error))
            return None


def _errors_of(connection: Any) -> tuple[type[BaseException], ...]:
    return (OperationalError, OSError, *connection.connection_errors, *connection.channel_errors)


def _remedy(error: BaseException) -> str:
    remedies = (remedy for kinds, remedy in _REMEDIES if isinstance(error, kinds))
    return next(remedies, "check CELERY_BROKER_URL and the broker")


def _send_and_receive(app: Any, connection: Any, listens: bool) -> None:
    name = f"license_expiry.check.{uuid4()}"
    heard: list[Any] = []
    queues = [Queue(name, **_OURS)]
    if listens:
        mailbox, events = app.control.mailbox.exchange, get_exchange(connection, app.conf.event_exchange)
        queues.append(Queue(f"{name}.celery.pidbox", mailbox, **_OURS))
        queues.append(Queue(f"celeryev.{name}", events, routing_key="worker.#", **_OURS))

    def receive(message: Any) -> None:
        message.ack()
        heard.append(message)

    producer = Producer(connection.default_channel)
    bound = [queue(connection.default_channel) for queue in queues]
    try:
        with Consumer(connection.default_channel, bound, on_message=receive):
            producer.publish({}, routing_key=name)
            _until(connection, heard, 1)
            if listens:  # a command for a worker of this name: the others ignore it
                told = {"method": "ping", "arguments": {}, "destination": [name]}
                producer.publish(told, exchange=mailbox, declare=[mailbox])
                _until(connection, heard, 2)
    finally:
        for queue in bound:
            with suppress(Exception):  # it expires
                queue.delete()


def _until(connection: Any, heard: list[Any], count: int) -> None:
    while len(heard) < count:
        connection.drain_events(timeout=SECONDS)
