"""The LMS client: token, the two calls, and what each outcome means.

Every outcome becomes a return (2xx) or one type of the error tree with a stable reason code, see `worker.lms.outcomes`.
Nothing of a request's or an answer's body is ever put into a message: bodies hold e-mail addresses.
"""

import json
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from math import inf
from uuid import UUID

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential_jitter

from worker.errors import BatchRefused, RunRefused, Unavailable
from worker.lms.outcomes import CREDENTIALS_REMEDY, dated, judge, retry_after
from worker.shutdown import Patience, Pause, TimedBody

TOKEN_PATH = "/oauth2/access_token"  # noqa: S105, a path
DOWNGRADE_PATH = "/enterprise/api/v1/licensed-enterprise-course-enrollment/bulk_licensed_enrollments_expiration/"
UNLINK_PATH = "/enterprise/api/v1/enterprise-customer/{enterprise}/unlink_users/"

CONNECT_TIMEOUT = 10.0
TOKEN_LEEWAY = 30.0
RECENTLY = 5.0
# Nobody's, so passed over by the LMS: what it answers to them tells whether it works at all.
NOBODYS_LICENSE = UUID("00000000-0000-4000-8000-000000000000")
NOBODYS_EMAIL = "nobody@license-expiry.invalid"


Guard = Callable[[], float]
"""Asked right before anything is sent: until when, on waits.steady, the call must have ended; may raise to end it."""

_throttled = Pause()


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
        """Fetch a token unless there is one that will do; raises what fetching raises."""
        with self._lock:
            if time.monotonic() >= self._expires:
                self._token, lifetime = self._fetch()
                self._expires = time.monotonic() + lifetime - TOKEN_LEEWAY

    def forget(self, response: requests.Response) -> None:
        """Drop the token that this response refused, unless another thread already has a newer one."""
        with self._lock:
            if response.request.headers.get("Authorization") == f"JWT {self._token}":
                self._expires = 0.0


class _Session(requests.Session):
    """A session that takes no answer for a redirect, and so follows none, wherever it points."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        return None


class LmsClient:
    """The LMS as this worker's service user sees it; safe to share between threads, one session for each.

    `observe` is told of each HTTP call: the step (or "token"), the outcome, the seconds that it took. `pace` returns
    the seconds that the next call has to wait (for LMS_REQUESTS_PER_MINUTE); `sleep` is how all waits are spent, and
    what it raises ends the call. Each call takes a `guard`, see `Guard`.
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
        pace: Callable[[], float] = lambda: 0.0,
        sleep: Callable[[float], None] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._url = url
        self._token_url = oauth_url + TOKEN_PATH
        self._credentials = {"client_id": key, "client_secret": secret}
        self._timeouts = {"downgrade": downgrade_timeout, "unlink": unlink_timeout}
        self._observe = observe
        self._pace = pace
        self._sleep = sleep or time.sleep
        self._patience = patience or Patience()
        self._auth = _JwtAuth(self._fetch_token)
        self._local = threading.local()
        self._sessions: list[requests.Session] = []
        self._answered: dict[str, float] = {}
        self._dated: datetime | None = None

    def downgrade(self, licenses: Sequence[UUID], modified_after: datetime | None, guard: Guard) -> None:
        """Have the LMS move the enrolments of these licenses to audit.

        Returns when the LMS has confirmed it; raises BatchRefused, RunRefused, Unavailable, or what `guard`
        raises.
        """

        def body(uuids: Sequence[UUID]) -> dict[str, object]:
            return {
                "expired_license_uuids": [str(uuid) for uuid in uuids],
                "ignore_enrollments_modified_after": modified_after and modified_after.isoformat(),
            }

        self._call("downgrade", DOWNGRADE_PATH, body(licenses), body([NOBODYS_LICENSE]), guard)

    def unlink(self, enterprise: UUID, emails: Sequence[str], guard: Guard) -> None:
        """Have the LMS unlink these learners from the enterprise, so that they may be linked again later.

        Returns when the LMS has confirmed it; raises as `downgrade` does.
        """
        body, probe = ({"user_emails": to, "is_relinkable": True} for to in (list(emails), [NOBODYS_EMAIL]))
        self._call("unlink", UNLINK_PATH.format(enterprise=enterprise), body, probe, guard)

    def check(self) -> datetime | None:
        """Get a token, and the moment of the LMS's clock at its answer, if it told. Raises RunRefused, Unavailable."""
        self._auth.ready()
        return self._dated

    def close(self) -> None:
        """Close the connections of all threads."""
        for session in self._sessions:
            session.close()

    def _call(self, kind: str, path: str, body: object, probe: object, guard: Guard) -> None:
        """Send `body`; where it is refused, make sure that the LMS takes this kind of call at all.

        Without that, an LMS that refuses everything would have every license held, one by one.
        """
        started = time.monotonic()
        try:
            self._persist(kind, path, body, guard)
        except BatchRefused as refused:
            if self._answered.get(path, -inf) < started - RECENTLY:
                try:
                    self._persist(kind, path, probe, guard)
                except BatchRefused as error:
                    raise Unavailable(error.reason, "the LMS refuses even a call that concerns nobody") from error
            raise refused

    def _persist(self, kind: str, path: str, body: object, guard: Guard) -> None:
        """Send `body` until it is taken, refused for good, or the tries in place are used up."""
        patience = self._patience
        backoff = wait_exponential_jitter(multiplier=patience.first_wait, max=patience.longest_wait)
        refusals, barred = 0, False

        def bar() -> float:
            nonlocal barred
            barred = True  # until the guard says otherwise: what it raises is not tried again
            until = guard()
            barred = False
            return until

        def again(error: BaseException) -> bool:
            return not barred and isinstance(error, Unavailable | BatchRefused)

        def wait(state: RetryCallState) -> float:
            asked = getattr(state.outcome and state.outcome.exception(), "retry_after", None)
            return backoff(state) if asked is None else min(asked, patience.longest_wait)

        def spent(state: RetryCallState) -> bool:
            nonlocal refusals
            error = state.outcome and state.outcome.exception()
            if isinstance(error, BatchRefused):
                refusals += 1
                return error.reason != "http_500" or refusals >= patience.tries_on_500
            return state.attempt_number >= patience.tries or getattr(error, "reason", "") == "throttled"

        retrying = Retrying(retry=retry_if_exception(again), wait=wait, stop=spent, sleep=self._sleep, reraise=True)
        for attempt in retrying:
            with attempt:
                self._attempt(kind, path, body, bar)
        self._answered[path] = time.monotonic()

    def _attempt(self, kind: str, path: str, body: object, guard: Guard) -> None:
        data = json.dumps(body).encode()
        until = inf

        def send() -> requests.Response:
            return self._session().post(
                self._url + path,
                data=TimedBody(data, until),
                headers={"Content-Type": "application/json"},
                auth=self._auth,
                timeout=(CONNECT_TIMEOUT, self._timeouts[kind]),
            )

        def ready() -> None:
            nonlocal until
            self._auth.ready()
            until = guard() - self._timeouts[kind]  # last, because a token may take its time

        response = self._unthrottled(kind, send, ready)
        if response.status_code == 401:  # the LMS may forget a token early: one new token, one repeat
            self._auth.forget(response)
            response = self._unthrottled(kind, send, ready)
        page = "html" in response.headers.get("Content-Type", "") and bool(response.content.strip())
        judge(response.status_code, retry_after(response.headers), page)

    def _unthrottled(
        self,
        kind: str,
        send: Callable[[], requests.Response],
        ready: Callable[[], None] = lambda: None,
        setting: str = "LMS_URL",
    ) -> requests.Response:
        """Send when no throttle stands in the way, and again for as long as the LMS answers 429, up to a cap."""
        deadline = time.monotonic() + self._patience.longest_throttle
        while True:
            self._sleep(self._pace())
            while pause := _throttled.remaining():
                if time.monotonic() + pause > deadline:
                    raise Unavailable("throttled", "the LMS has throttled us for too long", pause)
                self._sleep(pause * random.uniform(1.0, 1.1))  # noqa: S311, so that not all go at once
            ready()
            response = self._timed(kind, send, setting)
            if response.status_code != 429:
                return response
            _throttled.extend(max(retry_after(response.headers) or 0.0, self._patience.first_wait))

    def _timed(self, kind: str, send: Callable[[], requests.Response], setting: str) -> requests.Response:
        began, outcome = time.monotonic(), ""
        try:
            response = send()
            outcome = f"http_{response.status_code}"
            return response
        except requests.Timeout as error:
            outcome = "timeout"
            raise Unavailable(outcome, "the LMS did not answer in time") from error
        except requests.RequestException as error:
            outcome = "connection_error"
            what = f"the connection to the LMS failed ({type(error).__name__}): check {setting}"
            raise Unavailable(outcome, what) from error
        finally:
            if outcome:  # else nothing was sent
                self._observe(kind, outcome, time.monotonic() - began)

    def _fetch_token(self) -> tuple[str, float]:
        """Get a token and its lifetime in seconds by the client-credentials grant."""
        form = {"grant_type": "client_credentials", "token_type": "jwt", **self._credentials}
        response = self._unthrottled(
            "token",
            lambda: self._session().post(
                self._token_url,
                data=form,
                auth=lambda request: request,  # else a netrc file's
                timeout=(CONNECT_TIMEOUT, CONNECT_TIMEOUT),
            ),
            setting="SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT (LMS_URL when not set)",
        )
        self._dated, status = dated(response.headers), response.status_code
        if status == 408 or status >= 500:
            later = retry_after(response.headers)
            raise Unavailable(f"token_http_{status}", f"the LMS gave no token but {status}", later)
        if not 200 <= status < 300:
            raise RunRefused(f"token_http_{status}", f"the LMS gives us no token: {CREDENTIALS_REMEDY}")
        try:
            answer = response.json()
            token, lifetime = answer["access_token"], float(answer["expires_in"])
            if not re.fullmatch(r"[!-~]+", token):
                raise ValueError("no token")
        except (ValueError, KeyError, TypeError) as error:
            raise RunRefused("bad_token", f"what the LMS gave is not a token: {CREDENTIALS_REMEDY}") from error
        return token, lifetime

    def _session(self) -> requests.Session:
        """This thread's session: connections are kept open and never shared between threads."""
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = _Session()
            self._sessions.append(session)
        return session
