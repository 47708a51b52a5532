"""When the last scheduled night was, by Celery's own reading of NIGHTLY_SCHEDULE."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.schedules import crontab
from hypothesis import given, settings, strategies as st

from tasks.schedule import latest_night


def schedule(text: str, zone: str = "UTC") -> crontab:
    app = Celery(set_as_current=False)
    app.conf.update(timezone=zone)
    made = crontab.from_string(text)
    made.app = app
    return made


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "zone", "now", "expected"),
    [
        pytest.param("0 2 * * *", "UTC", "2026-11-24 02:00:00", "2026-11-24 02:00", id="at the moment itself"),
        pytest.param("0 2 * * *", "UTC", "2026-11-24 01:59:59", "2026-11-23 02:00", id="a second before it"),
        pytest.param("0 2 * * *", "UTC", "2026-11-24 02:00:01", "2026-11-24 02:00", id="a second after it"),
        pytest.param("* * * * *", "UTC", "2026-11-24 18:31:37", "2026-11-24 18:31", id="every minute"),
        pytest.param("0 2 * * sun", "UTC", "2026-11-28 12:00:00", "2026-11-22 02:00", id="once a week"),
        pytest.param("30 3 1 * *", "UTC", "2026-11-24 12:00:00", "2026-11-01 03:30", id="once a month"),
        pytest.param("0 0 29 2 *", "UTC", "2026-11-24 12:00:00", "2024-02-29 00:00", id="once in four years"),
        pytest.param("0 2 * * *", "Asia/Kolkata", "2026-11-24 12:00:00", "2026-11-23 20:30", id="in its time zone"),
        pytest.param("0 2 * * *", "Europe/Paris", "2026-07-01 12:00:00", "2026-07-01 00:00", id="in summer time"),
        pytest.param("0 2 * * *", "Europe/Paris", "2026-12-01 12:00:00", "2026-12-01 01:00", id="in winter time"),
        pytest.param("*/10 * * * *", "Europe/Paris", "2026-10-25 02:05:00", "2026-10-25 02:00", id="the hour twice"),
    ],
)
def test_the_last_night(text: str, zone: str, now: str, expected: str) -> None:
    assert latest_night(schedule(text, zone), utc(now)) == utc(expected)


@pytest.mark.parametrize("minute", range(0, 240, 7))
def test_the_days_on_which_the_clock_is_put_on_and_back_end_the_search(minute: int) -> None:
    """Where a wall-clock time comes twice or never, any moment near it will do, but one must be found."""
    for day in ("2026-03-29", "2026-10-25"):
        now = utc(f"{day} 00:00:00") + timedelta(minutes=minute)
        for text, longest in (("* * * * *", 2), ("*/15 * * * *", 2), ("30 2 * * *", 26)):
            found = latest_night(schedule(text, "Europe/Paris"), now)
            assert found is not None
            assert timedelta() <= now - found <= timedelta(hours=longest), (text, now, found)


@settings(max_examples=60)
@given(
    minute=st.integers(0, 59),
    hours=st.sets(st.integers(0, 23), min_size=1, max_size=4),
    weekdays=st.sets(st.integers(0, 6), min_size=1),
    now=st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31)),
)
def test_it_is_the_first_that_one_meets_when_walking_back(
    minute: int, hours: set[int], weekdays: set[int], now: datetime
) -> None:
    now = now.replace(tzinfo=UTC)
    text = f"{minute} {','.join(map(str, hours))} * * {','.join(map(str, weekdays))}"
    back = now.replace(minute=minute, second=0, microsecond=0)
    while back > now or back.hour not in hours or back.isoweekday() % 7 not in weekdays:
        back -= timedelta(hours=1)
    assert latest_night(schedule(text), now) == back


def test_a_schedule_that_names_no_day_of_the_last_years_has_no_night() -> None:
    assert latest_night(schedule("0 0 29 2 mon"), utc("2026-11-24 12:00:00")) is None  # the last one was in 2016


def test_the_answer_is_in_utc() -> None:
    now = datetime(2026, 7, 1, 14, 0, tzinfo=ZoneInfo("Europe/Paris"))
    found = latest_night(schedule("0 2 * * *", "Europe/Paris"), now)
    assert found is not None
    assert (found.isoformat()) == "2026-07-01T00:00:00+00:00"
