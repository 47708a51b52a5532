"""Reads an answer of the LMS within a time and a size that bound the whole of it, headers included.

Without that, each byte has the whole time-out to itself, and an answer may be as large as it likes.
"""

import http.client
import io
import socket
from importlib.metadata import version
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Timeout
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError

from worker.clock import steady

CONNECT_TIMEOUT = 10.0
# The most bytes of an answer's body, decoded: of the question who is linked (100 learners, 5 kB each), of all others.
MOST_BYTES_OF_LEARNERS = 8 * 1024 * 1024
MOST_BYTES = 1024 * 1024
# The limit on the wire, headers included: http.client takes 100 headers of 64 kB.
_MOST_BYTES_ON_THE_WIRE = MOST_BYTES_OF_LEARNERS + 8 * 1024 * 1024
_CHUNK = 64 * 1024


class Session(requests.Session):
    """The connections of one thread, which are kept open. Takes no answer for a redirect, wherever it points.

    Its User-Agent names license-expiry in the LMS's log.
    """

    def __init__(self) -> None:
        super().__init__()
        self.headers["User-Agent"] = f"license-expiry/{version('license-expiry')}"
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter())

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Follow none (requests' hook)."""

    def call(self, method: str, url: str, seconds: float, most: int, **options: Any) -> requests.Response:
        """Send a request; return the answer, its body cut off after `most` bytes and one: then it was too large.

        `options` are those of `request`. Raises what that raises; requests.Timeout when connecting, sending and the
        whole answer take longer than `seconds`.
        """
        timeout: Any = Timeout(total=seconds, connect=CONNECT_TIMEOUT, read=seconds)
        try:
            response = self.request(method, url, stream=True, timeout=timeout, **options)
            with response:  # closes the connection unless all of it was read
                response._content = _body(response, most)  # what `content` then gives
        except requests.ConnectionError as error:
            if error.args and isinstance(error.args[0], ReadTimeoutError):  # in the body: no Timeout to requests
                raise requests.ReadTimeout(error) from error
            raise
        except HTTPError as error:  # of urllib3; requests wraps most of them
            raise requests.ConnectionError(error) from error
        return response


def _body(response: requests.Response, most: int) -> bytes:
    body = bytearray()
    for chunk in response.iter_content(_CHUNK):  # urllib3 decodes no more than that at once
        body += chunk
        if len(body) > most:
            break
    return bytes(body[: most + 1])


class _Bounded(io.RawIOBase):
    """The bytes of one answer as they come from the socket, for as long as its time-out is when the answer begins."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw, self._sock, self._left = raw, sock, _MOST_BYTES_ON_THE_WIRE
        self._ends = steady() + (sock.gettimeout() or CONNECT_TIMEOUT)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Give the next bytes. Raises TimeoutError when the time is up, OSError when they are too many."""
        seconds = self._ends - steady()
        if seconds <= 0:
            raise TimeoutError("timed out")
        if self._left <= 0:
            raise OSError("the answer is too large")
        self._sock.settimeout(seconds)
        count = self._raw.readinto(buffer)
        self._left -= count or 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer, whose headers and body are read from `_Bounded`."""

    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = io.BufferedReader(_Bounded(self.fp.detach(), sock))


class _InTime(HTTPConnection):
    """A connection that gives each call its own time-outs, and not what the answer before has left of its own."""

    response_class = _Response

    def send(self, data: Any) -> None:
        """Send bytes (http.client's method, which connects first if necessary)."""
        if self.sock is not None:
            self.sock.settimeout(self.timeout)
        super().send(data)


class _InTimeTLS(_InTime, HTTPSConnection):
    """The same over TLS."""


class _Pool(HTTPConnectionPool):
    ConnectionCls = _InTime


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _InTimeTLS


_POOLS = {"http": _Pool, "https": _TLSPool}


class _Adapter(HTTPAdapter):
    """Makes such connections, through a proxy too."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Make the pools of connections (requests' hook)."""
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        """Make the connection pools of a proxy (requests' hook)."""
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager
