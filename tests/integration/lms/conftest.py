"""A simulated LMS with one customer, and clients on it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest
from sqlalchemy import create_engine
from support.lms_calls import EMAILS, NOW, PATIENCE, SECRET, Call, Customer, Received, Slow, Wire, nothing

from simulator.data.rows import Data
from simulator.data.schema import create_tables
from simulator.lms.journal import Kind
from simulator.lms.server import Simulator
from worker.lms.client import LmsClient, Selection


@pytest.fixture(scope="module")
def customer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Customer]:
    engine = create_engine(f"sqlite:///{tmp_path_factory.mktemp('lms')}/license_manager.sqlite3")
    create_tables(engine)
    data = Data(engine, now=NOW)
    agreement = data.agreement()
    plan = data.plan(agreement, expires=NOW - timedelta(days=100))
    licenses = [data.license(plan, email) for email in EMAILS]
    data.flush()
    yield Customer(engine, agreement.enterprise_customer_uuid, licenses)
    engine.dispose()


@pytest.fixture
def lms(customer: Customer) -> Iterator[Simulator]:
    with Simulator(customer.engine, client_secret=SECRET) as simulator:
        yield simulator


@pytest.fixture
def connect() -> Iterator[Callable[..., LmsClient]]:
    made: list[LmsClient] = []

    def connect(url: str, oauth_url: str | None = None, secret: str = SECRET, **options: Any) -> LmsClient:
        given: dict[str, Any] = {"patience": PATIENCE, "downgrade_timeout": 30, "unlink_timeout": 30}
        made.append(LmsClient(url, oauth_url or url, "license-expiry", secret, **given | options))
        return made[-1]

    yield connect
    for client in made:
        client.close()


@pytest.fixture
def client(lms: Simulator, connect: Callable[..., LmsClient]) -> LmsClient:
    return connect(lms.url)


@pytest.fixture
def downgrade(customer: Customer) -> Call:
    return lambda client: client.downgrade(lambda: Selection(customer.licenses), nothing)


@pytest.fixture
def unlink(customer: Customer) -> Call:
    return lambda client: client.unlink(customer.enterprise, lambda: Selection(EMAILS), nothing)


@pytest.fixture(params=["downgrade", "unlink"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return cast(Kind, request.param)


@pytest.fixture
def call(kind: Kind, downgrade: Call, unlink: Call) -> Call:
    return downgrade if kind == "downgrade" else unlink


@pytest.fixture
def wire() -> Iterator[Wire]:
    wire = Wire()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        connection_number = 0

        def setup(self) -> None:
            super().setup()
            self.connection_number = wire.count(+1)

        def finish(self) -> None:
            super().finish()
            wire.count(-1)

        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            answer = wire.answer(Received(self.path, dict(self.headers), body, self.connection_number))
            if isinstance(answer, Slow):
                return self.send_slowly(answer)
            self.wfile.write(answer)
            self.close_connection = not answer.startswith(b"HTTP/1.1 ") or b"Connection: close" in answer

        def send_slowly(self, answer: Slow) -> None:
            self.close_connection = True
            with suppress(OSError):  # the client has hung up
                for part in answer.parts:
                    if answer.sent and wire.closed.wait(answer.apart):
                        return
                    self.wfile.write(part)
                    answer.sent += 1
                self.close_connection = False

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    wire.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield wire
    wire.closed.set()
    server.shutdown()
    server.server_close()
    thread.join()
