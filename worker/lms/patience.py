"""How long the client bears with the LMS in place, before its caller gives the step back."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Patience:
    """How long the client bears with the LMS before it raises Unavailable; waits are in seconds.

    Only a hiccup is waited out: no try begins later than `in_place` after the first one began. The second try of a 500
    may, when the first one took so long: it is sent at once.
    """

    tries: int = 3
    tries_on_500: int = 2
    first_wait: float = 1.0
    in_place: float = 5.0
