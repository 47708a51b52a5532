"""Faults that the simulated LMS can be told to show, and its throttling."""

import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from simulator.lms.journal import KINDS, Entry, Kind


@dataclass
class Fault:
    """One rule: which requests it meets, which of those it strikes, and what it does to them.

    It meets a request when each of `kind`, `enterprise`, `license`, `email`, `containing` (a text in its body) and
    `longer_than` (bytes of its body) that is given fits; without a `kind`, any token, downgrade, unlink or learners
    request. A firewall that dislikes one address is `containing` it, with a `status` of 403 and a web page as `body`; a
    limit for bodies is `longer_than` with 413. Of those it strikes the `nth`, or those from the `first`
    to the `last`, or from the first on every so-many-th (`every`), and at most `times` in all. What it does:
    wait `delay` seconds (or until released; with `after_work` it waits once the work is done, so that a client
    that times out does so after that, and the request is in flight until then), and

    - `drop="before"`: close the connection with nothing done; `drop="after"`: do the work, then close it;
    - `status` (with `headers` and `body`): answer that with nothing done, or with `after_work` once it is;
    - `truncate`: do the work, announce a longer answer than is sent, and close the connection;
    - none of these: do the work and answer as always. A redirect is a status 302 with a Location header.
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
        """Refuse what could never strike, and take UUIDs as well as their text."""
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
        """Say whether a request, with this body, is one that the rule is about."""
        return (
            (self.kind == entry.kind or (self.kind is None and entry.kind != "other"))
            and (self.enterprise is None or self.enterprise in entry.enterprises)
            and (self.license is None or self.license in entry.licenses)
            and (self.email is None or self.email in entry.emails)
            and (self.containing is None or self.containing.encode() in body)
            and (self.longer_than is None or len(body) > self.longer_than)
        )

    def strikes(self) -> bool:
        """Say whether the request met last is one to strike."""
        return (
            self.first <= self.met
            and (self.last is None or self.met <= self.last)
            and (self.met - self.first) % self.every == 0
            and (self.times is None or self.fired < self.times)
        )

    def to_json(self) -> dict[str, Any]:
        """Give the rule with how often it met and struck, as `from_json` takes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> "Fault":
        """Make a rule of a JSON object with the names of the fields; ValueError says what is wrong."""
        if not isinstance(content, dict):
            raise ValueError("a fault is a JSON object")
        unknown = content.keys() - {one.name for one in fields(cls)}
        if unknown:
            raise ValueError(f"a fault has no {', '.join(sorted(unknown))}")
        return cls(**content)


def pick(faults: list[Fault], entry: Entry, body: bytes = b"") -> Fault | None:
    """Let every rule count the request with this body, and give the first that strikes it."""
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
        """Count a call at a moment of a steady clock; give the seconds to wait when it is one too many."""
        self.taken = [moment for moment in self.taken if moment > now - self.seconds]
        if len(self.taken) >= self.calls:
            return max(1, math.ceil(self.taken[0] + self.seconds - now))
        self.taken.append(now)
        return None


THROTTLED = ("downgrade", "unlink", "learners")


def windows_of(whom: str) -> dict[str, Throttle]:
    """The LMS's own windows of a minute, by kind of call.

    A "service" user that ENTERPRISE_ALL_SERVICE_USERNAMES names has one for each call; any "other" has one for all.
    """
    windows = {
        "service": {"downgrade": Throttle(800, 60), "unlink": Throttle(2000, 60)},
        "other": dict.fromkeys(THROTTLED, Throttle(60, 60)),
    }
    return windows[whom]
