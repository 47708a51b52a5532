"""What each status comes to, over real connections."""

from collections.abc import Callable
from typing import Any

import pytest
from support.lms_calls import EMAILS, Call, Customer, Wire, fails, http, nothing, outcome

from simulator.lms.faults import Fault
from simulator.lms.journal import Kind
from simulator.lms.server import Simulator
from worker.errors import BatchRefused, ReasonedError, RunRefused, Unavailable
from worker.lms.client import LmsClient, Selection
from worker.lms.patience import Patience

# Every status


def expected(status: int, others_are_taken: bool) -> tuple[type[ReasonedError], str] | None:
    if status in (200, 204):
        return None
    if status == 429:
        return Unavailable, "throttled"
    if status < 400:  # with a Location, here
        return RunRefused, "not_the_lms"
    kind: type[ReasonedError] = Unavailable if status == 408 or status > 500 else RunRefused
    if status in (400, 422, 500) or (kind is RunRefused and status != 401):
        refused_for_all = Unavailable if status in (400, 422, 500) else RunRefused
        kind = BatchRefused if others_are_taken else refused_for_all
    return kind, f"http_{status}"


@pytest.mark.parametrize("others_are_taken", [True, False], ids=["an LMS that works", "an LMS that always says so"])
def test_every_status_is_success_or_one_error_with_its_reason(
    wire: Wire, connect: Callable[..., LmsClient], call: Call, others_are_taken: bool
) -> None:
    client = connect(wire.url, patience=Patience(tries=2, first_wait=0.0))
    deviations: dict[int, object] = {}
    for status in range(200, 600):
        client.confirmed_at.clear()
        answer = http(status, "", "Retry-After: 0", "Location: /login")
        wanted = expected(status, others_are_taken)
        if wanted and wanted[0] is BatchRefused:
            wire.says(*[answer] * (2 if status == 500 else 1), http(200))
        else:
            wire.says(answer)
        try:
            call(client)
        except Exception as error:
            found = type(error), getattr(error, "reason", None)
            told = "throttle" if status == 429 else str(status)
            if found != wanted or told not in str(error):
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
    assert (type(error), error.reason) == (RunRefused, "not_the_lms")
    assert str(status) in error.what
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
    assert (type(error), error.reason) == (RunRefused, "not_the_lms")


def test_a_wrong_token_redirect_is_not_followed_either(lms: Simulator, client: LmsClient, downgrade: Call) -> None:
    lms.faults(Fault("token", status=302, headers={"Location": "/login"}))
    assert type(fails(downgrade, client)) is RunRefused
    assert [entry.kind for entry in lms.calls()] == ["token"]


# Whose refusal it is, and what is no success


BLOCKED = "<html>Request blocked</html>"


@pytest.mark.parametrize("status", [400, 403, 406])
def test_a_firewall_that_dislikes_one_address_refuses_that_batch_alone(
    lms: Simulator, client: LmsClient, customer: Customer, status: int
) -> None:
    """The run failed as "the service user lacks the permission", night after night."""
    lms.faults(Fault("unlink", containing=EMAILS[1], status=status, body=BLOCKED))
    for emails, refused in ((EMAILS, True), (EMAILS[:2], True), ([EMAILS[1]], True), (EMAILS[2:], False)):
        found = outcome(lambda emails=emails: client.unlink(customer.enterprise, lambda: Selection(emails), nothing))  # type: ignore[misc]
        assert found == ((BatchRefused, "not_the_lms") if refused else None)
    assert lms.state.linked[customer.enterprise] == set(EMAILS[:2])


def test_a_body_that_is_too_large_is_the_batchs_and_its_halves_go_through(
    lms: Simulator, client: LmsClient, customer: Customer
) -> None:
    lms.faults(Fault("unlink", longer_than=120, status=413))
    refused = outcome(lambda: client.unlink(customer.enterprise, lambda: Selection(EMAILS), nothing))
    assert refused == (BatchRefused, "http_413")
    for half in (EMAILS[:2], EMAILS[2:]):
        client.unlink(customer.enterprise, lambda half=half: Selection(half), nothing)  # type: ignore[misc]
    assert lms.state.linked[customer.enterprise] == set()


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        pytest.param("", "http_403", ("permission", "operator role"), id="the role is missing"),
        pytest.param(BLOCKED, "not_the_lms", ("403", "text/html", "Server: ", "check LMS_URL"), id="a firewall"),
    ],
)
def test_a_refusal_of_every_call_is_the_runs_and_only_then_is_the_role_blamed(
    lms: Simulator, client: LmsClient, kind: Kind, call: Call, body: str, reason: str, words: tuple[str, ...]
) -> None:
    call(client)
    lms.journal.clear()
    lms.faults(Fault(kind, status=403, body=body))
    error = fails(call, client)
    assert (type(error), error.reason, len(lms.calls(kind))) == (RunRefused, reason, 2)
    assert [word for word in words if word not in str(error)] == []
    assert ("role" in str(error)) == (not body)


def test_a_service_user_that_is_not_staff_may_downgrade_and_every_unlink_is_a_404(
    lms: Simulator, client: LmsClient, customer: Customer, downgrade: Call, unlink: Call
) -> None:
    lms.staff(False)
    downgrade(client)
    client.check_downgrades(nothing)
    error = fails(unlink, client)
    assert (type(error), error.reason, '"is staff"' in error.remedy) == (RunRefused, "http_404", True)
    with pytest.raises(RunRefused, match="is staff"):
        client.check_unlinks(customer.enterprise, nothing)
    lms.state.add_learner(7, EMAILS[0])
    assert client.linked_learners(customer.enterprise, [7], nothing) == {}, "so that this alone proves nothing"
    lms.staff(True)
    assert client.linked_learners(customer.enterprise, [7], nothing) == {7: EMAILS[0]}


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"status": 200, "body": "down for maintenance"}, id="a sentence"),
        pytest.param({"status": 200, "body": '{"detail": "later"}'}, id="JSON"),
        pytest.param({"status": 200, "body": BLOCKED}, id="a page"),
        pytest.param({"status": 202}, id="accepted"),
        pytest.param({"status": 206}, id="a part"),
        pytest.param({"status": 207, "body": "<multistatus/>", "headers": {"Content-Type": "text/xml"}}, id="many"),
    ],
)
def test_a_success_that_is_not_the_lms_is_none(
    lms: Simulator, client: LmsClient, kind: Kind, call: Call, fault: dict[str, Any]
) -> None:
    lms.faults(Fault(kind, **fault))
    error = fails(call, client)
    assert (type(error), error.reason, len(lms.calls(kind))) == (RunRefused, "not_the_lms", 1)
    assert str(fault["status"]) in error.what
    assert "Server: " in error.what
    assert fault.get("body", "?") not in str(error)
    assert client.confirmed_at == {}
