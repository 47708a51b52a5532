"""Slows failed logins in Flower: each is logged, and makes its address wait longer before the next try."""

import time
from base64 import b64decode
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from math import ceil
from typing import Any

from tornado.web import HTTPError

from worker.logs import get_logger, printable

log = get_logger(__name__)

LONGEST_SECONDS = 30
MOST_ADDRESSES = 1000
MOST_LETTERS = 64  # of a user's name


class Logins:
    """Checks logins with Flower. Counts failed logins by remote address, and delays the next one.

    A login that was accepted once is never delayed: behind a proxy all may come from one address.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._right: set[bytes] = set()

    def user(self, handler: Any, look: Callable[[Any], Any]) -> Any:
        """The result of `look`, Flower's own get_current_user. Raises HTTPError 401, or 429 before the wait is over."""
        given, address = handler.request.headers.get("Authorization", ""), handler.request.remote_ip
        if not given or not handler.application.options.basic_auth:
            return look(handler)
        login = sha256(given.encode()).digest()
        failures, again_at = self._failed.get(address, (0, 0.0))
        wait = ceil(again_at - self._clock())
        if wait > 0 and login not in self._right:
            raise HTTPError(429, reason=f"Too many failed logins: try again in {wait} seconds")
        try:
            user = look(handler)
        except (HTTPError, TypeError):  # the other of a login that is not ASCII, which Flower would show with its stack
            self._note(address, failures + 1, _name_in(given))
            raise HTTPError(401) from None
        if login not in self._right:
            self._right.add(login)
            self._failed.pop(address, None)
        return user

    def _note(self, address: str, failures: int, name: str) -> None:
        wait = min(2 ** min(failures - 1, 10), LONGEST_SECONDS)
        self._failed[address] = failures, self._clock() + wait
        self._failed.move_to_end(address)
        if len(self._failed) > MOST_ADDRESSES:
            self._failed.popitem(last=False)
        log.warning("login failed", user=name, address=address, failures=failures, next_try_in=wait)


def _name_in(given: str) -> str:
    """The user's name in a header Authorization, for the log; "" where there is none. Never the password."""
    try:
        name, colon, _ = b64decode(given.partition(" ")[2]).decode().partition(":")
    except ValueError:
        return ""
    return " ".join(printable(name).split())[:MOST_LETTERS] if colon else ""
