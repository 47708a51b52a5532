"""Odd HTTP requests, whole and half ones, and a client that sends them as they are."""

import os
import re
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from urllib.parse import quote

from hypothesis import HealthCheck, settings, strategies as st

EXAMPLES = int(os.environ.get("FUZZ", "200"))
AS_MANY = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
MOST_HALF = 200  # requests that are begun and not ended, and stay open
EMAIL = re.compile(rb"[\w.+-]+@[\w-]+\.\w+")

METHODS = ("GET", "GET", "GET", "POST", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
HEADERS = (
    *("Host", "Cookie", "Range", "Accept-Encoding", "If-None-Match", "Origin", "Sec-Fetch-Site", "X-Real-Ip"),
    *("X-Scheme", "X-Forwarded-For", "Content-Type", "Content-Length", "Transfer-Encoding", "Expect", "Upgrade"),
)
VALUES = (
    *("", "0", "-1", "5", "99999999999999999999", "chunked", "gzip", "bytes=0-", "bytes=9-1", "100-continue", "h2c"),
    *("evil.example", "127.0.0.1", "localhost:0", "[::1]", "a:b:c", "cross-site", "same-origin", "null", "10.0.0.9"),
    *(
        "application/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
    ),
    *("user=2|1:0|10:0|4:user|4:AAAA|0", "_xsrf=2|a|b|1", "*", "\x1b[31m"),
)
BODIES = (
    b"",
    b"{}",
    b'{"args": [], "kwargs": {}}',
    b"[",
    b"a=%ff&b=%00",
    b"--x\r\n\r\n--x--",
    b"5\r\nhello\r\n0\r\n\r\n",
)
_TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    ("..", "%2e%2e", "%00", "%ff", "\x1b", "'")
)
_QUOTED = _TEXT.map(lambda text: quote(text, safe="%"))


@dataclass(frozen=True)
class Odd:
    """One request as bytes: `half` of one; `honest`, if it says how long it is; `authorized`, by the password."""

    raw: bytes
    half: bool
    honest: bool
    authorized: bool


def requests(
    paths: Sequence[str], queries: Sequence[str], logins: Sequence[str], right: str = ""
) -> st.SearchStrategy[Odd]:
    """Requests for these paths and others; with one of these values of Authorization, if any.

    The `right` one comes with GET and HEAD alone, which start nothing.
    """
    known = st.sampled_from(tuple(paths))
    path = known | known | st.lists(_QUOTED | _QUOTED | _TEXT, max_size=4).map(lambda parts: "/" + "/".join(parts))
    query = st.dictionaries(st.sampled_from(tuple(queries)) | _QUOTED, _QUOTED | _QUOTED | _TEXT, max_size=2)
    headers = st.lists(st.tuples(st.sampled_from(HEADERS), st.sampled_from(VALUES) | _QUOTED), max_size=2)
    body = st.just(b"") | st.just(b"") | st.sampled_from(BODIES) | st.binary(max_size=40)
    method = st.sampled_from((*METHODS, *METHODS, "get", "", "GET GET", "\x00"))
    login = st.sampled_from(("", right, right, *logins))
    cut = st.none() | st.none() | st.integers(0, 200)
    return st.builds(_odd, st.just(right), method, path, query, headers, body, login, cut)


def _odd(
    right: str,
    method: str,
    path: str,
    query: dict[str, str],
    headers: list[tuple[str, str]],
    body: bytes,
    login: str,
    cut: int | None,
) -> Odd:
    if right and login == right and method not in ("GET", "HEAD"):
        method = "GET"
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    named = {name.lower() for name, _ in headers}
    lines = [f"{method} {path}{'?' * bool(asked)}{asked} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers]
    lines += [] if "host" in named else ["Host: 127.0.0.1"]
    lines += [f"Authorization: {login}"] if login else []
    lines += [] if named & {"content-length", "transfer-encoding"} else [f"Content-Length: {len(body)}"]
    raw = "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body
    honest = not named & {"content-length", "transfer-encoding", "upgrade"}
    half = cut is not None and cut < len(raw)
    return Odd(raw[:cut], half, honest and not half, bool(right) and login == right)


class Client:
    """Sends such requests to a port; keeps the half ones open, so that the server has to get on with them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.half: list[socket.socket] = []
        self.statuses: Counter[bytes] = Counter()

    def send(self, odd: Odd) -> bytes:
        """Send one, and give what is answered; nothing to one that is half."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        with suppress(ConnectionError):  # refused before its end
            connection.sendall(odd.raw)
        if odd.half:
            self.half.append(connection)
            if len(self.half) > MOST_HALF:
                self.half.pop(0).close()
            return b""
        with closing(connection):
            answer = _answer(connection, 5 if odd.honest else 0.05)
        self.statuses[answer[9:12]] += 1
        return answer

    def close(self) -> None:
        """Leave the half ones."""
        for connection in self.half:
            connection.close()


def _answer(connection: socket.socket, seconds: float) -> bytes:
    connection.settimeout(seconds)
    parts = []
    with suppress(TimeoutError, ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def half_requests(port: int, number: int) -> list[socket.socket]:
    """So many connections, each with the beginning of a request."""
    made = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(number)]
    for connection in made:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
    return made
