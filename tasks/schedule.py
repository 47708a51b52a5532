"""The moments that NIGHTLY_SCHEDULE names, before and after another moment."""

from datetime import UTC, datetime, timedelta

from celery.schedules import crontab


def latest_night(schedule: crontab, now: datetime) -> datetime | None:
    """The last moment (UTC) up to `now` that NIGHTLY_SCHEDULE names, in the last four years; None without one."""
    for back in (timedelta(minutes=5), timedelta(hours=2), *map(timedelta, (2, 9, 33, 367, 1462))):
        latest, following = None, following_night(schedule, now - back)
        while following <= now:
            latest, following = following, following_night(schedule, following)
        if latest:
            return latest
    return None


def following_night(schedule: crontab, moment: datetime) -> datetime:
    """The first moment (UTC) after this one that NIGHTLY_SCHEDULE names."""
    start, wait, _ = schedule.remaining_delta(moment)
    following: datetime = (start + wait).astimezone(UTC)
    if following <= moment:  # in the repeated hour when summer time ends, crontab sees the first
        return following_night(schedule, moment + timedelta(hours=1))
    return following
