"""What an answer means, what its Retry-After asks for, and what is an outage."""

import re
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
import requests
from hypothesis import given, strategies as st
from support.wire import http_date

from worker import errors
from worker.errors import BatchRefused, Postponed, ReasonedError, RunRefused, Unavailable
from worker.lms.outcomes import (
    LATEST,
    LONGEST_SECONDS,
    Answer,
    date_of,
    is_outage,
    judge,
    judge_question,
    retry_after,
    token_in,
)


def as_header(value: str | int) -> str:
    """A header's text; a number stands for the HTTP date so many seconds from now, when the test runs."""
    return http_date(value) if isinstance(value, int) else value


# What is the LMS's "done"


def of(kind: str, **headers: str) -> dict[str, str]:
    return {"Content-Type": kind} | headers


def judged(answer: Answer, by: Callable[[Answer], None] = judge) -> ReasonedError | None:
    try:
        by(answer)
    except ReasonedError as error:
        return error
    return None


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Answer(200, {}), id="what the real views answer"),
        pytest.param(Answer(200, {"Content-Length": "0"} | of("text/html")), id="a declared type, and no body"),
        pytest.param(Answer(200, of("application/json"), b" \r\n\t"), id="white space alone"),
        pytest.param(Answer(204, {}), id="no content"),
    ],
)
def test_done_is_an_empty_answer_alone(answer: Answer) -> None:
    assert judged(answer) is None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        pytest.param(Answer(200, of("text/plain"), b"down for maintenance"), ("200", "text/plain"), id="maintenance"),
        pytest.param(Answer(200, of("application/json"), b'{"detail": 1}'), ("200", "application/json"), id="JSON"),
        pytest.param(Answer(200, of("application/json"), b"{}"), ("200", "application/json"), id="an empty object"),
        pytest.param(Answer(200, of("text/html"), b"<html>"), ("200", "text/html"), id="a sign-in page"),
        pytest.param(Answer(200, {}, b"x"), ("200", "no content type"), id="something undeclared"),
        pytest.param(Answer(204, of("text/plain"), b"x"), ("204", "text/plain"), id="no content, with content"),
        pytest.param(Answer(201, {}), ("201", "empty"), id="created: these calls create nothing"),
        pytest.param(Answer(202, {}), ("202", "empty"), id="accepted is not done"),
        pytest.param(Answer(203, {}), ("203", "empty"), id="changed by a proxy"),
        pytest.param(Answer(206, {}), ("206", "empty"), id="a part of something"),
        pytest.param(Answer(207, of("text/xml"), b"<a/>"), ("207", "text/xml"), id="one status for each of many"),
        pytest.param(Answer(299, {}), ("299", "empty"), id="nobody knows"),
        pytest.param(Answer(302, {"Location": "/login"}), ("302", "empty"), id="a redirect"),
        pytest.param(Answer(301, of("text/html"), b"<html>"), ("301", "text/html"), id="a redirect's page"),
        pytest.param(Answer(202, {"Server": "awselb/2.0", "Via": "b"}), ("(Server: awselb/2.0)",), id="who it was"),
        pytest.param(Answer(202, {"Via": "1.1 varnish"}), ("(Via: 1.1 varnish)",), id="or who passed it on"),
    ],
)
def test_any_other_success_or_redirect_is_not_the_lms(answer: Answer, words: tuple[str, ...]) -> None:
    error = judged(answer)
    assert error is not None
    assert (type(error), error.reason) == (RunRefused, "not_the_lms")
    assert [word for word in words if word not in error.what] == []
    assert "LMS_URL" in error.remedy


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        pytest.param("x" * 500, "x" * 60, id="shortened"),
        pytest.param("a\x00b\x1b[31m\u202ec", "ab[31mc", id="printable alone"),
        pytest.param("for bob@x.example", "(not shown)", id="an address, whyever"),
    ],
)
def test_a_header_is_shown_short_and_printable_and_without_an_address(value: str, shown: str) -> None:
    for headers in ({"Server": value}, {"Content-Type": value}):
        error = judged(Answer(200, headers, b"bob@x.example"))
        assert error is not None
        assert f"{shown})" in error.what or f"of {shown} came" in error.what
        assert "bob" not in str(error) + repr(Answer(200, {}, b"bob@x.example"))


@pytest.mark.parametrize(
    ("status", "page", "kind", "reason"),
    [
        pytest.param(400, False, BatchRefused, "http_400", id="a malformed e-mail"),
        pytest.param(400, True, BatchRefused, "not_the_lms", id="a firewall's 400"),
        pytest.param(401, True, RunRefused, "http_401", id="a token that stays refused"),
        pytest.param(403, False, BatchRefused, "http_403", id="the role, or a firewall: the call for nobody tells"),
        pytest.param(403, True, BatchRefused, "not_the_lms", id="a firewall's 403"),
        pytest.param(404, False, BatchRefused, "http_404", id="the enterprise, or staff: the call for nobody tells"),
        pytest.param(405, True, BatchRefused, "not_the_lms", id="any other"),
        pytest.param(408, True, Unavailable, "http_408", id="too slow"),
        pytest.param(413, False, BatchRefused, "http_413", id="too large: its halves are not"),
        pytest.param(413, True, BatchRefused, "not_the_lms", id="too large for what stands in front"),
        pytest.param(500, True, BatchRefused, "http_500", id="the LMS's own page"),
        pytest.param(502, True, Unavailable, "http_502", id="a gateway's page"),
        pytest.param(504, True, Unavailable, "http_504", id="a gateway that waited"),
        pytest.param(304, False, RunRefused, "http_304", id="a redirect to nowhere"),
    ],
)
def test_a_refusal_is_first_the_batchs(status: int, page: bool, kind: type[ReasonedError], reason: str) -> None:
    """And no sentence of it blames the role or the secret."""
    bodies = [(of("text/html"), b"<p>"), ({}, b"\n<!DOCTYPE HTML><p>"), (of("x"), b"<html>")] if page else [({}, b"")]
    for headers, body in bodies:
        for by in (judge, judge_question):
            error = judged(Answer(status, headers, body), by)
            assert error is not None
            assert (type(error), error.reason) == (kind, reason)
            assert kind is not BatchRefused or error.remedy == ""


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(Answer(200, of("application/json"), b"{}"), None, id="what is asked for"),
        pytest.param(Answer(200, of("text/html"), b"<html>"), "not_the_lms", id="a page"),
        pytest.param(Answer(202, of("application/json"), b"{}"), "not_the_lms", id="accepted"),
        pytest.param(Answer(204, {}), "not_the_lms", id="nothing"),
    ],
)
def test_a_question_is_answered_with_200_and_no_page(answer: Answer, reason: str | None) -> None:
    error = judged(answer, judge_question)
    assert getattr(error, "reason", None) == reason


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


# Whose fault it is: the LMS's, so that all runs wait, or one call's


def unavailable(reason: str) -> Unavailable:
    return Unavailable(reason, "the LMS does not answer")


OUTAGES = [
    pytest.param(unavailable("http_408"), True, id="too slow"),
    pytest.param(unavailable("http_502"), True, id="a gateway with nothing behind it"),
    pytest.param(unavailable("http_503"), True, id="down for maintenance"),
    pytest.param(unavailable("http_504"), True, id="a gateway that waited"),
    pytest.param(unavailable("http_529"), True, id="any other beyond 500"),
    pytest.param(unavailable("connection_error"), True, id="no connection"),
    pytest.param(unavailable("timeout"), True, id="no answer in time"),
    pytest.param(unavailable("throttled"), True, id="the throttle is on the service user, whatever its run"),
    pytest.param(unavailable("token_http_503"), True, id="no token for anybody"),
    pytest.param(unavailable("token_http_500"), True, id="nor with a 500"),
    pytest.param(unavailable("http_500"), False, id="a 500 that stays: perhaps of one enterprise"),
    pytest.param(unavailable("http_400"), False, id="the LMS answers, if only to refuse a call for nobody"),
    pytest.param(unavailable("http_422"), False, id="so it does here"),
    pytest.param(unavailable("not_understood"), False, id="and here, to a question about one enterprise"),
    pytest.param(unavailable("too_late"), False, id="nothing was sent"),
    pytest.param(unavailable("no_thread"), False, id="nor was it here"),
    pytest.param(unavailable("database"), False, id="the LMS was not asked"),
    *(
        pytest.param(Postponed(reason, "later"), False, id=f"nothing was tried, and told so: {reason}")
        for reason in ("booked", "paused", "throttled", "timeout", "http_503")
    ),
]
# The other reasons end a run, or are of a message alone: no attempt meets them.
OF_RUNS = {"bad_token", "not_the_lms", "clocks", "needs_approval", "other_ledger"}


@pytest.mark.parametrize(("error", "outage"), OUTAGES)
def test_an_outage_is_what_any_run_would_meet(error: Unavailable, outage: bool) -> None:
    assert is_outage(error) is outage


def test_of_every_reason_it_is_said_whether_it_is_an_outage() -> None:
    listed = str(errors.__doc__).partition("The reason codes: ")[2].partition(". ")[0]
    codes = {code.replace("<status>", "503") for code in re.findall("`(.+?)`", listed)}
    judged = {row.values[0].reason for row in OUTAGES}  # type: ignore[union-attr]
    assert codes - judged == OF_RUNS


# What is said of time


@pytest.mark.parametrize(
    "value", ["86401", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 -2359"]
)
def test_no_retry_after_is_longer_than_a_day(value: str) -> None:
    assert retry_after({"Retry-After": value}) in (LONGEST_SECONDS, None)
    assert value.endswith("-2359") or retry_after({"Retry-After": value}) == 24 * 3600


@pytest.mark.parametrize("year", [1, 1000, 9999])
def test_seconds_may_be_added_to_any_date_of_the_lms(year: int) -> None:
    date = date_of({"Date": f"Fri, 31 Dec {year:04} 23:59:59 GMT"})
    assert date is not None
    assert (date + timedelta(days=1)).year in (year, year + 1, year + 2000, year + 2001, 9000)


@given(st.text() | st.from_regex(r"\A(\w{3}, )?\d{1,5} \w{3} \d{1,6} \d\d:\d\d(:\d\d)?( ?[+-]?\w{0,12})?\Z"))
def test_no_header_about_time_is_an_error(value: str) -> None:
    seconds, date = retry_after({"Retry-After": value}), date_of({"Date": value})
    assert seconds is None or 0 <= seconds <= LONGEST_SECONDS
    assert date is None or date <= LATEST


@pytest.mark.parametrize(
    ("lifetime", "seconds"),
    [
        pytest.param("3600", 3600.0, id="an hour"),
        pytest.param('"3600"', 3600.0, id="as text"),
        pytest.param("1e400", LONGEST_SECONDS, id="for ever"),
        pytest.param("Infinity", LONGEST_SECONDS, id="for ever, in Python's JSON"),
        pytest.param("9" * 300, LONGEST_SECONDS, id="longer than anybody lives"),
        pytest.param("9" * 400, None, id="an integer that no float holds"),
        pytest.param("NaN", None, id="not a number"),
        pytest.param("-1", None, id="it has expired"),
        pytest.param("0", None, id="it expires at once"),
        pytest.param("null", None, id="nothing"),
        pytest.param("[" * 100_000, None, id="deeper than Python reads"),
    ],
)
def test_a_token_lasts_a_day_at_most(lifetime: str, seconds: float | None) -> None:
    answer = Answer(200, {}, f'{{"access_token": "t", "expires_in": {lifetime}}}'.encode())
    if seconds is None:
        with pytest.raises(RunRefused, match="bad_token"):
            token_in(answer)
    else:
        assert token_in(answer) == ("t", seconds)
