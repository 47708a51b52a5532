"""What each status comes to, over real connections."""

from collections.abc import Callable

import pytest
from support.lms_calls import Call, Wire, fails, http

from simulator.lms.faults import Fault
from simulator.lms.journal import Kind
from simulator.lms.server import Simulator
from worker.errors import BatchRefused, ReasonedError, RunRefused, Unavailable
from worker.lms.client import LmsClient
from worker.lms.patience import Patience

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
