"""The Tornado application that simulates the LMS, as a server or, for tests, in a thread."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from sqlalchemy import Engine
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from simulator.lms.control import ControlHandler
from simulator.lms.core import Lms
from simulator.lms.faults import Fault
from simulator.lms.handlers import DowngradeHandler, Handler, LearnersHandler, TokenHandler, UnlinkHandler
from simulator.lms.journal import Entry, Journal, Kind
from simulator.lms.state import State

API = "/enterprise/api/v1"
ROUTES: list[tuple[str, type[RequestHandler]]] = [
    (r"/oauth2/access_token/?", TokenHandler),
    (rf"{API}/licensed-enterprise-course-enrollment/bulk_licensed_enrollments_expiration/", DowngradeHandler),
    (rf"{API}/enterprise-customer/([^/]+)/unlink_users/", UnlinkHandler),
    (rf"{API}/enterprise-learner/", LearnersHandler),
    (r"/_simulator/([a-z-]+)", ControlHandler),
    (r"/.*", Handler),
]


def make_app(lms: Lms) -> Application:
    """Make the application that simulates an LMS."""
    routes = [(path, handler, {"lms": lms}) for path, handler in ROUTES]
    return Application(routes, log_function=lambda handler: None)


async def serve(
    lms: Lms,
    stopping: Awaitable[Any],
    ready: Callable[[int], None],
    port: int = 0,
    host: str = "127.0.0.1",
) -> None:
    """Serve until `stopping` is done; call `ready` with the port (0: any) once it listens."""
    sockets = bind_sockets(port, host)
    server = HTTPServer(make_app(lms))
    server.add_sockets(sockets)
    ready(sockets[0].getsockname()[1])
    try:
        await stopping
    finally:
        server.stop()
        await server.close_all_connections()


class Simulator:
    """A simulated LMS on a port of 127.0.0.1, in a thread of this process, for the length of a `with` block.

    Other processes can call it at `url`. Settings that a test changes apply from the next request on.
    """

    def __init__(self, engine: Engine | None = None, port: int = 0, **settings: Any) -> None:
        """Take a database to seed it from, a port (0: any) and the settings of `Lms`, such as `latency`."""
        self.lms = Lms(engine=engine, **settings)
        self.port = port
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name="simulated LMS", daemon=True)

    def __enter__(self) -> Self:
        """Start, and return once it listens."""
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections and stop."""
        if self._stopping is not None:
            self._soon(self._stopping.set)
        self._thread.join()

    @property
    def url(self) -> str:
        """Return the root URL of the LMS, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def client_id(self) -> str:
        """Return the client id that gets a token."""
        return self.lms.client_id

    @property
    def client_secret(self) -> str:
        """Return the client secret that gets a token."""
        return self.lms.client_secret

    @property
    def journal(self) -> Journal:
        """Return the journal: `entries`, `calls(kind, enterprise)`, `clear()`, `counts()`."""
        return self.lms.journal

    @property
    def state(self) -> State:
        """Return the state of the LMS, to read and to change between requests."""
        return self.lms.state

    def calls(self, kind: Kind | None = None, enterprise: object = None) -> list[Entry]:
        """Return the journal's entries of one kind and one enterprise, or all."""
        return self.journal.calls(kind, enterprise)

    def faults(self, *faults: Fault) -> None:
        """Replace all faults with these; without arguments, remove them."""
        self.lms.faults = list(faults)

    def throttle(self, calls: int = 0, seconds: float = 60, whom: str = "") -> None:
        """Answer 429 above `calls` in `seconds`, or as the LMS does for `whom`. With 0 calls, stop throttling."""
        self.lms.throttle(calls, seconds, whom)

    def atomic(self, is_atomic: bool) -> None:
        """Set whether a request that ends in a 500 changes nothing, or keeps the work before the fault."""
        self.lms.atomic = is_atomic

    def staff(self, is_staff: bool) -> None:
        """Set whether the service user is staff."""
        self.lms.staff = is_staff

    def change_email(self, user_id: int, email: str) -> None:
        """Change a learner's address on the platform; licenses keep the old one."""
        self.state.change_email(user_id, email)

    def forget_tokens(self) -> None:
        """Answer 401 to every token given so far."""
        self.lms.tokens.clear()

    def release(self) -> None:
        """End the delay of every request that a fault holds."""
        self._soon(self.lms.release)

    def seed(self, engine: Engine | None = None) -> None:
        """Read the state again, from this database or the one given."""
        self.lms.reseed(engine)

    def wait_for(self, condition: Callable[[], Any], timeout: float = 30.0) -> None:
        """Wait until a condition holds. It is checked when a request begins or ends, and every 50 ms.

        Raises TimeoutError with the journal's counts.
        """
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"still waiting after {timeout} s: {self.journal.counts()}")
            with self.journal.changed:
                self.journal.changed.wait(0.05)

    def _soon(self, act: Callable[[], None]) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(act)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        await serve(self.lms, self._stopping.wait(), self._listens, self.port)

    def _listens(self, port: int) -> None:
        self.port = port
        self._ready.set()
