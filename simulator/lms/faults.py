"""Faults that the simulated LMS produces on request, and its throttling."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from simulator.lms.journal import KINDS, Entry, Kind


@dataclass
class Fault:
    """One rule: which requests it matches, which of those it strikes, and what it does to them.

    It matches a request if all conditions given are true: `kind`, `enterprise`, `license`, `email`, `containing` (a
    text in the body), `longer_than` (bytes of the body). Without a `kind` it matches any token, downgrade, unlink or
    learners request. To simulate a firewall that blocks an address, use `containing` with `status` 403 and a web page
    as `body`; for a limit on bodies, `longer_than` with 413.

    Of the matching requests it strikes the `nth`; or those from the `first` to the `last`, of these one in `every`; and
    at most `times` in all. Then it waits `delay` seconds, or until released: before the work, or with `after_work`
    after it, with the request in flight meanwhile. And:

    - `drop="before"`: it closes the connection without doing the work; `drop="after"`: it does the work, then closes;
    - `status` (with `headers` and `body`): it gives this answer without doing the work, with `after_work` after it;
    - `truncate`: it does the work, announces a longer answer than it sends, and closes the connection;
    - none of these: it does the work and answers as usual. For a redirect, use status 302 and a Location header.
    """

    kind: Kind | None = None
    enterprise: str | None = None
    license: str | None = None
    email: str | None = None
    containing: str | None = None
    longer_than: int | None = None
    nth: int | None = None
    first: int = 1
    last: int | None = None
    every: int = 1
    times: int | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    delay: float = 0.0
    drop: Literal["before", "after"] | None = None
    after_work: bool = False
    truncate: bool = False
    met: int = field(default=0, compare=False)
    fired: int = field(default=0, compare=False)

    def __post_init__(self) -> None:
        """Refuse values that could never match, and convert UUIDs to text."""
        if self.kind is not None and self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind!r}")
        if self.drop not in (None, "before", "after"):
            raise ValueError(f'drop must be "before" or "after", not {self.drop!r}')
        if self.every < 1:
            raise ValueError("every must be at least 1")
        self.enterprise = str(self.enterprise) if self.enterprise is not None else None
        self.license = str(self.license) if self.license is not None else None
        if self.nth is not None:
            self.first = self.last = self.nth

    def meets(self, entry: Entry, body: bytes = b"") -> bool:
        """Return whether the rule matches a request with this body."""
        return (
            (self.kind == entry.kind or (self.kind is None and entry.kind != "other"))
            and (self.enterprise is None or self.enterprise in entry.enterprises)
            and (self.license is None or self.license in entry.licenses)
            and (self.email is None or self.email in entry.emails)
            and (self.containing is None or self.containing.encode() in body)
            and (self.longer_than is None or len(body) > self.longer_than)
        )

    def strikes(self) -> bool:
        """Return whether the rule strikes the request that it matched last."""
        return (
            self.first <= self.met
            and (self.last is None or self.met <= self.last)
            and (self.met - self.first) % self.every == 0
            and (self.times is None or self.fired < self.times)
        )

    def to_json(self) -> dict[str, Any]:
        """Return the rule, with its counts of matches and strikes, in the form that `from_json` takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> "Fault":
        """Make a rule from a JSON object with the fields' names. Raises ValueError."""
        if not isinstance(content, dict):
            raise ValueError("a fault is a JSON object")
        unknown = content.keys() - {one.name for one in fields(cls)}
        if unknown:
            raise ValueError(f"a fault has no {', '.join(sorted(unknown))}")
        return cls(**content)


def pick(faults: list[Fault], entry: Entry, body: bytes = b"") -> Fault | None:
    """Count the request in every rule that matches it, and return the first that strikes it."""
    struck: Fault | None = None
    for fault in faults:
        if fault.meets(entry, body):
            fault.met += 1
            if struck is None and fault.strikes():
                fault.fired += 1
                struck = fault
    return struck


@dataclass
class Throttle:
    """At most `calls` calls in any `seconds`, as the LMS's own throttle counts them."""

    calls: int
    seconds: float
    taken: list[float] = field(default_factory=list)

    def refuses(self, now: float) -> int | None:
        """Count a call at this monotonic time; if it is one too many, return the seconds to wait."""
        self.taken = [moment for moment in self.taken if moment > now - self.seconds]
        if len(self.taken) >= self.calls:
            return max(1, math.ceil(self.taken[0] + self.seconds - now))
        self.taken.append(now)
        return None


THROTTLED = ("downgrade", "unlink", "learners")


def windows_of(whom: str) -> dict[str, Throttle]:
    """Return the LMS's own limits per minute, by kind of call.

    A "service" user, named in ENTERPRISE_ALL_SERVICE_USERNAMES, has one limit for each call. Any "other" user has one
    limit for all calls together.
    """
    windows = {
        "service": {"downgrade": Throttle(800, 60), "unlink": Throttle(2000, 60)},
        "other": dict.fromkeys(THROTTLED, Throttle(60, 60)),
    }
    return windows[whom]
