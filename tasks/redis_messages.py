"""Drops malformed messages from a Redis list or channel, with a log line: kombu would end the worker on one."""

from base64 import b64decode
from collections.abc import Callable
from typing import Annotated, Any, Literal

from kombu.transport import redis as transport
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from worker.logs import get_logger

log = get_logger(__name__)

redis: Any = transport
_loads, _deliver = redis.loads, redis.Transport._deliver
_READ = {name: getattr(redis.Channel, name) for name in ("_brpop_read", "_receive_one")}  # of a list, of a channel


class Odd(Exception):
    """The bytes cannot be read as a message."""


def _base64(value: str) -> str:
    b64decode(value)
    return value


class _Route(BaseModel):
    exchange: str | None
    routing_key: str | None


class _Properties(BaseModel):
    delivery_tag: Annotated[str, Field(min_length=1)]
    delivery_info: _Route
    body_encoding: Literal["base64"]
    correlation_id: str | None = None
    reply_to: str | None = None


class Raw(BaseModel):
    """A message as kombu writes it."""

    body: Annotated[str, AfterValidator(_base64)]
    headers: dict[str, Any]
    properties: _Properties


def read_odd_ones() -> None:
    """Install this in kombu's Redis transport, in this process."""
    redis.loads = _loads_json
    redis.Transport._deliver = _deliver_message
    for name, read in _READ.items():
        setattr(redis.Channel, name, _reading(read))


def _loads_json(text: str, **names: Any) -> Any:
    try:
        return _loads(text, **names)
    except Exception as error:  # of JSON, or of a type that kombu makes of it
        raise Odd(type(error).__name__) from error


def _deliver_message(self: Any, raw: Any, queue: str) -> None:
    try:
        Raw.model_validate(raw)
    except ValidationError as error:
        raise Odd(f"{'.'.join(map(str, error.errors()[0]['loc']))}: {error.errors()[0]['msg']}") from None
    _deliver(self, raw, queue)


def _reading(read: Callable[..., Any]) -> Callable[..., Any]:
    def read_and_deliver(channel: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return read(channel, *arguments, **options)
        except Odd as error:
            log.error("message dropped: not a message", complaint=str(error))
            return True

    return read_and_deliver
