"""What the doctor finds, and errors as findings."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from worker.errors import LicenseExpiryError, WrongSetting


@dataclass(frozen=True)
class Finding:
    """What was found of a subject; whatever is not ok has a remedy."""

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
