"""The client against a real HTTP server: the simulator, or, for what it cannot tell or show, a few lines of socket."""

import json
import logging
import pickle
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from math import inf
from typing import Any
from uuid import UUID, uuid4

import pytest
import urllib3
from support.lms_calls import (
    EMAILS,
    MARK,
    NOW,
    PAGE,
    SECRET,
    Call,
    Customer,
    Wire,
    fails,
    nothing,
    outcome,
    statuses,
)

from simulator.lms.faults import Fault
from simulator.lms.journal import Kind
from simulator.lms.server import Simulator
from simulator.lms.state import Enrollment
from worker.clock import steady
from worker.errors import BatchRefused, LeaseLost, ReasonedError, RunRefused, Unavailable
from worker.lms.client import DOWNGRADE_PATH, NOBODYS_EMAIL, NOBODYS_LICENSE, UNLINK_PATH, LmsClient, Selection
from worker.lms.transport import Guard

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
    connect(wire.url).downgrade(lambda: Selection(licenses, modified_after=after), nothing)
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
    connect(wire.url).unlink(UUID("378d5bf0f67d4bf78b2acbbc53d0f772"), lambda: Selection(emails), nothing)
    (call,) = wire.calls()
    assert call.path == "/enterprise/api/v1/enterprise-customer/378d5bf0-f67d-4bf7-8b2a-cbbc53d0f772/unlink_users/"
    assert json.loads(call.body) == {"user_emails": emails, "is_relinkable": True}  # as the licenses have them
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
            id="an enrollment could not be changed",
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
        pytest.param(Row([[WELL]], status=400, kind=BatchRefused, reason="http_400"), id="a date it cannot read"),
        pytest.param(Row([[WELL]], status=403, kind=BatchRefused, reason="http_403"), id="of one license"),
    ],
)
def test_the_table_of_downgrades(lms: Simulator, client: LmsClient, customer: Customer, row: Row) -> None:
    made = [uuid4() for _ in row.licenses]
    for license, enrollments in zip(made, row.licenses, strict=True):
        copies = [Enrollment(one.mode, one.fault) for one in enrollments]
        lms.state.add_license(license, customer.enterprise, copies)
    if row.status:
        lms.faults(Fault("downgrade", license=str(made[0]), status=row.status))
    found = outcome(lambda: client.downgrade(lambda: Selection(made + row.extra, modified_after=row.after), nothing))
    assert found == (row.kind and (row.kind, row.reason))
    last = lms.calls("downgrade")[-1]
    if row.kind is None:
        assert {one.mode for license in made for one in lms.state.enrollments(license)} <= {"audit"}
    else:
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
    found = outcome(lambda: client.unlink(customer.enterprise, lambda: Selection(emails), nothing))
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
    error = fails(lambda client: client.unlink(enterprise, lambda: Selection(EMAILS), nothing), client)
    assert (type(error), error.reason) == (RunRefused, "http_404")
    assert "enterprise" in str(error)
    assert [entry.emails for entry in lms.calls("unlink")] == [EMAILS, [NOBODYS_EMAIL]]


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


# Frozen before the first byte


def test_a_selection_that_is_old_is_made_anew_and_its_connection_is_not_used_again(
    lms: Simulator, client: LmsClient, customer: Customer
) -> None:
    """As when the process was frozen between the selection and its first byte."""
    client.downgrade(lambda: Selection(customer.licenses[:1]), nothing)  # has its token, and a connection
    lms.journal.clear()
    until = [steady() - 1, steady() - 1, inf]
    client.downgrade(lambda: Selection(customer.licenses[-len(until) :], until.pop(0)), nothing)
    assert [entry.licenses for entry in lms.calls("downgrade") if entry.status] == [[str(customer.licenses[-1])]]
    with pytest.raises(Unavailable, match="nothing was sent"):
        client.unlink(customer.enterprise, lambda: Selection(EMAILS, steady() - 1), nothing)
    assert lms.calls("unlink") == []


def test_connecting_may_take_longer_than_a_selection_stays_fresh(
    lms: Simulator, client: LmsClient, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow resolver, say: the connection is made before the next selection, or nothing would ever be sent."""
    real = urllib3.connection.HTTPConnection.connect

    def slow(connection: urllib3.connection.HTTPConnection) -> None:
        time.sleep(0.3)
        real(connection)

    client.lms_now()
    client.close()
    monkeypatch.setattr(urllib3.connection.HTTPConnection, "connect", slow)
    client.unlink(customer.enterprise, lambda: Selection(EMAILS, steady() + 0.2), nothing)
    assert [entry.emails for entry in lms.calls("unlink") if entry.status] == [EMAILS]


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
        pytest.param([{"status": 503, "times": 2}], 3, id="retries"),
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
            client.downgrade(lambda: Selection(customer.licenses), guard)
        else:
            client.unlink(customer.enterprise, lambda: Selection(EMAILS), guard)

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
        client.downgrade(lambda: Selection([uuid4()]), guard)
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
        call = thread.submit(client.downgrade, lambda: Selection(customer.licenses), guard)
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
    client.downgrade(lambda: Selection(customer.licenses), nothing)  # has its token, and a connection
    lms.journal.clear()
    with pytest.raises(LeaseLost):
        client.downgrade(lambda: Selection(customer.licenses), lambda: steady() + left)
    with pytest.raises(LeaseLost):
        client.unlink(customer.enterprise, lambda: Selection(EMAILS), lambda: steady() + left)
    assert lms.calls() == []
    client.unlink(customer.enterprise, lambda: Selection(EMAILS), lambda: steady() + 40)
    assert len(lms.calls("unlink")) == 1, "and the next claim is not hindered"


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
