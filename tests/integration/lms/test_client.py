"""The client against a real HTTP server: the simulator, or, for what it cannot tell or show, a few lines of socket."""

import json
import logging
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import inf
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, create_engine

import worker.lms.client
import worker.lms.patience
import worker.lms.transport
from simulator.data.rows import Data
from simulator.data.schema import create_tables
from simulator.lms.faults import Fault
from simulator.lms.journal import Entry, Kind
from simulator.lms.server import Simulator
from simulator.lms.state import Enrollment
from worker.clock import steady
from worker.errors import BatchRefused, LeaseLost, ReasonedError, RunRefused, Unavailable
from worker.lms.client import DOWNGRADE_PATH, NOBODYS_EMAIL, NOBODYS_LICENSE, UNLINK_PATH, LmsClient
from worker.lms.patience import Patience, Pause
from worker.lms.transport import Guard

PATIENCE = Patience(first_wait=0.001, longest_wait=0.002, longest_throttle=5.0)
NOW = datetime.now(UTC)
MARK = "zaphod"  # in every e-mail address here, and in nothing else
EMAILS = [f"{MARK}-{number}@learners.example" for number in range(4)]
SECRET = "a-secret-of-this-test"
PAGE = f"<html><h1>Bad gateway</h1>{EMAILS[0]}</html>"
Call = Callable[[LmsClient], None]


@dataclass(frozen=True)
class Customer:
    engine: Engine
    enterprise: UUID
    licenses: list[UUID]


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


def nothing() -> float:
    return inf


@pytest.fixture
def downgrade(customer: Customer) -> Call:
    return lambda client: client.downgrade(customer.licenses, None, nothing)


@pytest.fixture
def unlink(customer: Customer) -> Call:
    return lambda client: client.unlink(customer.enterprise, EMAILS, nothing)


@pytest.fixture(params=["downgrade", "unlink"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return cast(Kind, request.param)


@pytest.fixture
def call(kind: Kind, downgrade: Call, unlink: Call) -> Call:
    return downgrade if kind == "downgrade" else unlink


def fails(call: Call, client: LmsClient) -> ReasonedError:
    with pytest.raises(ReasonedError) as caught:
        call(client)
    return caught.value


def outcome(act: Callable[[], None]) -> tuple[type[ReasonedError], str] | None:
    """What a call comes to: None for success, else the error's type and its reason."""
    try:
        act()
    except ReasonedError as error:
        return type(error), error.reason
    return None


def statuses(calls: list[Entry]) -> list[int | None]:
    return [entry.status for entry in calls]


def all_at_once(count: int, act: Callable[[], None]) -> None:
    """Do it in so many threads, which begin together; raise what any of them raises."""
    begin = threading.Barrier(count)

    def one() -> None:
        begin.wait(30)
        act()

    with ThreadPoolExecutor(count) as threads:
        for done in [threads.submit(one) for _ in range(count)]:
            done.result(60)


# A server that tells what the simulator does not: the bytes, and which connection they came over


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: str
    connection: int


TOKEN_ANSWER = json.dumps({"access_token": "abc", "expires_in": 3600})


def http(status: int, body: str = "", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body.encode())}", *headers, "", body]
    return "\r\n".join(lines).encode()


@dataclass
class Wire:
    port: int = 0
    requests: list[Received] = field(default_factory=list)
    opened: int = 0
    still_open: int = 0
    answers: list[bytes] = field(default_factory=lambda: [http(200)])
    token: bytes = http(200, TOKEN_ANSWER)
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def says(self, *answers: bytes) -> None:
        """Answer calls with these bytes in turn, the last of them for ever; none hangs up."""
        self.answers = list(answers)

    def calls(self) -> list[Received]:
        return [one for one in self.requests if one.path != worker.lms.transport.TOKEN_PATH]

    def answer(self, received: Received) -> bytes:
        with self.changed:
            self.requests.append(received)
            if received.path == worker.lms.transport.TOKEN_PATH:
                return self.token
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    def count(self, change: int) -> int:
        with self.changed:
            self.opened += max(0, change)
            self.still_open += change
            self.changed.notify_all()
            return self.opened


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
            self.wfile.write(answer)
            self.close_connection = not answer.startswith(b"HTTP/1.1 ") or b"Connection: close" in answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    wire.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield wire
    server.shutdown()
    server.server_close()
    thread.join()


# What is sent


@pytest.mark.parametrize(
    ("after", "sent"),
    [
        pytest.param(None, None, id="no date is null, not left out"),
        pytest.param(datetime(2026, 1, 31, tzinfo=UTC), "2026-01-31T00:00:00+00:00", id="UTC"),
        pytest.param(
            datetime(2026, 1, 31, 12, 30, 15, 42, timezone(timedelta(hours=-5))),
            "2026-01-31T12:30:15.000042-05:00",
            id="another zone, and microseconds as databases keep them",
        ),
    ],
)
def test_a_downgrade_is_sent_exactly_so(
    wire: Wire, connect: Callable[..., LmsClient], after: datetime | None, sent: str | None
) -> None:
    licenses = [UUID("378d5bf0f67d4bf78b2acbbc53d0f772"), UUID("7F2C0B53-3B0C-4B0E-9D4E-0B8F3C7D2A11")]
    connect(wire.url).downgrade(licenses, after, nothing)
    (call,) = wire.calls()
    assert call.path == (
        "/enterprise/api/v1/licensed-enterprise-course-enrollment/bulk_licensed_enrollments_expiration/"
    )
    assert json.loads(call.body) == {
        "expired_license_uuids": ["378d5bf0-f67d-4bf7-8b2a-cbbc53d0f772", "7f2c0b53-3b0c-4b0e-9d4e-0b8f3c7d2a11"],
        "ignore_enrollments_modified_after": sent,
    }
    assert call.headers["Content-Type"] == "application/json"
    assert call.headers["Authorization"] == "JWT abc"


def test_an_unlink_is_sent_exactly_so(wire: Wire, connect: Callable[..., LmsClient]) -> None:
    emails = ["Mixed.Case@X.example", " blank@x.example ", "günther@x.example", "twice@x.example", "twice@x.example"]
    connect(wire.url).unlink(UUID("378d5bf0f67d4bf78b2acbbc53d0f772"), emails, nothing)
    (call,) = wire.calls()
    assert call.path == "/enterprise/api/v1/enterprise-customer/378d5bf0-f67d-4bf7-8b2a-cbbc53d0f772/unlink_users/"
    assert json.loads(call.body) == {"user_emails": emails, "is_relinkable": True}  # as the licences have them
    assert call.headers["Content-Type"] == "application/json"
    assert call.headers["Authorization"] == "JWT abc"


def test_every_unlink_says_relinkable_the_probe_and_the_repeats_too(
    lms: Simulator, client: LmsClient, unlink: Call
) -> None:
    lms.faults(Fault("unlink", nth=1, status=503), Fault("unlink", email=EMAILS[0], status=422))
    with pytest.raises(BatchRefused):
        unlink(client)
    assert statuses(lms.calls("unlink")) == [503, 422, 200]
    assert {entry.is_relinkable for entry in lms.calls("unlink")} == {True}
    assert lms.state.barred == {}


def test_a_token_is_asked_for_exactly_so(wire: Wire, connect: Callable[..., LmsClient], downgrade: Call) -> None:
    downgrade(connect(wire.url))
    token = wire.requests[0]
    assert token.path == "/oauth2/access_token"
    assert sorted(token.body.split("&")) == [
        "client_id=license-expiry",
        f"client_secret={SECRET}",
        "grant_type=client_credentials",
        "token_type=jwt",
    ]
    assert token.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert "Authorization" not in token.headers


# The token


def test_a_token_is_fetched_once_and_kept(lms: Simulator, client: LmsClient, downgrade: Call, unlink: Call) -> None:
    for call in (downgrade, unlink, downgrade):
        call(client)
    assert len(lms.calls("token")) == 1
    assert statuses(lms.calls("downgrade")) == [200, 200]


def test_no_token_is_fetched_before_it_is_needed(lms: Simulator, client: LmsClient) -> None:
    assert lms.calls() == []


def test_eight_first_calls_at_once_fetch_one_token(lms: Simulator, client: LmsClient, downgrade: Call) -> None:
    lms.faults(Fault("token", delay=0.1))  # long enough for all to have found none
    all_at_once(8, lambda: downgrade(client))
    assert len(lms.calls("token")) == 1
    assert statuses(lms.calls("downgrade")) == [200] * 8


def test_eight_calls_whose_token_is_forgotten_fetch_one_new_token(
    lms: Simulator, client: LmsClient, downgrade: Call
) -> None:
    downgrade(client)
    lms.forget_tokens()
    all_at_once(8, lambda: downgrade(client))
    assert len(lms.calls("token")) == 2
    assert statuses(lms.calls("downgrade")).count(200) == 9


def test_a_token_is_replaced_before_it_expires(lms: Simulator, client: LmsClient, downgrade: Call) -> None:
    lms.lms.token_seconds = 10  # nearer to its end than a call may take
    downgrade(client)
    downgrade(client)
    assert len(lms.calls("token")) == 2
    assert statuses(lms.calls("downgrade")) == [200, 200]


def test_a_forgotten_token_costs_one_new_token_and_one_repeat(
    lms: Simulator, client: LmsClient, call: Call, kind: Kind
) -> None:
    call(client)
    lms.forget_tokens()
    lms.journal.clear()
    call(client)
    assert [entry.kind for entry in lms.calls()] == [kind, "token", kind]
    assert statuses(lms.calls(kind)) == [401, 200]


def test_a_token_refused_twice_fails_the_run(lms: Simulator, client: LmsClient, call: Call, kind: Kind) -> None:
    lms.faults(Fault(kind, status=401))
    error = fails(call, client)
    assert (type(error), error.reason) == (RunRefused, "http_401")
    assert "BACKEND_SERVICE_EDX_OAUTH2_KEY" in str(error)
    assert [entry.kind for entry in lms.calls()] == ["token", kind, "token", kind]


@pytest.mark.parametrize("wrong", [{"secret": "x"}, {"secret": ""}])
def test_wrong_credentials_fail_the_run_and_name_the_settings(
    lms: Simulator, connect: Callable[..., LmsClient], call: Call, wrong: dict[str, str]
) -> None:
    error = fails(call, connect(lms.url, **wrong))
    assert (type(error), error.reason) == (RunRefused, "token_http_401")
    for name in (
        "BACKEND_SERVICE_EDX_OAUTH2_KEY",
        "BACKEND_SERVICE_EDX_OAUTH2_SECRET",
        "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT",
    ):
        assert name in str(error)
    assert [entry.kind for entry in lms.calls()] == ["token"]


def test_tokens_come_from_the_oauth_root_and_calls_go_to_the_lms(
    lms: Simulator, wire: Wire, connect: Callable[..., LmsClient], downgrade: Call
) -> None:
    downgrade(connect(wire.url, oauth_url=lms.url))
    assert [entry.kind for entry in lms.calls()] == ["token"]
    assert len(wire.requests) == 1
    assert wire.requests[0].headers["Authorization"].removeprefix("JWT ") in lms.lms.tokens


@pytest.mark.parametrize("status", [302, 404, 422, 500, 502, 503])
def test_a_token_that_is_not_given_is_asked_for_again_by_the_next_call(
    lms: Simulator, client: LmsClient, downgrade: Call, status: int
) -> None:
    lms.faults(Fault("token", status=status, headers={"Location": "/login"}))
    fails(downgrade, client)
    assert lms.calls("downgrade") == []
    lms.faults()
    downgrade(client)
    assert lms.calls("other") == []


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("a\\nb", id="with a line break"),
        pytest.param("\\u65e5", id="beyond Latin-1"),
    ],
)
def test_a_token_that_no_header_can_hold_is_an_error_of_the_tree(
    lms: Simulator, client: LmsClient, downgrade: Call, token: str
) -> None:
    lms.faults(Fault("token", status=200, body=f'{{"access_token": "{token}", "expires_in": 3600}}'))
    error = fails(downgrade, client)
    assert (type(error), error.reason) == (RunRefused, "bad_token")


# The tables of facts/lms_api.md, row by row


@dataclass(frozen=True)
class Row:
    """What stands behind a call, and what it comes to: None is success."""

    licenses: list[list[Enrollment]] = field(default_factory=list)
    extra: list[Any] = field(default_factory=list)
    after: Any = None
    status: int | None = None
    kind: type[ReasonedError] | None = None
    reason: str = ""


WELL, AUDIT = Enrollment(), Enrollment("audit")
OLD = NOW - timedelta(days=200)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(Row([[WELL], [WELL, WELL]]), id="all done"),
        pytest.param(Row([[WELL]], after=OLD), id="all done, with a date"),
        pytest.param(Row([[AUDIT]]), id="revoked earlier"),
        pytest.param(Row(extra=[uuid4()]), id="an unknown license"),
        pytest.param(Row(extra=[UUID(int=5), UUID(int=5)]), id="the same one twice"),
        pytest.param(
            Row([[WELL], [Enrollment(fault="locked")]], kind=BatchRefused, reason="http_422"),
            id="an enrolment could not be changed",
        ),
        pytest.param(
            Row([[WELL], [Enrollment(fault="no_overview")]], kind=BatchRefused, reason="http_500"),
            id="a course without an overview",
        ),
        pytest.param(
            Row([[Enrollment(fault="no_history")]], after=OLD, kind=BatchRefused, reason="http_500"),
            id="no history, with a date",
        ),
        pytest.param(Row([[Enrollment(fault="no_history")]]), id="no history, without a date"),
        pytest.param(Row(extra=["nonsense"], kind=BatchRefused, reason="http_500"), id="a malformed UUID"),
        pytest.param(Row(kind=BatchRefused, reason="http_400"), id="an empty list"),
        pytest.param(Row([[WELL]], status=400, kind=BatchRefused, reason="http_400"), id="a date it cannot read"),
        pytest.param(Row([[WELL]], status=403, kind=RunRefused, reason="http_403"), id="no permission"),
    ],
)
def test_the_table_of_downgrades(lms: Simulator, client: LmsClient, customer: Customer, row: Row) -> None:
    made = [uuid4() for _ in row.licenses]
    for license, enrollments in zip(made, row.licenses, strict=True):
        copies = [Enrollment(one.mode, one.fault) for one in enrollments]
        lms.state.add_license(license, customer.enterprise, copies)
    if row.status:
        lms.faults(Fault("downgrade", license=str(made[0]), status=row.status))
    found = outcome(lambda: client.downgrade(made + row.extra, row.after, nothing))
    assert found == (row.kind and (row.kind, row.reason))
    last = lms.calls("downgrade")[-1]
    if row.kind is None:
        assert {one.mode for license in made for one in lms.state.enrollments(license)} <= {"audit"}
    elif row.kind is BatchRefused:
        assert (last.licenses, last.status) == ([str(NOBODYS_LICENSE)], 200)


@pytest.mark.parametrize(
    ("emails", "status", "kind", "reason"),
    [
        pytest.param(EMAILS, None, None, "", id="all done"),
        pytest.param([*EMAILS, "nobody@x.example", EMAILS[0]], None, None, "", id="not linked, and given twice"),
        pytest.param([f"  {email} " for email in EMAILS], None, None, "", id="white space is trimmed"),
        pytest.param(
            [*EMAILS, *(f"l{number}@x.example" for number in range(996))], None, None, "", id="a batch of 1,000"
        ),
        pytest.param([*EMAILS, "mal formed@x"], None, BatchRefused, "http_400", id="one malformed"),
        pytest.param([*EMAILS, " "], None, BatchRefused, "http_400", id="one blank"),
        pytest.param([*EMAILS, None], None, BatchRefused, "http_400", id="one null"),
        pytest.param([], None, BatchRefused, "http_400", id="an empty list"),
        pytest.param([*EMAILS, "double@x.example"], None, BatchRefused, "http_500", id="two accounts with it"),
        pytest.param(EMAILS, 403, RunRefused, "http_403", id="no permission"),
    ],
)
def test_the_table_of_unlinks(
    lms: Simulator,
    client: LmsClient,
    customer: Customer,
    emails: list[Any],
    status: int | None,
    kind: type[ReasonedError] | None,
    reason: str,
) -> None:
    lms.state.two_accounts.add("double@x.example")
    if status:
        lms.faults(Fault("unlink", status=status))
    found = outcome(lambda: client.unlink(customer.enterprise, emails, nothing))
    assert found == (kind and (kind, reason))
    assert lms.state.linked[customer.enterprise] == (set(EMAILS) if kind else set())
    assert lms.state.barred == {}
    last = lms.calls("unlink")[-1]
    if kind is BatchRefused:
        assert (last.emails, last.status) == ([NOBODYS_EMAIL], 200)


@pytest.mark.parametrize("known", [False, True], ids=["unknown", "not active any more"])
def test_an_enterprise_that_the_lms_does_not_have_fails_the_run(lms: Simulator, client: LmsClient, known: bool) -> None:
    enterprise = uuid4()
    if known:
        lms.state.add_enterprise(enterprise, EMAILS, active=False)
    error = fails(lambda client: client.unlink(enterprise, EMAILS, nothing), client)
    assert (type(error), error.reason) == (RunRefused, "http_404")
    assert "enterprise" in str(error)
    assert len(lms.calls("unlink")) == 1


# Every status


def expected(status: int) -> type[ReasonedError] | None:
    if 200 <= status <= 299 or status == 429:
        return None
    if status in (400, 422, 500):
        return BatchRefused
    return Unavailable if status == 408 or status > 500 else RunRefused


@pytest.mark.parametrize("answered_before", [True, False], ids=["an LMS that works", "an LMS that always says so"])
def test_every_status_is_success_or_one_error_with_its_reason(
    wire: Wire, connect: Callable[..., LmsClient], call: Call, answered_before: bool
) -> None:
    client = connect(wire.url, patience=Patience(tries=2, first_wait=0.0, longest_wait=0.0))
    if answered_before:
        call(client)
    deviations: dict[int, object] = {}
    for status in range(200, 600):
        if not answered_before:
            client.confirmed_at.clear()
        answer = http(status, "", "Retry-After: 0", "Location: /login")
        wire.says(*[answer] * 3, http(200)) if status == 429 else wire.says(answer)
        wanted = expected(status)
        if wanted is BatchRefused and not answered_before:
            wanted = Unavailable  # it refuses a call that concerns nobody, too
        try:
            call(client)
        except Exception as error:
            reason = getattr(error, "reason", None)
            if type(error) is not wanted or reason != f"http_{status}" or str(status) not in str(error):
                deviations[status] = error
        else:
            if wanted is not None:
                deviations[status] = "taken for success"
    assert deviations == {}
    assert len({one.path for one in wire.calls()}) == 1, "a redirect was followed"
    assert wire.opened == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_neither_followed_nor_success(
    lms: Simulator, client: LmsClient, kind: Kind, call: Call, status: int
) -> None:
    lms.faults(Fault(kind, status=status, headers={"Location": "/login"}))
    error = fails(call, client)
    assert (type(error), error.reason) == (RunRefused, f"http_{status}")
    assert (len(lms.calls(kind)), lms.calls("other")) == (1, [])


@pytest.mark.parametrize(
    "location",
    [
        pytest.param("", id="nowhere"),
        pytest.param("http://", id="no host"),
        pytest.param("mailto:x", id="not HTTP"),
        pytest.param("http://[", id="not a URL"),
        pytest.param("/caf\u00e9", id="not UTF-8"),
    ],
)
def test_where_a_redirect_points_does_not_matter(
    lms: Simulator, client: LmsClient, downgrade: Call, location: str
) -> None:
    lms.faults(Fault("downgrade", status=302, headers={"Location": location}))
    error = fails(downgrade, client)
    assert (type(error), error.reason) == (RunRefused, "http_302")


def test_a_wrong_token_redirect_is_not_followed_either(lms: Simulator, client: LmsClient, downgrade: Call) -> None:
    lms.faults(Fault("token", status=302, headers={"Location": "/login"}))
    assert type(fails(downgrade, client)) is RunRefused
    assert [entry.kind for entry in lms.calls()] == ["token"]


# The network


def test_a_refused_connection_is_unavailable_after_so_many_tries(
    lms: Simulator, connect: Callable[..., LmsClient], call: Call
) -> None:
    paced: list[None] = []

    def pace() -> float:
        paced.append(None)
        return 0.0

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port meanwhile
        error = fails(call, connect(f"http://127.0.0.1:{taken.getsockname()[1]}", oauth_url=lms.url, next_call_in=pace))
    assert (type(error), error.reason) == (Unavailable, "connection_error")
    assert "LMS_URL" in str(error)
    assert len(paced) == 1 + PATIENCE.tries, "one token, and the tries"


def test_a_refused_connection_for_the_token_is_unavailable(connect: Callable[..., LmsClient], call: Call) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        error = fails(call, connect(f"http://127.0.0.1:{taken.getsockname()[1]}"))
    assert (type(error), error.reason) == (Unavailable, "connection_error")


@pytest.mark.parametrize(
    ("fault", "reason", "worked"),
    [
        pytest.param({"drop": "before"}, "connection_error", False, id="dropped before the work"),
        pytest.param({"drop": "after"}, "connection_error", True, id="dropped after it"),
        pytest.param({"truncate": True}, "connection_error", True, id="cut short"),
        pytest.param({"status": 502, "after_work": True, "body": PAGE}, "http_502", True, id="a gateway, after it"),
        pytest.param({"status": 503}, "http_503", False, id="down for maintenance"),
        pytest.param({"status": 504, "after_work": True, "body": PAGE}, "http_504", True, id="a gateway's time-out"),
    ],
)
@pytest.mark.parametrize("tries", [4, 2])
def test_what_stays_away_is_unavailable_after_so_many_tries(
    lms: Simulator,
    connect: Callable[..., LmsClient],
    kind: Kind,
    call: Call,
    fault: dict[str, Any],
    reason: str,
    worked: bool,
    tries: int,
) -> None:
    patience = Patience(tries=tries, first_wait=0.001, longest_wait=0.002)
    lms.faults(Fault(kind, **fault))
    error = fails(call, connect(lms.url, patience=patience))
    assert (type(error), error.reason) == (Unavailable, reason)
    assert [entry.worked for entry in lms.calls(kind)] == [worked] * tries


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"drop": "before"}, id="dropped before the work"),
        pytest.param({"drop": "after"}, id="dropped after it"),
        pytest.param({"truncate": True}, id="cut short"),
        pytest.param({"status": 502, "body": PAGE}, id="502"),
        pytest.param({"status": 503}, id="503"),
        pytest.param({"status": 504, "body": PAGE, "after_work": True}, id="504"),
    ],
)
@pytest.mark.parametrize("times", [1, 3])
def test_what_passes_ends_in_success(
    lms: Simulator, client: LmsClient, kind: Kind, call: Call, fault: dict[str, Any], times: int
) -> None:
    lms.faults(Fault(kind, times=times, **fault))
    call(client)
    assert len(lms.calls(kind)) == times + 1
    assert len(lms.calls("token")) == 1


def test_an_answer_that_does_not_come_is_a_timeout_by_its_own_setting(
    lms: Simulator, connect: Callable[..., LmsClient], kind: Kind, call: Call
) -> None:
    client = connect(lms.url, **{f"{kind}_timeout": 0.05})
    lms.faults(Fault(kind, delay=60))
    began = time.monotonic()
    error = fails(call, client)
    assert (type(error), error.reason) == (Unavailable, "timeout")
    assert len(lms.calls(kind)) == 4
    assert 0.2 <= time.monotonic() - began < 20
    lms.release()


def test_the_time_out_of_one_call_is_not_the_others(
    lms: Simulator, connect: Callable[..., LmsClient], kind: Kind, call: Call
) -> None:
    other = "unlink" if kind == "downgrade" else "downgrade"
    client = connect(lms.url, **{f"{other}_timeout": 0.02})
    lms.faults(Fault(kind, delay=0.1))
    call(client)
    assert len(lms.calls(kind)) == 1


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="nothing at all"),
        pytest.param(b"SSH-2.0-OpenSSH_9.6\r\n", id="not HTTP"),
        pytest.param(b"HTTP/1.1 2\xff0 OK\r\n\r\n", id="not a status"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n", id="a bad chunk"
        ),
        pytest.param(http(200, "plain", "Content-Encoding: gzip"), id="not gzip"),
        pytest.param(http(200, "", *(f"X-{number}: y" for number in range(101))), id="too many headers"),
        pytest.param(http(200, "", "X: " + "y" * 70_000), id="too long a header"),
    ],
)
def test_what_is_not_an_answer_is_unavailable_and_never_success(
    wire: Wire, connect: Callable[..., LmsClient], downgrade: Call, answer: bytes
) -> None:
    wire.says(answer)
    error = fails(downgrade, connect(wire.url))
    assert (type(error), error.reason) == (Unavailable, "connection_error")
    assert len(wire.calls()) == 4


# Retry-After and throttling, in real time


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_long_retry_after_is_capped(lms: Simulator, client: LmsClient, downgrade: Call, form: str) -> None:
    far = "3600" if form == "seconds" else format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    lms.faults(Fault("downgrade", nth=1, status=503, headers={"Retry-After": far}))
    began = time.monotonic()
    downgrade(client)
    assert time.monotonic() - began < 20


def test_a_429_makes_every_thread_wait(
    lms: Simulator, connect: Callable[..., LmsClient], downgrade: Call, unlink: Call
) -> None:
    pause = Pause()  # of two clients, even: the throttle is on the service user
    one, other = connect(lms.url, throttled=pause), connect(lms.url, throttled=pause)
    unlink(other)
    lms.journal.clear()
    lms.faults(Fault("downgrade", nth=1, status=429, headers={"Retry-After": "1"}))
    with ThreadPoolExecutor(5) as threads:
        calls = [threads.submit(downgrade, one)]
        lms.wait_for(pause.remaining)
        calls += [threads.submit(unlink, other) for _ in range(4)]
        for done in calls:
            done.result(30)
    refused, *later = [entry for entry in lms.calls() if entry.kind != "token"]
    assert (refused.status, statuses(later)) == (429, [200] * 5)
    assert refused.ended_at is not None
    assert min(entry.started_at for entry in later) - refused.ended_at >= timedelta(seconds=0.99)


def test_what_the_lms_throttles_is_done_in_the_end(lms: Simulator, client: LmsClient, downgrade: Call) -> None:
    lms.throttle(3, 0.5)
    all_at_once(5, lambda: downgrade(client))
    answers = statuses(lms.calls("downgrade"))
    assert answers.count(200) == 5
    assert 1 <= answers.count(429) <= 4, "those who had to wait did not knock again and again"


@pytest.mark.parametrize("asked", ["6", "3600"])
def test_a_throttle_longer_than_the_cap_is_unavailable(
    lms: Simulator, client: LmsClient, kind: Kind, call: Call, asked: str
) -> None:
    lms.faults(Fault(kind, status=429, headers={"Retry-After": asked}))
    error = fails(call, client)
    assert (type(error), error.reason) == (Unavailable, "throttled")
    assert error.retry_after == pytest.approx(float(asked), abs=1)
    assert len(lms.calls(kind)) == 1


# Refusals


@pytest.mark.parametrize(("status", "sends"), [(400, 1), (422, 1), (500, 2)])
def test_a_refusal_that_stays_is_the_batchs_when_the_lms_otherwise_answers(
    lms: Simulator, client: LmsClient, downgrade: Call, customer: Customer, status: int, sends: int
) -> None:
    lms.faults(Fault("downgrade", license=str(customer.licenses[1]), status=status))
    error = fails(downgrade, client)
    assert (type(error), error.reason) == (BatchRefused, f"http_{status}")
    assert statuses(lms.calls("downgrade")) == [status] * sends + [200]
    assert lms.calls("downgrade")[-1].licenses == [str(NOBODYS_LICENSE)]


@pytest.mark.parametrize(("status", "sends"), [(400, 1), (422, 1), (500, 2)])
def test_an_lms_that_refuses_everything_is_unavailable_and_nothing_is_split(
    lms: Simulator, client: LmsClient, kind: Kind, call: Call, status: int, sends: int
) -> None:
    lms.faults(Fault(kind, status=status))
    error = fails(call, client)
    assert (type(error), error.reason) == (Unavailable, f"http_{status}")
    assert "nobody" in str(error)
    assert len(lms.calls(kind)) == 2 * sends


# The guard


class Asked:
    """Notes how much had been sent each time it was asked; raises at its so-many-th time, and never again."""

    def __init__(self, sent: Callable[[], int], error: BaseException | None = None, at: int = 1) -> None:
        self.seen: list[int] = []
        self._sent, self._error, self._at = sent, error, at

    def __call__(self) -> float:
        self.seen.append(self._sent())
        if self._error is not None and len(self.seen) == self._at:
            raise self._error
        return inf


@pytest.mark.parametrize(
    ("faults", "sends"),
    [
        pytest.param([], 1, id="the call itself"),
        pytest.param([{"status": 503, "times": 3}], 4, id="retries"),
        pytest.param([{"drop": "after", "times": 1}, {"truncate": True, "times": 1}], 3, id="after the network failed"),
        pytest.param([{"status": 401, "times": 1}], 2, id="the repeat with a new token"),
        pytest.param([{"status": 429, "times": 2, "headers": {"Retry-After": "0"}}], 3, id="after a throttle"),
        pytest.param([{"status": 500, "last": 2}], 3, id="a 500 once more, then the probe"),
        pytest.param([{"status": 422, "nth": 1}, {"status": 503, "nth": 2}], 3, id="a probe and its retry"),
    ],
)
def test_the_guard_is_asked_before_each_send_and_what_it_raises_ends_the_call(
    lms: Simulator,
    client: LmsClient,
    customer: Customer,
    kind: Kind,
    faults: list[dict[str, Any]],
    sends: int,
) -> None:
    def call(guard: Guard) -> None:
        lms.journal.clear()
        lms.faults(*(Fault(kind, **fault) for fault in faults))
        client.confirmed_at.clear()
        if kind == "downgrade":
            client.downgrade(customer.licenses, None, guard)
        else:
            client.unlink(customer.enterprise, EMAILS, guard)

    def sent() -> int:
        return len(lms.calls(kind))

    asked = Asked(sent)
    found = outcome(lambda: call(asked))
    assert found is None or found[0] is BatchRefused
    assert sent() == sends
    assert set(range(sends)) <= set(asked.seen), "something was sent that the guard was not asked about"
    for number, sent_before in enumerate(asked.seen, start=1):
        error = LeaseLost(f"at {number}")
        with pytest.raises(LeaseLost) as caught:
            call(Asked(sent, error, number))
        assert caught.value is error
        assert sent() == sent_before


@pytest.mark.parametrize(
    "error",
    [
        LeaseLost("taken over"),
        RuntimeError("a bug"),
        KeyboardInterrupt(),
        Unavailable("database", "the database does not answer"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_the_guard_raises_ends_the_call_with_nothing_sent(
    lms: Simulator, client: LmsClient, error: BaseException
) -> None:
    guard = Asked(lambda: len(lms.calls("downgrade")), error)
    with pytest.raises(type(error)):
        client.downgrade([uuid4()], None, guard)
    assert (lms.calls("downgrade"), len(guard.seen)) == ([], 1)


def test_a_lease_that_is_lost_while_the_token_comes_stops_the_call(
    lms: Simulator, client: LmsClient, customer: Customer
) -> None:
    lost = threading.Event()

    def guard() -> float:
        if lost.is_set():
            raise LeaseLost("taken over")
        return inf

    lms.faults(Fault("token", delay=60))
    with ThreadPoolExecutor(1) as thread:
        call = thread.submit(client.downgrade, customer.licenses, None, guard)
        lms.wait_for(lambda: lms.calls("token"))
        lost.set()
        lms.release()
        with pytest.raises(LeaseLost):
            call.result(30)
    assert lms.calls("downgrade") == []


@pytest.mark.parametrize(
    "left",
    [
        pytest.param(-100.0, id="the lease lapsed long ago"),
        pytest.param(0.0, id="just now"),
        pytest.param(29.0, id="it will, before the call's time-out"),
    ],
)
def test_a_process_that_was_frozen_after_its_guard_sends_nothing(
    lms: Simulator, connect: Callable[..., LmsClient], customer: Customer, left: float
) -> None:
    client = connect(lms.url, downgrade_timeout=30, unlink_timeout=30)
    client.downgrade(customer.licenses, None, nothing)  # has its token, and a connection
    lms.journal.clear()
    with pytest.raises(LeaseLost):
        client.downgrade(customer.licenses, None, lambda: steady() + left)
    with pytest.raises(LeaseLost):
        client.unlink(customer.enterprise, EMAILS, lambda: steady() + left)
    assert lms.calls() == []
    client.unlink(customer.enterprise, EMAILS, lambda: steady() + 40)
    assert len(lms.calls("unlink")) == 1, "and the next claim is not hindered"


# Connections


def test_a_thread_keeps_one_connection_for_all_it_sends(
    wire: Wire, connect: Callable[..., LmsClient], downgrade: Call, unlink: Call
) -> None:
    client = connect(wire.url)
    wire.says(http(503, PAGE), http(401), http(200), http(422, PAGE), http(200))
    downgrade(client)
    fails(unlink, client)
    downgrade(client)
    assert len(wire.requests) == 8
    assert (wire.opened, wire.still_open) == (1, 1)


def test_each_thread_has_a_session_of_its_own(wire: Wire, connect: Callable[..., LmsClient], downgrade: Call) -> None:
    client = connect(wire.url)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        for thread in (one, other, one, other, one):  # one after another: a shared session would have one connection
            thread.submit(downgrade, client).result(30)
    assert [call.connection for call in wire.calls()] == [1, 2, 1, 2, 1]
    assert wire.opened == 2


def test_parallel_calls_open_one_connection_a_thread(
    wire: Wire, connect: Callable[..., LmsClient], downgrade: Call
) -> None:
    client = connect(wire.url)

    def five_times() -> None:
        for _ in range(5):
            downgrade(client)

    all_at_once(4, five_times)
    assert len(wire.calls()) == 20
    assert wire.opened == 4


def test_close_closes_the_connections_of_all_threads(
    wire: Wire, connect: Callable[..., LmsClient], downgrade: Call
) -> None:
    client = connect(wire.url)
    all_at_once(3, lambda: downgrade(client))
    assert wire.still_open == 3
    client.close()
    with wire.changed:
        assert wire.changed.wait_for(lambda: wire.still_open == 0, 30)


# Privacy


def told_by(error: BaseException) -> str:
    """All that a log, a result backend or a traceback could show of an error and of those that led to it."""
    shown = ["".join(traceback.format_exception(error)), pickle.dumps(error).decode("latin-1")]
    link: BaseException | None = error
    while link is not None:
        shown += [str(link), repr(link), repr(link.args)]
        link = link.__cause__ or link.__context__
    return "\n".join(shown)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"status": 400, "body": json.dumps({"user_emails": {"0": EMAILS}})}, id="a refusal that echoes"),
        pytest.param({"status": 403, "body": PAGE}, id="no permission"),
        pytest.param({"status": 404, "body": PAGE}, id="no such enterprise"),
        pytest.param({"status": 418, "body": PAGE}, id="nothing known"),
        pytest.param({"status": 500, "body": PAGE}, id="an error page"),
        pytest.param({"status": 502, "body": PAGE}, id="a gateway's page"),
        pytest.param({"status": 302, "headers": {"Location": f"/login?email={EMAILS[0]}"}}, id="a redirect"),
        pytest.param({"status": 401, "body": PAGE}, id="a token refused"),
        pytest.param({"status": 429, "body": PAGE, "headers": {"Retry-After": "3600"}}, id="throttled"),
        pytest.param({"drop": "before"}, id="dropped before"),
        pytest.param({"drop": "after"}, id="dropped after"),
        pytest.param({"truncate": True}, id="cut short"),
        pytest.param({"delay": 60}, id="no answer"),
        pytest.param({"status": 200, "body": PAGE, "headers": {"Content-Encoding": "gzip"}}, id="not gzip"),
    ],
)
@pytest.mark.parametrize("probed", [False, True], ids=["all calls", "those with e-mails"])
def test_no_error_and_no_log_record_tells_an_email_or_a_secret(
    lms: Simulator,
    connect: Callable[..., LmsClient],
    unlink: Call,
    fault: dict[str, Any],
    probed: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    client = connect(lms.url, unlink_timeout=0.05)
    lms.faults(Fault("unlink", email=EMAILS[0] if probed else None, **fault))
    error = fails(unlink, client)
    lms.release()
    records = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "urllib3.connectionpool" in records, "urllib3's records are not in what is looked at"
    for shown in (told_by(error), records, repr(client), str(client)):
        assert MARK not in shown
        assert SECRET not in shown
        assert not any(token in shown for token in lms.lms.tokens)


@pytest.mark.parametrize(
    ("fault", "secret"),
    [
        pytest.param({"status": 400, "body": SECRET}, SECRET, id="a refusal that echoes"),
        pytest.param({"status": 200, "body": SECRET}, SECRET, id="not a token, and echoes"),
        pytest.param({"status": 500, "body": SECRET}, SECRET, id="an error page"),
        pytest.param({"drop": "before"}, SECRET, id="dropped"),
        pytest.param({}, f"{SECRET}-but-wrong", id="wrong credentials"),
    ],
)
def test_nothing_tells_the_secret_when_there_is_no_token(
    lms: Simulator,
    connect: Callable[..., LmsClient],
    unlink: Call,
    fault: dict[str, Any],
    secret: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    lms.faults(Fault("token", **fault))
    error = fails(unlink, connect(lms.url, secret=secret))
    records = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "urllib3.connectionpool" in records
    for shown in (told_by(error), records):
        assert SECRET not in shown
        assert MARK not in shown


def test_the_paths_are_those_of_the_lms() -> None:
    assert DOWNGRADE_PATH.endswith("/bulk_licensed_enrollments_expiration/")
    assert UNLINK_PATH.format(enterprise="e") == "/enterprise/api/v1/enterprise-customer/e/unlink_users/"
