"""A clock and a network of the test's own, below requests."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from math import inf
from typing import Any
from uuid import UUID

import pytest
import requests

from worker.errors import ReasonedError
from worker.lms import transport as lms
from worker.lms.client import LmsClient, Selection
from worker.lms.patience import Patience

LICENSE = UUID("378d5bf0-f67d-4bf7-8b2a-cbbc53d0f772")


ENTERPRISE = UUID("7f2c0b53-3b0c-4b0e-9d4e-0b8f3c7d2a11")


EMAIL = "learner@x.example"


PATIENCE = Patience()  # the one that production has: waiting costs nothing on this clock


ENDLESS = 2000


class Clock:
    """Stands in for the module `time` where the client and tenacity look: to sleep is to move it on."""

    def __init__(self) -> None:
        self.now = 100_000.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if seconds:
            self.slept.append(seconds)


@dataclass
class Reply:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    takes: float = 0.0


@dataclass
class Sent:
    url: str
    headers: dict[str, str]
    body: str
    seconds: float
    at: float


def throttled(after: object = None) -> Reply:
    return Reply(429, {} if after is None else {"Retry-After": str(after)})


class Wire:
    """Stands in for the network below requests: answers calls by a script whose last line holds for ever.

    An answer comes after `takes` seconds, a time-out after the seconds that the client gave it.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.script: list[Reply | Exception] = [Reply()]
        self.tokens: list[Reply | Exception] = [Reply(body='{"access_token": "t", "expires_in": 3600}')]
        self.calls: list[Sent] = []
        self.token_calls: list[Sent] = []
        self.log: list[tuple[str, float]] = []

    def send(self, request: requests.PreparedRequest, timeout: Any) -> requests.Response:
        for_token = str(request.url).endswith(lms.TOKEN_PATH)
        script, sent = (self.tokens, self.token_calls) if for_token else (self.script, self.calls)
        text = str(request.body) if for_token else request.body.read().decode() if request.body else ""  # type: ignore[union-attr]
        self.log.append(("token" if for_token else "send", self.clock.now))
        sent.append(
            Sent(str(request.url), dict(request.headers), text, getattr(timeout, "total", timeout), self.clock.now)
        )
        assert len(sent) < ENDLESS, "the client never gives up"
        told = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(told, requests.Timeout):
            to_connect, to_read = timeout
            self.clock.now += to_connect if isinstance(told, requests.ConnectTimeout) else to_read
        if isinstance(told, Exception):
            raise told
        self.clock.now += told.takes
        response = requests.Response()
        response.status_code, response.request, response.url = told.status, request, str(request.url)
        response.headers.update(told.headers)
        response._content, response._content_consumed = told.body.encode(), True  # type: ignore[attr-defined]
        return response

    def says(self, *script: Reply | Exception | int) -> None:
        self.script = [Reply(told) if isinstance(told, int) else told for told in script]

    def bodies(self) -> list[Any]:
        return [json.loads(call.body) for call in self.calls]


def nothing() -> float:
    return inf


def downgrade(client: LmsClient) -> None:
    client.downgrade(lambda: Selection([LICENSE]), nothing)


def unlink(client: LmsClient) -> None:
    client.unlink(ENTERPRISE, lambda: Selection([EMAIL]), nothing)


def fails(client: LmsClient) -> ReasonedError:
    with pytest.raises(ReasonedError) as caught:
        downgrade(client)
    return caught.value


def http_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def subclasses(of: type[Exception]) -> set[type[Exception]]:
    return {of}.union(*map(subclasses, of.__subclasses__()))
