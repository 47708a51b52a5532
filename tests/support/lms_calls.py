"""A client on a simulated LMS, and a server that sends what the simulator does not."""

import json
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from uuid import UUID

import pytest
from sqlalchemy import Engine

import worker.lms.client
import worker.lms.patience
import worker.lms.transport
from simulator.lms.journal import Entry
from worker.errors import ReasonedError
from worker.lms.client import LmsClient
from worker.lms.patience import Patience

PATIENCE = Patience(first_wait=0.001)


NOW = datetime.now(UTC)


MARK = "zaphod"  # in every e-mail address here, and in nothing else


EMAILS = [f"{MARK}-{number}@learners.example" for number in range(4)]


SECRET = "a-secret-of-this-test"


PAGE = f"<html><h1>Bad gateway</h1>{EMAILS[0]}</html>"


Call = Callable[[LmsClient], None]


@dataclass(frozen=True)
class Customer:
    engine: Engine
    enterprise: UUID
    licenses: list[UUID]


def nothing() -> float:
    return inf


def fails(call: Call, client: LmsClient) -> ReasonedError:
    with pytest.raises(ReasonedError) as caught:
        call(client)
    return caught.value


def outcome(act: Callable[[], None]) -> tuple[type[ReasonedError], str] | None:
    """What a call comes to: None for success, else the error's type and its reason."""
    try:
        act()
    except ReasonedError as error:
        return type(error), error.reason
    return None


def statuses(calls: list[Entry]) -> list[int | None]:
    return [entry.status for entry in calls]


# A server that tells what the simulator does not: the bytes, and which connection they came over


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: str
    connection: int


TOKEN_ANSWER = json.dumps({"access_token": "abc", "expires_in": 3600})


def http(status: int, body: str = "", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body.encode())}", *headers, "", body]
    return "\r\n".join(lines).encode()


@dataclass
class Slow:
    """An answer that comes in parts, each so many seconds after the other; `sent` counts those that were taken."""

    parts: Iterable[bytes]
    apart: float = 0.0
    sent: int = 0


@dataclass
class Wire:
    port: int = 0
    requests: list[Received] = field(default_factory=list)
    opened: int = 0
    still_open: int = 0
    answers: list[bytes | Slow] = field(default_factory=lambda: [http(200)])
    token: bytes | Slow = field(default_factory=lambda: http(200, TOKEN_ANSWER))
    closed: threading.Event = field(default_factory=threading.Event)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def says(self, *answers: bytes | Slow) -> None:
        """Answer calls with these bytes in turn, the last of them for ever; none hangs up."""
        self.answers = list(answers)

    def calls(self) -> list[Received]:
        return [one for one in self.requests if one.path != worker.lms.transport.TOKEN_PATH]

    def answer(self, received: Received) -> bytes | Slow:
        with self.changed:
            self.requests.append(received)
            if received.path == worker.lms.transport.TOKEN_PATH:
                return self.token
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def count(self, change: int) -> int:
        with self.changed:
            self.opened += max(0, change)
            self.still_open += change
            self.changed.notify_all()
            return self.opened
