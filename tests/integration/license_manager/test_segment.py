"""What Segment is told of a night, by its own library over a socket; and that a night does not mind what it answers."""

import base64
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, event, text
from support.eventually import eventually
from support.runs import (
    ON_EACH,
    ON_SQLITE,
    Laid,
    Make,
    attempt,
    counts,
    finish,
    night,
    open_one,
    processed,
    ready,
    rows,
    scan,
    take_over,
    unlinking,
)

from simulator.data.rows import DAY, Agreement, Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db.ledger_tables import Run
from worker.deps import Deps
from worker.ledger.order import DOWNGRADE, Phase
from worker.license_manager import segment as lifecycle
from worker.license_manager.segment import UPLOAD_SIZE, WAIT_SECONDS

KEY = "the-segment-key"


@dataclass
class Segment:
    """Segment, on a port of its own: what it was sent, and how it answers."""

    url: str = ""
    status: int = 200
    retry_after: str | None = None
    called: Callable[[], None] = lambda: None
    batches: list[list[dict[str, Any]]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    hangs: str = ""
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def events(self) -> list[dict[str, Any]]:
        return [each for batch in self.batches for each in batch]

    def properties(self) -> dict[str, dict[str, Any]]:
        """The properties of each event, by its license."""
        return {each["properties"]["license_uuid"]: each["properties"] for each in self.events}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        assert handler.path == "/v1/batch"
        self.keys.add(base64.b64decode(handler.headers["Authorization"].removeprefix("Basic ")).decode())
        self.batches.append(body["batch"])
        self.called()
        if self.hangs == "silent":
            self.ended.wait(60)
        while self.hangs == "dripping" and not self.ended.wait(0.1):
            handler.wfile.write(b"HTTP/1.0 100 Continue\r\n\r\n")
        handler.send_response(self.status)
        if self.retry_after is not None:
            handler.send_header("Retry-After", self.retry_after)
        handler.end_headers()
        # As a server may that repeats what it was sent.
        handler.wfile.write(json.dumps({"code": "bad", "message": json.dumps(body)}).encode())


@pytest.fixture
def segment() -> Iterator[Segment]:
    """A Segment that takes everything."""
    fake = Segment()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                fake.answer(self)
            except ConnectionError:  # the client has gone
                self.close_connection = True

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        fake.url = f"http://127.0.0.1:{server.server_address[1]}/"
        yield fake
        fake.ended.set()
        server.shutdown()


@pytest.fixture
def tell(make_test_deps: Make, segment: Segment) -> Make:
    """A maker of the wiring that tells this Segment."""

    def make(host: str | None = None, seconds: float = 60, **settings: Any) -> Deps:
        deps = make_test_deps(**({"SEGMENT_KEY": KEY} | settings))
        return replace(deps, lifecycle=replace(deps.lifecycle, host=host or segment.url, seconds=seconds))

    return make


def lay(lms: Simulator, licenses: int = 3) -> Laid:
    """An enterprise with a plan that expired 100 days ago, and licenses whose learners the LMS knows."""
    assert lms.lms.engine is not None
    data = Data(lms.lms.engine)
    agreement = data.agreement()
    plan = data.plan(agreement, expires=data.now - 100 * DAY)
    ids = sorted(data.license(plan, lms_user_id=number + 1) for number in range(licenses))
    ready(data, lms)
    return Laid(agreement.enterprise_customer_uuid, plan, ids)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, engine: Engine) -> Callable[[], list[logging.LogRecord]]:
    """Gives the lines that tell of the events, once no e-mail address and no key was found in any line or table."""
    caplog.set_level(logging.DEBUG)

    def lines() -> list[logging.LogRecord]:
        logged = "\n".join(f"{record.getMessage()} {record.__dict__} {record.exc_text}" for record in caplog.records)
        assert scan({"the log": logged}, engine) == []
        assert [secret for secret in (KEY, base64.b64encode(f"{KEY}:".encode()).decode()) if secret in logged] == []
        return [record for record in caplog.records if "lifecycle events" in record.getMessage()]

    return lines


# What is told


@dataclass(frozen=True)
class Many:
    """An enterprise with two plans in a chain, and licenses of every kind in the later one."""

    agreement: Agreement
    first: UUID
    renewed: UUID
    assigned: UUID
    revoked: UUID
    plain: UUID


@pytest.fixture
def many(engine: Engine, lms: Simulator) -> Many:
    data = Data(engine)
    agreement = data.agreement(name="Bücher & Söhne", slug="buecher")
    prior = data.plan(agreement, expires=data.now - 400 * DAY)
    plan = data.plan(agreement, expires=data.now - 100 * DAY)
    data.renewal(prior, plan)
    moment = datetime(2025, 3, 4, 5, 6, 7, 891011, tzinfo=UTC)
    renewed = data.license(
        plan, lms_user_id=11, assigned_date=moment, activation_date=moment + timedelta(hours=20), auto_applied=True
    )
    first = data.license(prior, lms_user_id=11, renewed_to=renewed)
    assigned = data.license(plan, lms_user_id=12, status="assigned", assigned_date=moment, auto_applied=None)
    revoked = data.license(plan, lms_user_id=13, status="revoked", email=None, activation_key=None, assigned_date=None)
    data.license(plan)  # nobody knows whose it is
    data.license(plan, lms_user_id=0)
    data.license(plan, status="unassigned")
    plain = data.license(data.plan(agreement), lms_user_id=14)  # whose plan has not expired
    ready(data, lms)
    return Many(agreement, first, renewed, assigned, revoked, plain)


@pytest.mark.parametrize("with_email", [False, True])
def test_the_events_are_license_managers(
    engine: Engine, tell: Make, segment: Segment, told: Any, many: Many, with_email: bool
) -> None:
    keys = {row["uuid"]: str(row["activation_key"] or "") for row in rows(engine, "license")}
    addresses = {row["uuid"]: row["user_email"] or "" for row in rows(engine, "license")}

    def event(license: UUID, user: int, **properties: Any) -> dict[str, Any]:
        return {
            "type": "track",
            "event": "edx.server.license-manager.license-lifecycle.expired",
            "userId": str(user),
            "properties": {
                "license_uuid": str(license),
                "license_activation_key": keys[license],
                "previous_license_uuid": "",
                "assigned_date": "2025-03-04T05:06:07Z",
                "activation_date": "",
                "assigned_lms_user_id": user,
                "assigned_email": addresses[license] if with_email else "",
                "expiration_processed": True,
                "auto_applied": False,
                "enterprise_customer_uuid": str(many.agreement.enterprise_customer_uuid),
                "customer_agreement_uuid": str(many.agreement.uuid),
                "enterprise_customer_slug": "buecher",
                "enterprise_customer_name": "Bücher & Söhne",
                **properties,
            },
        }

    settings = {"SEGMENT_INCLUDE_EMAIL": True} if with_email else {}
    [run] = night(tell(**settings)).values()
    assert counts(run)["plans"] == 2
    wanted = [
        event(
            many.renewed,
            11,
            previous_license_uuid=str(many.first),
            activation_date="2025-03-05T01:06:07Z",
            auto_applied=True,
        ),
        event(many.assigned, 12),
        event(many.revoked, 13, assigned_date=""),
    ]
    sent = [{name: each[name] for name in wanted[0]} for each in segment.events]
    assert sorted(sent, key=lambda each: int(each["userId"])) == wanted
    assert with_email == ("@" in json.dumps(segment.batches))
    assert segment.keys == {f"{KEY}:"}
    [line] = told()
    assert "lifecycle events sent" in line.getMessage()
    assert "'events': 3" in line.getMessage()


def test_a_mark_is_committed_before_segment_hears_of_it_and_the_database_is_left_alone_meanwhile(
    engine: Engine, lms: Simulator, tell: Make, segment: Segment
) -> None:
    laid = lay(lms)
    deps = tell()
    seen: list[Any] = []
    segment.called = lambda: seen.append((processed(engine), deps.database.engine.pool.checkedout()))  # type: ignore[attr-defined]
    night(deps)
    assert seen == [({laid.plan}, 0)]


@ON_SQLITE
def test_a_second_night_tells_nothing(lms: Simulator, tell: Make, segment: Segment) -> None:
    laid = lay(lms)
    deps = tell(**unlinking(laid.enterprise))
    night(deps)
    assert len(segment.events) == 3
    night(deps, laid.enterprise)
    night(deps, laid.enterprise, plan_uuids=[str(laid.plan)], force=True, reason="a test")
    assert len(segment.events) == 3, "forced too: the plan was marked before"


@ON_SQLITE
@pytest.mark.parametrize(
    ("settings", "request_"),
    [
        pytest.param({}, {"dry_run": True}, id="a rehearsal"),
        pytest.param({"SEGMENT_KEY": ""}, {}, id="no key"),
        pytest.param({"SEGMENT_KEY": "", "SEGMENT_INCLUDE_EMAIL": True}, {}, id="no key, whatever is asked for"),
    ],
)
def test_nothing_is_reported(
    lms: Simulator, tell: Make, segment: Segment, told: Any, settings: Any, request_: Any
) -> None:
    lay(lms)
    [run] = night(tell(**settings), **request_).values()
    assert run.phase == Phase.FINISHED
    assert (segment.batches, told()) == ([], [])


@ON_SQLITE
def test_a_plan_that_the_lms_holds_up_is_reported_in_the_night_that_marks_it(
    lms: Simulator, engine: Engine, tell: Make, segment: Segment
) -> None:
    laid = lay(lms)
    deps = tell()
    lms.faults(Fault(kind="downgrade", status=403))
    [run] = night(deps).values()
    assert (run.phase, segment.events, processed(engine)) == (Phase.FAILED, [], set())
    lms.faults()
    night(deps)
    assert sorted(segment.properties()) == sorted(map(str, laid.licenses))


@ON_EACH
@pytest.mark.parametrize("committed", [True, False])
def test_a_mark_whose_commit_or_its_answer_gets_lost_costs_no_event_and_doubles_none(
    committed: bool, lms: Simulator, tell: Make, segment: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = lay(lms)
    deps = tell()
    dialect = deps.database.engine.dialect
    commit = dialect.do_commit
    marking: list[bool] = []  # that the mark is to be committed; then that this got lost

    @event.listens_for(deps.database.engine, "before_cursor_execute")
    def before(_c: Any, _u: Any, statement: str, *_: Any) -> None:
        if not marking and statement.startswith("INSERT INTO subscriptions_historicalsubscriptionplan"):
            marking.append(True)

    def do_commit(connection: Any) -> None:
        if committed or marking != [True]:
            commit(connection)
        if marking == [True]:
            marking.append(False)
            raise dialect.loaded_dbapi.OperationalError("the connection broke")

    monkeypatch.setattr(dialect, "do_commit", do_commit)
    [run] = night(deps).values()
    assert marking == [True, False]
    assert (counts(run)["plans"], len(segment.events)) == (1, 3)
    assert sorted(segment.properties()) == sorted(map(str, laid.licenses))


def test_a_license_manager_without_these_columns_has_their_properties_empty(
    engine: Engine, lms: Simulator, tell: Make, segment: Segment, told: Any
) -> None:
    lay(lms, 1)
    missing = ["activation_key", "activation_date", "auto_applied"]
    with engine.begin() as connection:
        for name in missing:
            connection.execute(text(f"ALTER TABLE subscriptions_license DROP COLUMN {name}"))
        connection.execute(text("UPDATE subscriptions_customeragreement SET enterprise_customer_slug = NULL"))
    [run] = night(tell()).values()
    assert run.phase == Phase.FINISHED
    [event] = segment.properties().values()
    assert [event[name] for name in ("license_activation_key", *missing[1:])] == ["", "", False]
    assert event["enterprise_customer_slug"] is None, "as license-manager sends it"
    [line] = told()
    assert line.levelno == logging.INFO


# In pages


def test_a_large_plan_is_reported_page_by_page(
    engine: Engine, lms: Simulator, tell: Make, segment: Segment, told: Any
) -> None:
    laid = lay(lms, 2 * UPLOAD_SIZE + 1)
    leases: list[Any] = []
    segment.called = lambda: leases.append(rows(engine, Run)[0]["lease_until"])
    night(tell())
    assert max(map(len, segment.batches)) <= UPLOAD_SIZE
    assert sorted(segment.properties()) == sorted(map(str, laid.licenses))
    assert len(segment.events) == len(laid.licenses), "each once"
    assert sorted(leases) == leases
    assert len(set(leases)) >= 3, "the lease is renewed before each page"
    [line] = told()
    assert f"'events': {2 * UPLOAD_SIZE + 1}" in line.getMessage()


def assert_not_sent(line: Any, sent: int, unsent: int, why: str) -> None:
    assert line.levelno == logging.WARNING
    message = line.getMessage()
    assert "lifecycle events not sent" in message
    assert (f"'events': {unsent}" in message, f"'sent': {sent}" in message) == (True, True), message
    assert why in message


@ON_SQLITE
def test_the_first_page_that_is_not_taken_is_the_last(lms: Simulator, tell: Make, segment: Segment, told: Any) -> None:
    laid = lay(lms, 3 * UPLOAD_SIZE)

    def refuse_from_the_second_page() -> None:
        segment.status = 200 if len(segment.events) <= UPLOAD_SIZE else 400

    segment.called = refuse_from_the_second_page
    [run] = night(tell(**unlinking(laid.enterprise))).values()
    assert run.phase == Phase.FINISHED
    assert len(segment.events) <= 2 * UPLOAD_SIZE
    [line] = told()
    assert_not_sent(line, UPLOAD_SIZE, 2 * UPLOAD_SIZE, "http_400")


@ON_SQLITE
def test_a_run_that_is_taken_over_tells_no_further(lms: Simulator, tell: Make, segment: Segment, told: Any) -> None:
    laid = lay(lms, 2 * UPLOAD_SIZE)
    deps = tell()
    run_id = open_one(deps, laid.enterprise)
    segment.called = lambda: take_over(deps, run_id) if len(segment.events) == UPLOAD_SIZE else None
    finish(deps, laid.enterprise, run_id)
    assert len(segment.events) == UPLOAD_SIZE
    [line] = told()
    assert_not_sent(line, UPLOAD_SIZE, UPLOAD_SIZE, "taken over")


@ON_SQLITE
def test_a_worker_that_ends_tells_no_further(
    lms: Simulator, tell: Make, segment: Segment, told: Any, engine: Engine
) -> None:
    laid = lay(lms, 2 * UPLOAD_SIZE)
    deps = tell()
    run_id = open_one(deps, laid.enterprise)
    segment.called = deps.shutdown.begin
    attempt(deps, laid.enterprise, run_id, DOWNGRADE)
    assert processed(engine) == {laid.plan}
    assert len(segment.events) == UPLOAD_SIZE
    [line] = told()
    assert_not_sent(line, UPLOAD_SIZE, UPLOAD_SIZE, "shut down")
    assert finish(tell(), laid.enterprise, run_id).phase == Phase.FINISHED


@ON_SQLITE
def test_a_telling_ends_when_its_time_is_up(lms: Simulator, tell: Make, segment: Segment, told: Any) -> None:
    lay(lms, 2)
    [run] = night(tell(seconds=0)).values()
    assert (run.phase, segment.batches) == (Phase.FINISHED, [])
    [line] = told()
    assert_not_sent(line, 0, 2, "too_slow")


# Whatever Segment does


def assert_the_night_is_whole(run: Run, engine: Engine, laid: Laid) -> None:
    assert (run.phase, run.error) == (Phase.FINISHED, None)
    assert processed(engine) == {laid.plan}
    assert (counts(run)["downgraded"], counts(run)["unlinked"]) == (3, 3)


@ON_SQLITE
@pytest.mark.parametrize("with_email", [False, True])
@pytest.mark.parametrize(
    ("status", "retry_after", "calls", "why"),
    [
        pytest.param(400, None, 1, "http_400", id="it will never take it"),
        pytest.param(401, None, 1, "http_401", id="nor does it know the key"),
        pytest.param(500, None, 3, "http_500", id="it is broken: tried again at once, and once more"),
        pytest.param(429, None, 3, "http_429", id="it is throttled, for nobody knows how long"),
        pytest.param(429, "300", 1, "throttled", id="for longer than a night may wait"),
        pytest.param(503, "300", 1, "throttled", id="the same, in other words"),
        pytest.param(503, "3", 2, "throttled", id="it asks for a little time, and then for more"),
    ],
)
def test_a_night_is_whole_whatever_segment_answers(
    lms: Simulator,
    engine: Engine,
    tell: Make,
    segment: Segment,
    told: Any,
    status: int,
    retry_after: str | None,
    calls: int,
    why: str,
    with_email: bool,
) -> None:
    laid = lay(lms)
    segment.status, segment.retry_after = status, retry_after
    begun = time.monotonic()
    [run] = night(tell(SEGMENT_INCLUDE_EMAIL=with_email, **unlinking(laid.enterprise))).values()
    assert time.monotonic() - begun < WAIT_SECONDS
    assert_the_night_is_whole(run, engine, laid)
    assert len({each["messageId"] for each in segment.events}) == 3, "Segment drops those that it knows by this"
    assert len(segment.batches) == calls
    [line] = told()
    assert_not_sent(line, 0, 3, why)


@ON_SQLITE
def test_a_page_is_taken_after_a_short_wait(lms: Simulator, tell: Make, segment: Segment, told: Any) -> None:
    lay(lms)
    segment.status, segment.retry_after = 429, "1"

    def recover() -> None:
        segment.status = 429 if len(segment.batches) == 1 else 200

    segment.called = recover
    night(tell())
    assert len(segment.batches) == 2
    [line] = told()
    assert line.levelno == logging.INFO


@ON_SQLITE
def test_a_night_is_whole_without_a_segment(lms: Simulator, engine: Engine, tell: Make, told: Any) -> None:
    laid = lay(lms)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        deps = tell(host=f"http://127.0.0.1:{nobody.getsockname()[1]}", **unlinking(laid.enterprise))
        [run] = night(deps).values()
    assert_the_night_is_whole(run, engine, laid)
    [line] = told()
    assert_not_sent(line, 0, 3, "connection_error")


@ON_SQLITE
@pytest.mark.parametrize("how", ["silent", "dripping"])
def test_a_night_is_whole_when_segment_hangs(
    lms: Simulator, engine: Engine, tell: Make, segment: Segment, told: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "WAIT_SECONDS", 0.5)
    laid = lay(lms)
    segment.hangs = how
    [run] = night(tell(**unlinking(laid.enterprise))).values()
    assert_the_night_is_whole(run, engine, laid)
    [line] = told()
    assert_not_sent(line, 0, 3, "timeout")


_END = """
import sys
from datetime import UTC, datetime
from types import SimpleNamespace
from unittest.mock import MagicMock
from uuid import uuid4
from worker.license_manager import segment as lifecycle
lifecycle.WAIT_SECONDS = 0.5
try:
    lifecycle.Lifecycle("key", False, 60, sys.argv[1])._send([MagicMock(lms_user_id=1, assigned_date=None,
        activation_date=None, enterprise_customer_slug="", enterprise_customer_name="")])
except lifecycle.Unavailable as error:
    print(error.reason)
"""


def test_a_process_ends_though_segment_hangs(segment: Segment) -> None:
    segment.hangs = "dripping"
    ended = subprocess.run(
        [sys.executable, "-c", _END, segment.url], capture_output=True, text=True, timeout=30, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "timeout\n", "")


# What is kept to itself


@ON_SQLITE
def test_an_event_that_is_too_long_for_segment_is_not_in_the_log(
    engine: Engine, lms: Simulator, tell: Make, told: Any
) -> None:
    data = Data(engine)
    plan = data.plan(data.agreement(name="x" * 40_000), expires=data.now - 100 * DAY)
    data.license(plan, lms_user_id=1)
    ready(data, lms)
    [run] = night(tell(SEGMENT_INCLUDE_EMAIL=True)).values()
    assert run.phase == Phase.FINISHED
    [line] = told()
    assert_not_sent(line, 0, 1, "RuntimeError")
    eventually(lambda: not [each for each in threading.enumerate() if "Consumer" in type(each).__name__], 5)


@ON_SQLITE
def test_the_key_is_in_no_repr(tell: Make) -> None:
    assert KEY not in repr(tell())
