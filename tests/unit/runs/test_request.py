"""What a trigger may ask for: arguments as Flower's JSON, the command line and Celery bring them."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from worker.errors import BadArgument
from worker.runs.request import Request, parse_request, parse_uuid

PLAN = UUID("378d5bf0-f67d-4bf7-8b2a-cbbc53d0f772")
OTHER = UUID("7f2c0b53-3b0c-4b0e-9d4e-0b8f3c7d2a11")
NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


def refused(**arguments: Any) -> str:
    with pytest.raises(BadArgument) as caught:
        parse_request(**arguments)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert not any(word in sentence for word in ("validation error", "pydantic", "errors.pydantic.dev", "type="))
    assert caught.value.__suppress_context__, "the validation error would be told after it, with all it was given"
    return sentence


# What is taken


def test_nothing_asked_is_everything_due() -> None:
    request = parse_request()
    assert request == Request()
    assert request.model_dump() == {
        "dry_run": False,
        "plan_uuids": None,
        "expired_after": None,
        "expired_before": None,
        "force": False,
        "reason": None,
        "approve_unlinks": None,
        "triggered_by": None,
    }


def test_null_is_as_good_as_left_out() -> None:
    nulls = dict.fromkeys(("plan_uuids", "expired_after", "expired_before", "reason"))
    assert parse_request(**nulls) == Request()


@pytest.mark.parametrize(
    "plans",
    [
        pytest.param([str(PLAN), str(OTHER)], id="a list of texts, as JSON brings it"),
        pytest.param((PLAN, OTHER), id="a tuple of UUIDs, as the command brings it"),
        pytest.param([PLAN.hex, str(OTHER).upper()], id="without dashes, in capitals"),
    ],
)
def test_plans_are_read(plans: Any) -> None:
    assert parse_request(plan_uuids=plans).plan_uuids == (PLAN, OTHER)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        pytest.param("2026-01-01T00:00:00Z", NEW_YEAR, id="UTC"),
        pytest.param("2026-01-01T00:00:00", NEW_YEAR, id="without a zone: UTC"),
        pytest.param("2026-01-01 00:00", NEW_YEAR, id="a space, no seconds"),
        pytest.param("2026-01-01", NEW_YEAR, id="a day: its beginning, in UTC"),
        pytest.param("2026-01-01T05:30:00+05:30", NEW_YEAR, id="another zone is brought to UTC"),
        pytest.param("2026-01-01T00:00:00.000042Z", NEW_YEAR + timedelta(microseconds=42), id="microseconds"),
        pytest.param(datetime(2026, 1, 1), NEW_YEAR, id="a date-time without a zone"),
        pytest.param(datetime(2025, 12, 31, 19, tzinfo=timezone(timedelta(hours=-5))), NEW_YEAR, id="one with"),
    ],
)
@pytest.mark.parametrize("name", ["expired_after", "expired_before"])
def test_moments_are_read_as_utc(name: str, given: Any, read: datetime) -> None:
    moment = getattr(parse_request(**{name: given}), name)
    assert moment == read
    assert moment.tzinfo is UTC


def test_a_window_may_be_a_moment() -> None:
    request = parse_request(expired_after=NEW_YEAR, expired_before="2026-01-01T01:00:00+01:00")
    assert request.expired_after == request.expired_before == NEW_YEAR


def test_force_comes_with_its_reason() -> None:
    request = parse_request(force=True, reason="restored from backup")
    assert (request.force, request.reason) == (True, "restored from backup")


def test_a_reason_may_come_alone() -> None:
    assert parse_request(reason="a rehearsal", dry_run=True).reason == "a rehearsal"


def test_a_request_does_not_change_once_it_is_checked() -> None:
    request = parse_request()
    with pytest.raises(ValueError, match="frozen"):
        request.force = True  # type: ignore[misc]


# What is refused


@pytest.mark.parametrize("name", ["dry_run", "force"])
@pytest.mark.parametrize(
    "value",
    [
        pytest.param("False", id="a text that would be true"),
        pytest.param("false", id="JSON in quotes"),
        pytest.param("true", id="nor is true taken in quotes"),
        pytest.param("", id="an empty text"),
        pytest.param(0, id="a number"),
        pytest.param(1, id="another"),
        pytest.param(None, id="null: say which"),
        pytest.param([], id="a list"),
    ],
)
def test_only_a_boolean_is_a_boolean(name: str, value: Any) -> None:
    sentence = refused(**{name: value})
    assert sentence.startswith(f"{name}: ")
    assert "boolean" in sentence
    assert repr(value) in sentence


@pytest.mark.parametrize("reason", [None, "", "   ", "\u3000"])
def test_force_wants_a_reason(reason: str | None) -> None:
    assert "force needs a reason" in refused(force=True, reason=reason)


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        pytest.param("x" * 256, "255", id="longer than the ledger's column"),
        pytest.param(5, "string", id="a number"),
        pytest.param(["x"], "string", id="a list"),
    ],
)
def test_a_reason_is_a_text_that_the_ledger_holds(reason: Any, words: str) -> None:
    sentence = refused(force=True, reason=reason)
    assert sentence.startswith("reason: ")
    assert words in sentence


def test_the_longest_reason_is_taken() -> None:
    assert parse_request(reason="x" * 255).reason == "x" * 255


@pytest.mark.parametrize("name", ["expired_after", "expired_before"])
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(1767225600, id="seconds since 1970"),
        pytest.param(1767225600.5, id="and a half"),
        pytest.param(0, id="zero is not unset"),
        pytest.param(True, id="a boolean"),
        pytest.param("1767225600", id="seconds since 1970, in quotes"),
        pytest.param("2026", id="a year: would be 1970, too"),
        pytest.param("", id="an empty text"),
        pytest.param("yesterday", id="a word"),
        pytest.param("2026-02-30", id="a day that there is not"),
        pytest.param("31.01.2026", id="a day the other way round"),
        pytest.param(["2026-01-01"], id="a list"),
        pytest.param("9999-12-31T23:59:59-12:00", id="after the last moment, in UTC"),
        pytest.param("0001-01-01T00:00:00+12:00", id="before the first moment, in UTC"),
    ],
)
def test_a_moment_is_a_date_time_and_nothing_else(name: str, value: Any) -> None:
    sentence = refused(**{name: value})
    assert sentence.startswith(f"{name}: ")
    assert repr(value) in sentence


def test_a_window_turned_round_is_refused() -> None:
    sentence = refused(expired_after="2026-02-01", expired_before="2026-01-01")
    assert sentence == "expired_after is later than expired_before: swap the two"


def test_a_window_is_compared_in_utc() -> None:
    refused(expired_after="2026-01-01T00:00:00-01:00", expired_before="2026-01-01T00:00:00Z")
    parse_request(expired_after="2026-01-01T00:00:00+01:00", expired_before="2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("plans", "given"),
    [
        pytest.param([], "[]", id="none at all: everything, or nothing?"),
        pytest.param((), "()", id="none at all, from Python"),
        pytest.param(str(PLAN), str(PLAN), id="a text, not a list"),
        pytest.param({"uuid": str(PLAN)}, str(PLAN), id="a mapping"),
        pytest.param([str(PLAN), "nonsense"], "nonsense", id="one that is no UUID"),
        pytest.param(["nonsense"], "nonsense", id="the only one is no UUID"),
        pytest.param([5], "5", id="a number"),
        pytest.param([None], "None", id="null"),
    ],
)
def test_plans_are_a_list_of_uuids(plans: Any, given: str) -> None:
    sentence = refused(plan_uuids=plans)
    assert sentence.startswith("plan_uuids: ")
    assert given in sentence
    assert sentence.count("plan_uuids") == 1, "one wrong argument, one complaint"


def test_an_unknown_argument_is_refused_by_name() -> None:
    assert refused(dry_rum=True).startswith("dry_rum: ")


def test_every_wrong_argument_is_named_at_once() -> None:
    sentence = refused(dry_run="x", force="y", expired_after=5, unknown=1)
    assert sentence.count("; ") == 3
    for name in ("dry_run", "force", "expired_after", "unknown"):
        assert f"{name}: " in sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dry_run": "yes"}, "dry_run: must be a boolean, true or false (given 'yes')"),
        ({"reason": 5}, "reason: must be a string (given 5)"),
        ({"plan_uuids": ["gold"]}, "plan_uuids: must be a UUID (given 'gold')"),
        ({"plan_uuids": "gold"}, "plan_uuids: must be a list (given 'gold')"),
        ({"plan_uuids": []}, "plan_uuids: must have at least 1 item (given [])"),
        ({"approve_unlinks": "5"}, "approve_unlinks: must be an integer (given '5')"),
        ({"approve_unlinks": 0}, "approve_unlinks: must be greater than or equal to 1 (given 0)"),
        ({"dry_rum": True}, "dry_rum: is not an argument (given True)"),
    ],
)
def test_a_complaint_is_in_our_words_and_has_the_value(arguments: dict[str, Any], sentence: str) -> None:
    assert refused(**arguments) == sentence


# A UUID by itself


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(PLAN, id="one already"),
        pytest.param(str(PLAN), id="a text"),
        pytest.param(PLAN.hex, id="without dashes"),
        pytest.param(str(PLAN).upper(), id="in capitals"),
    ],
)
def test_a_uuid_is_read(value: Any) -> None:
    assert parse_uuid("run_id", value) == PLAN


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="null"),
        pytest.param("", id="empty"),
        pytest.param("nonsense", id="a word"),
        pytest.param("378d5bf0-f67d-4bf7-8b2a", id="cut short"),
        pytest.param(5, id="a number"),
        pytest.param([str(PLAN)], id="a list"),
        pytest.param("a\nb", id="two lines"),
    ],
)
def test_what_is_no_uuid_is_refused_by_name(value: Any) -> None:
    with pytest.raises(BadArgument) as caught:
        parse_uuid("run_id", value)
    assert str(caught.value) == f"run_id is not a UUID: {value!r}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["reason", "triggered_by"])
def test_a_text_that_no_database_takes_is_refused_by_name(name: str) -> None:
    with pytest.raises(
        BadArgument, match=rf"^{name}: must be one line of text without control characters \(given 'a.x00b'\)$"
    ):
        parse_request(**{name: "a\0b"})
