"""How long the client retries a call in place before it raises Unavailable."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How often and how long a call is retried in place before Unavailable is raised; waits are in seconds.

    Only a hiccup is waited out: no try begins later than `in_place` after the first one began. The second try of a 500
    may, if the first one took longer than that: it is sent at once.
    """

    tries: int = 3
    tries_on_500: int = 2
    first_wait: float = 1.0
    in_place: float = 5.0
