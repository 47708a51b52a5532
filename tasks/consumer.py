"""Drops and logs messages that are not our tasks before Celery reads them: a single one could end every worker.

Celery and kombu do not check a message's headers and body. A malformed one ends the worker, then the broker redelivers
it to the next worker, and so on (https://github.com/celery/celery/issues/4308).
"""

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal, Self

from celery.app.task import Context
from celery.utils.time import maybe_iso8601
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.consumer.gossip import Gossip as CeleryGossip
from kombu import compression
from kombu.message import Message
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from tasks.alive import noting
from tasks.redis_messages import read_odd_ones
from worker.ledger.order import STEPS
from worker.logs import get_logger
from worker.masking import kind_of
from worker.settings import TRIGGERS

log = get_logger(__name__)

MOST_BYTES = 256 * 1024  # ours have 2 kB; with a thousand plans, 40 kB
MOST_AHEAD = timedelta(days=2)  # ours are retried within a day
OURS = frozenset({*(step.task for step in STEPS), *TRIGGERS})


def _ours(name: str) -> str:
    if name not in OURS:
        raise ValueError("is not a task of ours")
    return name


def _moment(value: str) -> str:
    if maybe_iso8601(value) is None:  # of an empty text
        raise ValueError("is no date-time")
    return value


def _soon(value: str) -> str:
    # A worker holds such a message in memory until it is due, and so does each worker that it is redelivered to.
    moment = maybe_iso8601(_moment(value))
    if moment and moment.replace(tzinfo=moment.tzinfo or UTC) > datetime.now(UTC) + MOST_AHEAD:
        raise ValueError(f"is more than {MOST_AHEAD.days} days ahead")
    return value


Id = Annotated[str, Field(pattern="^[!-~]{1,255}$")]
Name = Annotated[str, AfterValidator(_ours)]
Moment = Annotated[str, AfterValidator(_moment)]
Limit = Annotated[float, Field(ge=0, allow_inf_nan=False)] | None
Count = Annotated[int, Field(ge=0, le=10**6)]
Nothing = Annotated[list[Any], Field(max_length=0)] | None


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Headers(_Shape):
    """The headers that Celery reads, as Celery writes them. Headers that Celery ignores are allowed."""

    model_config = ConfigDict(strict=True, extra="allow")

    lang: str | None = None
    task: Name
    id: Id
    root_id: Id | None = None
    parent_id: Id | None = None
    group: None = None
    group_index: None = None
    shadow: None = None
    origin: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    eta: Annotated[str, AfterValidator(_soon)] | None = None
    expires: Moment | None = None
    retries: Count | None = None
    timelimit: Annotated[list[Limit], Field(min_length=2, max_length=2)] | None = None
    ignore_result: bool | None = None
    replaced_task_nesting: Count | None = None
    stamped_headers: Nothing = None
    stamps: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    compression: None = None
    scheduled: bool | None = None

    @model_validator(mode="after")
    def _nothing_but_these(self) -> Self:
        # Celery would let any of them override the body, or the task's own attributes.
        if any(hasattr(Context, name) for name in self.model_extra or ()):
            raise ValueError("a header has a name that Celery uses itself")
        return self


class Options(_Shape):
    """The options of a chain's next task, as Celery writes them."""

    task_id: Id | None = None
    reply_to: str | None = None
    replaced_task_nesting: Count | None = None


class Next(_Shape):
    """A task of a message's chain."""

    task: Name
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    options: Options = Options()
    subtask_type: None = None
    immutable: Literal[True]


class Embedded(_Shape):
    """The tasks after this message: a chain, and nothing else that Celery knows."""

    callbacks: Nothing = None
    errbacks: Nothing = None
    chord: Nothing = None
    chain: list[Next] | None = None


class Task(_Shape):
    """A message."""

    headers: Headers
    content: tuple[list[Any], dict[str, Any], Embedded]

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        task, chain = self.headers.task, self.content[2].chain
        if chain and [following.task for following in reversed(chain)] != _after(task):
            raise ValueError("its chain is not that of the steps after it")
        return self


def _after(task: str) -> list[str]:
    names = [step.task for step in STEPS]
    return names[names.index(task) + 1 :] if task in names else []


def complaint_about(message: Message) -> str | None:
    """Why this message is not a task of ours, without quoting its values; None if it is one."""
    if message.body is not None and len(message.body) > MOST_BYTES:
        return f"its body has {len(message.body)} bytes"
    try:
        content = message.decode()
        Task.model_validate(
            {"headers": message.headers, "content": tuple(content) if isinstance(content, list) else content}
        )
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False, include_context=False)[0]
        named = wrong["loc"][:-1] if wrong["type"] == "extra_forbidden" else wrong["loc"]  # the sender's own word
        return ": ".join(filter(None, (".".join(map(str, named)), wrong["msg"].removeprefix("Value error, "))))
    except Exception as error:  # a decoder's, of whatever kind
        return f"it cannot be decoded ({type(error).__name__})"
    return None


def _names(message: Message) -> dict[str, str]:
    """The task and id of a message for the log, if they are well-formed: others may hold anything."""
    headers = message.headers if isinstance(message.headers, dict) else {}
    task, task_id = headers.get("task"), str(headers.get("id"))
    named = {"name": task} if task in tuple(OURS) else {}
    return named | ({"message": task_id} if re.fullmatch(r"[0-9a-f-]{36}", task_id) else {})


class Gossip(CeleryGossip):
    """Celery's listener to other workers' events: Celery's own would end the worker on a malformed one."""

    def on_message(self, prepare: Any, message: Message) -> None:
        """Receive an event (Celery's hook); drop a malformed one."""
        try:
            super().on_message(prepare, message)
        except Exception as error:  # it does not check body and headers
            log.error("event dropped: not one of a worker", complaint=kind_of(error))


class Consumer(CeleryConsumer):
    """A worker's only consumer; see celeryconfig.worker_consumer."""

    class Blueprint(CeleryConsumer.Blueprint):  # type: ignore[misc, valid-type]  # to the stubs it is a value
        """Celery's steps, with our Gossip in place of Celery's."""

        default_steps: ClassVar = [
            "tasks.consumer:Gossip" if step.endswith(":Gossip") else step
            for step in CeleryConsumer.Blueprint.default_steps
        ]

    connection_errors: Any
    event_dispatcher: Any

    def __init__(self, *arguments: Any, **names: Any) -> None:
        # Our messages are not compressed, and 100 kB may unpack to more than the memory.
        compression._decoders.clear()  # type: ignore[attr-defined]
        read_odd_ones()
        super().__init__(*arguments, **names)

    def ensure_connected(self, conn: Any) -> Any:
        """Connect (Celery's hook); note with each try that this worker is alive."""
        return super().ensure_connected(noting(self.hostname, conn))

    def create_task_handler(self, *arguments: Any, **names: Any) -> Callable[[Message], Any]:
        """Return Celery's message handler, called for our tasks only (Celery's hook)."""
        handle: Callable[[Message], Any] = super().create_task_handler(*arguments, **names)

        def only_ours(message: Message) -> Any:
            complaint = complaint_about(message)
            if complaint is not None:
                return self._drop(message, complaint)
            # The worker's own limit holds: a shorter one would kill a step, with a longer one the broker redelivers it.
            headers: dict[str, Any] = message.headers
            headers["timelimit"] = None
            return handle(message)

        return only_ours

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Drop a message that kombu could not unpack (Celery's hook, which would log its body)."""
        self._drop(message, f"it cannot be decoded ({type(exc).__name__})")

    def _drop(self, message: Message, complaint: str) -> None:
        log.error("message dropped: not a license-expiry task", complaint=complaint, **_names(message))
        message.ack_log_error(logging.getLogger(__name__), self.connection_errors)
        if self.event_dispatcher:
            self.event_dispatcher.send("task-rejected", uuid="")  # Flower's /metrics counts it
