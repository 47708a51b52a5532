"""Sends calls to the LMS: token, throttle, connections, time-outs.

Nothing of a request's or an answer's body is ever put into a message: bodies hold e-mail addresses.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from io import BytesIO
from math import inf
from typing import Any
from uuid import uuid4

import requests

from worker.clock import steady
from worker.errors import LeaseLost, Unavailable
from worker.lms.answer import CONNECT_TIMEOUT, MOST_BYTES, MOST_BYTES_OF_LEARNERS, Session
from worker.lms.connecting import not_reached
from worker.lms.outcomes import (
    TOKEN_URL,
    Answer,
    date_of,
    judge,
    judge_question,
    judge_token,
    token_in,
    too_large,
)
from worker.lms.patience import Patience
from worker.logs import get_logger

log = get_logger(__name__)

REQUEST_ID = "X-Request-ID"
TOKEN_PATH = "/oauth2/access_token"  # noqa: S105, a path
TOKEN_LEEWAY = 30.0

Guard = Callable[[], float]
"""Called right before anything is sent. Returns by when, on clock.steady, the call must end; may raise to end it."""


@dataclass(frozen=True)
class Content:
    """The body of one try of a call, and the latest time (clock.steady) to send its first byte."""

    body: object = field(repr=False)
    fresh_until: float = inf


Prepare = Callable[[], Content | None]
"""Called after all waits for the content of a try; None when there is nothing left to send."""


class TimedBody(BytesIO):
    """The bytes of a call. They leave only in time.

    Since they were made, connecting may have taken long, or the process may have been frozen.
    """

    def __init__(self, data: bytes, until: float, fresh_until: float = inf) -> None:
        super().__init__(data)
        self._until, self._fresh_until = until, fresh_until

    def read(self, size: int | None = -1, /) -> bytes:
        """Give the next bytes.

        Raises LeaseLost if the call could not end before the lease does. Raises Unavailable if the selection is too old
        for the first byte to be sent.
        """
        now = steady()
        if now >= self._until:
            raise LeaseLost("too little was left of the lease between its check and the call: nothing was sent")
        if now >= self._fresh_until and not self.tell():
            what = "a batch was selected more than two seconds before its first byte could be sent: nothing was sent"
            raise Unavailable(
                "too_late",
                what,
                "check how long connections to the LMS take, and whether this host is overloaded",
            )
        return super().read(size)


class _NothingToSend(Exception):
    """There is nothing left to send."""


class _JwtAuth(requests.auth.AuthBase):
    """Puts `Authorization: JWT <token>` on a request; the token is fetched when first needed and kept."""

    def __init__(self, fetch: Callable[[], tuple[str, float]]) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._token = ""
        self._expires = 0.0

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"JWT {self._token}"
        return request

    def ready(self) -> None:
        """Fetch a token unless the present one is still valid; raises as fetching does."""
        with self._lock:
            if time.monotonic() >= self._expires:
                self._token, lifetime = self._fetch()
                self._expires = time.monotonic() + lifetime - TOKEN_LEEWAY

    def forget(self, response: requests.Response) -> None:
        """Drop the token that this response refused, unless another thread already has a newer one."""
        with self._lock:
            if response.request.headers.get("Authorization") == f"JWT {self._token}":
                self._expires = 0.0


class Transport:
    """Sends calls as this worker's service user; safe to share between threads, one session for each.

    Time-outs are in seconds. `observe` gets each HTTP call: its kind (or "token"), the outcome, its seconds.
    `next_call_in` books the next call of a kind when that may begin within the seconds that it is given: it returns
    those to wait, or raises. `sleep` spends all waits; what it raises ends the call. `confirmed_at`
    has the moment, on time.monotonic, of the last success of each path.
    """

    def __init__(
        self,
        url: str,
        oauth_url: str,
        key: str,
        secret: str,
        *,
        downgrade_timeout: float = 120,
        unlink_timeout: float = 120,
        observe: Callable[[str, str, float], None] = lambda *_: None,
        next_call_in: Callable[[str, float], float] = lambda kind, within: 0.0,
        sleep: Callable[[float], None] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._url, self._token_url = url, oauth_url + TOKEN_PATH
        self._credentials = {"client_id": key, "client_secret": secret}
        self._timeouts = {"downgrade": downgrade_timeout, "unlink": unlink_timeout, "token": CONNECT_TIMEOUT}
        self._timeouts["learners"] = unlink_timeout
        self._observe, self._next_call_in = observe, next_call_in
        self.sleep, self.patience = sleep or time.sleep, patience or Patience()
        self.confirmed_at: dict[str, float] = {}
        self._auth = _JwtAuth(self._fetch_token)
        self._local = threading.local()
        self._sessions: list[Session] = []
        self._told: tuple[datetime | None, float] = None, 0.0

    def post(self, kind: str, path: str, prepare: Prepare, guard: Guard) -> None:
        """Send one call; return when the LMS has confirmed it, or when there is nothing to send.

        Right before it is sent, after all waits, `prepare` gives its content, and then `guard` is called. Raises as
        `outcomes.judge` does, or as these two.
        """

        def ready() -> dict[str, Any]:
            content = prepare()
            if content is None:
                raise _NothingToSend
            data = json.dumps(content.body).encode()
            until = guard() - self._timeout(kind)
            return {
                "data": TimedBody(data, until, content.fresh_until),
                "headers": {"Content-Type": "application/json"},
            }

        try:
            judge(self._send_as_user("POST", kind, path, ready))
        except _NothingToSend:
            return
        self.confirmed_at[path] = time.monotonic()

    def get(self, kind: str, path: str, guard: Guard) -> bytes:
        """Ask the LMS something; return the answer's body. Raises as `outcomes.judge_question` does, or as `guard`."""

        def ready() -> dict[str, Any]:
            guard()
            return {}

        answer = self._send_as_user("GET", kind, path, ready)
        judge_question(answer)
        return answer.body

    @contextmanager
    def named(self, name: str, most: float = inf) -> Iterator[None]:
        """Let the id of each request that this thread sends meanwhile begin with this name, of a run and a batch.

        None of them has a time-out of more than `most` seconds.
        """
        self._local.name, self._local.number, self._local.most = name, 0, most
        try:
            yield
        finally:
            self._local.name, self._local.most = "", inf

    def _timeout(self, kind: str) -> float:
        return min(self._timeouts[kind], getattr(self._local, "most", inf))

    def lms_now(self) -> datetime | None:
        """The LMS's clock, to a second, from the Date of the last token; None without one.

        Fetches a token if there is none yet. Raises RunRefused, Unavailable.
        """
        self._auth.ready()
        date, at = self._told
        return date and date + timedelta(seconds=steady() - at)

    def close(self) -> None:
        """Close the connections of all threads."""
        for session in self._sessions:
            session.close()

    def _send_as_user(self, method: str, kind: str, path: str, ready: Callable[[], dict[str, Any]]) -> Answer:
        """Send with a token. `ready` is asked last before each send, because getting a token may take long."""

        def with_token() -> dict[str, Any]:
            self._auth.ready()
            self._connect_if_slow()
            return {**ready(), "auth": self._auth}

        response = self._send_in_turn(method, kind, self._url + path, with_token)
        if response.status_code == 401:  # the LMS may forget a token early: one new token, one repeat
            self._auth.forget(response)
            response = self._send_in_turn(method, kind, self._url + path, with_token)
        return Answer(response.status_code, response.headers, response.content)

    def _send_in_turn(self, method: str, kind: str, url: str, ready: Callable[[], dict[str, Any]]) -> requests.Response:
        """Send once its booked moment has come. Right before, `ready` gives the options of `request`."""
        self.sleep(self._next_call_in(kind, self.patience.in_place))
        return self._send(method, kind, url, ready(), "LMS_URL")

    def _send(self, method: str, kind: str, url: str, options: dict[str, Any], setting: str) -> requests.Response:
        began, outcome, request_id = time.monotonic(), "", self._next_request_id()
        options["headers"] = {**options.get("headers", {}), REQUEST_ID: request_id}
        try:
            most = MOST_BYTES_OF_LEARNERS if kind == "learners" else MOST_BYTES
            response = self._session().call(method, url, self._timeout(kind), most, **options)
            outcome = f"http_{response.status_code}"
            if response.ok and len(response.content) > most:
                raise too_large(Answer(response.status_code, response.headers, response.content), most, setting)
            return response
        except Unavailable:  # of a TimedBody
            self._local.too_old = True
            raise
        except OSError as error:  # requests' errors are among them
            failed = not_reached(error, url, setting)
            outcome = failed.reason
            raise failed from error
        finally:
            if outcome:  # else nothing was sent
                seconds = time.monotonic() - began
                log.debug("LMS call", kind=kind, outcome=outcome, seconds=round(seconds, 3), request_id=request_id)
                self._observe(kind, outcome, seconds)

    def _next_request_id(self) -> str:
        """A unique id for each request, by which its line in the LMS's log can be found: see `named`."""
        name = getattr(self._local, "name", "")
        if not name:
            return str(uuid4())
        self._local.number += 1
        return f"{name}-{self._local.number}"

    def _connect_if_slow(self) -> None:
        """Open this thread's connection before the next selection is made, if the last one grew old on its way.

        Where connecting takes longer than a selection stays fresh (a slow resolver, say), nothing would ever be sent.
        """
        if getattr(self._local, "too_old", False):
            self._local.too_old = False
            options: dict[str, Any] = {"timeout": (CONNECT_TIMEOUT, CONNECT_TIMEOUT), "auth": lambda request: request}
            with suppress(requests.RequestException):
                self._session().head(self._url + TOKEN_PATH, **options)

    def _fetch_token(self) -> tuple[str, float]:
        """Get a token and its lifetime in seconds by the client-credentials grant."""
        form = {"grant_type": "client_credentials", "token_type": "jwt", **self._credentials}
        options = {"data": form, "auth": lambda request: request}  # else a netrc file's
        response = self._send("POST", "token", self._token_url, options, TOKEN_URL)
        self._told = date_of(response.headers), steady()
        answer = Answer(response.status_code, response.headers, response.content)
        judge_token(answer)
        return token_in(answer)

    def _session(self) -> Session:
        """This thread's session: connections are kept open and never shared between threads."""
        session: Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = Session()
            self._sessions.append(session)
        return session
