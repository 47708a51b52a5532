"""The findings of `doctor`, and errors as findings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from worker.clock import BEAT_AHEAD
from worker.errors import LicenseExpiryError, WrongSetting

NAMED = 3  # the most enterprises, plans or workers that one finding names


@dataclass(frozen=True)
class Finding:
    """A finding about a subject; it has a remedy unless it is ok."""

    subject: str
    status: Literal["ok", "warning", "wrong"]
    what: str
    remedy: str = ""


def explained(subject: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """These findings, and one for the error that ends them, if any does."""
    try:
        yield from findings
    except LicenseExpiryError as error:
        yield from wrong(subject, error)


def wrong(subject: str, error: LicenseExpiryError) -> Iterator[Finding]:
    """A finding for an error; for each of its parts, if it has any."""
    for part in getattr(error, "parts", [error]):
        about = "settings" if isinstance(part, WrongSetting) else subject
        yield Finding(about, "wrong", part.what, part.remedy)


def clock_finding(whose: str, clock: Callable[[], datetime]) -> Finding:
    """Is this clock, which answers in UTC, together with this machine's?"""
    before = datetime.now(UTC)
    there = clock()
    ahead = before + (datetime.now(UTC) - before) / 2 - there
    told = f"this machine's is {abs(ahead.total_seconds()):.1f} s {'ahead of' if ahead > timedelta() else 'behind'}"
    if abs(ahead) <= BEAT_AHEAD:
        return Finding("clock", "ok", f"{told} {whose}")
    return Finding("clock", "warning", f"{told} {whose}", "let NTP keep both clocks")
