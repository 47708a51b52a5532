"""All that one simulated LMS knows and is told: credentials, tokens, state, journal, faults, throttling."""

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
    """All that one simulated LMS knows and is told to do."""

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
        """Take its credentials, the seconds a call takes and a token lives, a database to seed it from.

        `staff` says whether the service user is staff. One that is not may downgrade, but every unlink is a 404, and
        it is told of no learner. `atomic` says whether a request that ends in a 500 changes nothing: edx-platform has
        ATOMIC_REQUESTS on; where it is off, what came before the fault is done.
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
        """Read the state from the database again, from another one if given."""
        self.engine = engine or self.engine
        if self.engine is None:
            raise ValueError("there is no database to read from: start the simulator with one")
        self.state = seed_from_database(self.engine)

    def release(self) -> None:
        """Let every request that a fault delays go on now."""
        self._released.set()
        self._released = asyncio.Event()

    async def delay(self, seconds: float) -> None:
        """Wait as a fault says, or until released."""
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
        if kind == "JWT":  # the LMS gives the other kind too, but takes it for none of these calls
            self.tokens[token] = time.monotonic() + self.token_seconds
        given = {"access_token": token, "expires_in": self.token_seconds, "token_type": kind, "scope": "read"}
        return json_answer(200, given)

    def throttle(self, calls: int = 0, seconds: float = 60, whom: str = "") -> None:
        """Answer 429 to more than so many calls in so many seconds, or as it does to `whom`; 0 calls lifts it."""
        shared = dict.fromkeys(THROTTLED, Throttle(calls, seconds)) if calls else {}
        self.throttles = windows_of(whom) if whom else shared

    def refusal(self, authorization: str, kind: str) -> Answer | None:
        """Give the 401 or 429 that keeps a call of this kind from its work; None when it may go on."""
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
