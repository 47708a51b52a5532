"""One simulated LMS: its credentials, tokens, state, journal, faults and throttling."""

import asyncio
import secrets
import time
from contextlib import suppress

from sqlalchemy import Engine

from simulator.lms.faults import THROTTLED, Fault, Throttle, windows_of
from simulator.lms.journal import Journal
from simulator.lms.seeding import seed_from_database
from simulator.lms.state import Answer, State, json_answer


class Lms:
    """One simulated LMS, with everything that its handlers share."""

    def __init__(
        self,
        client_id: str = "license-expiry",
        client_secret: str = "not-a-secret",
        latency: float = 0.0,
        token_seconds: int = 3600,
        engine: Engine | None = None,
        staff: bool = True,
        atomic: bool = True,
    ) -> None:
        """`latency` is the seconds that a call takes; `engine` is a database to seed the state from.

        `staff`: whether the service user is staff. If not, it may downgrade, but each unlink gets a 404 and its list of
        learners is empty. `atomic`: whether a request that ends in a 500 changes nothing, as with edx-platform's
        ATOMIC_REQUESTS on. If it is off, the work done before the fault stays.
        """
        self.client_id = client_id
        self.client_secret = client_secret
        self.latency = latency
        self.token_seconds = token_seconds
        self.engine = engine
        self.staff = staff
        self.atomic = atomic
        self.state = seed_from_database(engine) if engine is not None else State()
        self.journal = Journal()
        self.faults: list[Fault] = []
        self.throttles: dict[str, Throttle] = {}
        self.tokens: dict[str, float] = {}
        self._released = asyncio.Event()

    def reseed(self, engine: Engine | None = None) -> None:
        """Read the state again, from this database or the one given."""
        self.engine = engine or self.engine
        if self.engine is None:
            raise ValueError("the simulator has no database: start it with --database")
        self.state = seed_from_database(self.engine)

    def release(self) -> None:
        """End the delay of every request that a fault holds."""
        self._released.set()
        self._released = asyncio.Event()

    async def delay(self, seconds: float) -> None:
        """Wait this long, or until released."""
        if seconds:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._released.wait(), seconds)

    def token(self, form: dict[str, str]) -> Answer:
        """Answer a request for a token."""
        if form.get("grant_type") != "client_credentials":
            return json_answer(400, {"error": "unsupported_grant_type"})
        if (form.get("client_id"), form.get("client_secret")) != (self.client_id, self.client_secret):
            return json_answer(401, {"error": "invalid_client"})
        token, kind = secrets.token_urlsafe(24), form.get("token_type", "bearer").upper()
        if kind == "JWT":  # the LMS issues bearer tokens too, but accepts them for none of these calls
            self.tokens[token] = time.monotonic() + self.token_seconds
        given = {"access_token": token, "expires_in": self.token_seconds, "token_type": kind, "scope": "read"}
        return json_answer(200, given)

    def throttle(self, calls: int = 0, seconds: float = 60, whom: str = "") -> None:
        """Answer 429 above `calls` in `seconds`, or as the LMS does for `whom`. With 0 calls, stop throttling."""
        shared = dict.fromkeys(THROTTLED, Throttle(calls, seconds)) if calls else {}
        self.throttles = windows_of(whom) if whom else shared

    def refusal(self, authorization: str, kind: str) -> Answer | None:
        """Return the 401 or 429 for a call of this kind; None if it is allowed."""
        scheme, _, token = authorization.partition(" ")
        if scheme != "JWT" or self.tokens.get(token, 0.0) <= time.monotonic():
            detail = {"detail": "Authentication credentials were not provided."}
            return json_answer(401, detail, WWW_Authenticate='JWT realm="api"')
        throttle = self.throttles.get(kind)
        wait = throttle.refuses(time.monotonic()) if throttle else None
        if wait is None:
            return None
        detail = {"detail": f"Request was throttled. Expected available in {wait} seconds."}
        return json_answer(429, detail, Retry_After=str(wait))
