"""The requests to the simulated LMS, in order."""

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any, Literal

Kind = Literal["token", "downgrade", "unlink", "learners", "other"]
Dropped = Literal["before", "after", "truncated"]
KINDS: tuple[Kind, ...] = ("token", "downgrade", "unlink", "learners", "other")


@dataclass
class Entry:
    """One request. It is in the journal as soon as it is received; `end` is None while it is in flight.

    `start`, `end` and `gone` are numbers of one counter: A was answered before B came in if `A.end < B.start`.
    `worked`: the LMS did the work, whatever it answered; with 422, all but the locked enrollments. `dropped`: the
    connection was closed before the work, after it, or within the answer. `gone`: when the client disconnected before
    it had its answer.
    """

    kind: Kind
    path: str
    start: int
    started_at: datetime
    enterprises: list[str] = field(default_factory=list)
    licenses: list[Any] = field(default_factory=list)
    ignore_enrollments_modified_after: str | None = None
    emails: list[Any] = field(default_factory=list)
    is_relinkable: bool | None = None
    user_ids: list[int] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    end: int | None = None
    ended_at: datetime | None = None
    status: int | None = None
    dropped: Dropped | None = None
    worked: bool = False
    gone: int | None = None

    @property
    def enterprise(self) -> str | None:
        """Return the enterprise of the request; None if it has none or several."""
        return self.enterprises[0] if len(self.enterprises) == 1 else None

    @property
    def client_gone(self) -> bool:
        """Return whether the client disconnected before the answer."""
        return self.gone is not None

    def to_json(self) -> dict[str, Any]:
        """Return the entry as JSON, times as ISO 8601."""
        times = {
            "started_at": self.started_at.isoformat(),
            "ended_at": self.ended_at.isoformat() if self.ended_at else None,
        }
        return {**asdict(self), **times, "enterprise": self.enterprise, "client_gone": self.client_gone}


class Journal:
    """The entries, and a condition that is notified when one begins or ends."""

    def __init__(self) -> None:
        """Start empty, counting from 1."""
        self.changed = threading.Condition()
        self._numbers: Iterator[int] = count(1)
        self._entries: list[Entry] = []
        self.in_flight = 0
        self.most_in_flight = 0

    @property
    def entries(self) -> list[Entry]:
        """Return a copy of the list, safe to read while requests come in."""
        return list(self._entries)

    def calls(self, kind: Kind | None = None, enterprise: object = None) -> list[Entry]:
        """Return the entries of one kind and one enterprise (a UUID or its text), by start."""
        wanted = str(enterprise) if enterprise is not None else None
        return [
            entry
            for entry in self._entries
            if kind in (None, entry.kind) and (wanted is None or wanted in entry.enterprises)
        ]

    def begin(self, kind: Kind, path: str, **about: Any) -> Entry:
        """Enter a request that has just come in."""
        with self.changed:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
            entry = Entry(kind, path, next(self._numbers), datetime.now(UTC), **about)
            entry.in_flight, entry.most_in_flight = self.in_flight, self.most_in_flight
            self._entries.append(entry)
            self.changed.notify_all()
        return entry

    def leave(self, entry: Entry) -> None:
        """Record that a client disconnected, unless it had its answer."""
        with self.changed:
            if entry.end is None and entry.gone is None:
                entry.gone = next(self._numbers)
                self.changed.notify_all()

    def finish(self, entry: Entry, status: int | None, dropped: Dropped | None) -> None:
        """Record that a request is answered or dropped. Call it before the answer is sent."""
        with self.changed:
            self.in_flight -= 1
            entry.status, entry.dropped = status, dropped
            entry.ended_at = datetime.now(UTC)
            entry.end = next(self._numbers)
            self.changed.notify_all()

    def clear(self) -> None:
        """Remove all entries. Numbers continue, and requests in flight stay counted."""
        with self.changed:
            self._entries = []
            self.most_in_flight = self.in_flight

    def counts(self) -> dict[str, Any]:
        """Count requests by kind, answers by kind and status, and requests in flight, now and at most."""
        statuses: dict[str, dict[str, int]] = {kind: {} for kind in KINDS}
        for entry in self.entries:
            status = "in flight" if entry.end is None else str(entry.status or f"dropped {entry.dropped}")
            statuses[entry.kind][status] = statuses[entry.kind].get(status, 0) + 1
        return {
            "requests": {kind: sum(by_status.values()) for kind, by_status in statuses.items()},
            "statuses": statuses,
            "in_flight": self.in_flight,
            "most_in_flight": self.most_in_flight,
        }
