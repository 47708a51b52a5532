"""What an answer's Retry-After asks for, and that it is kept."""

import time

import pytest
import requests
from support.wire import LICENSE, Clock, Reply, Wire, downgrade, fails, http_date, nothing

from worker.errors import Unavailable
from worker.lms.client import LmsClient, Selection
from worker.lms.outcomes import retry_after
from worker.lms.patience import Patience


def as_header(value: str | int) -> str:
    """A header's text; a number stands for the HTTP date so many seconds from now, when the test runs."""
    return http_date(value) if isinstance(value, int) else value


# Retry-After


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        pytest.param("60", 60.0, id="seconds, as edx-enterprise sends them"),
        pytest.param("0", 0.0, id="at once"),
        pytest.param(" 7 ", 7.0, id="white space around it"),
        pytest.param(300, 300.0, id="an HTTP date"),
        pytest.param(-300, 0.0, id="a date that has passed is at once, never negative"),
        pytest.param(None, None, id="no header"),
        pytest.param("", None, id="an empty one"),
        pytest.param("soon", None, id="a word"),
        pytest.param("-1", None, id="a negative number is no delay"),
        pytest.param("1.5", None, id="a fraction is in neither form"),
        pytest.param("Wed, 31 Feb 2026 07:28:00 GMT", None, id="a day that does not exist"),
        pytest.param("\u00b2", None, id="a digit to str.isdigit, but not to float"),
        pytest.param("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None, id="a year beyond every integer type"),
    ],
)
def test_retry_after_is_read_in_both_its_forms(value: str | int | None, seconds: float | None) -> None:
    response = requests.Response()
    if value is not None:
        response.headers["Retry-After"] = as_header(value)
    found = retry_after(response.headers)
    assert found == (seconds if seconds is None else pytest.approx(seconds, abs=5.0))


def test_a_date_without_a_zone_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    response = requests.Response()
    response.headers["Retry-After"] = http_date(300).removesuffix(" GMT")
    try:
        assert retry_after(response.headers) == pytest.approx(300.0, abs=5.0)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("header", "slept"),
    [
        pytest.param("7", 7.0, id="seconds"),
        pytest.param(40, 40.0, id="a date"),
        pytest.param("3600", 60.0, id="more seconds than the cap"),
        pytest.param(3600, 60.0, id="a date beyond the cap"),
    ],
)
@pytest.mark.parametrize("status", [503, 502, 504])
def test_a_retry_after_is_kept_up_to_the_cap(
    client: LmsClient, wire: Wire, clock: Clock, status: int, header: str | int, slept: float
) -> None:
    wire.says(Reply(status, {"Retry-After": as_header(header)}), 200)
    downgrade(client)
    assert clock.slept == [pytest.approx(slept, abs=5.0 if slept == 40 else 0.0)]


def test_the_caller_is_told_what_the_lms_asked_for_uncapped(client: LmsClient, wire: Wire) -> None:
    wire.says(Reply(503, {"Retry-After": "3600"}))
    assert fails(client).retry_after == 3600


def test_without_a_retry_after_the_waits_grow_with_jitter_up_to_the_cap(
    client: LmsClient, wire: Wire, clock: Clock
) -> None:
    wire.says(503)
    with pytest.raises(Unavailable):
        LmsClient("https://l", "https://l", "k", "s", patience=Patience(tries=10)).downgrade(
            lambda: Selection([LICENSE]), nothing
        )
    assert len(clock.slept) == 9
    for number, slept in enumerate(clock.slept):
        assert min(60.0, 2.0**number) <= slept <= min(60.0, 2.0**number + 1.0)
    assert any(slept % 1 for slept in clock.slept), "no jitter"
