"""Formats texts for the pages: moments in UTC, durations, reasons, and the command that starts a run again."""

import re
import shlex
from datetime import datetime, timedelta

from worker.db.ledger_tables import Run
from worker.ledger.order import WENT_WRONG
from worker.ledger.stalled import MAX_RUN_AGE

UNKNOWN = "unknown"
NEEDS_APPROVAL = "needs_approval"
_CODE = re.compile(r"\[(\w+)\]$")
_REASONS = {
    "connection_error": "no connection to the LMS",
    "timeout": "the LMS did not answer in time",
    "throttled": "the LMS's throttle",
    "database": "the database did not answer",
    "bad_token": "the LMS gave no usable token",
    "not_the_lms": "the answer did not come from the LMS",
    "not_understood": "the LMS's answer could not be understood",
    "no_thread": "the worker's host cannot start more threads",
    "other_ledger": "its message belongs to another ledger",
    "clocks": "the clocks are too far apart",
    "too_late": "a batch was too old to be sent",
    "booked": "the limit of calls a minute is used up by other runs",
    "paused": "everything is paused",
    NEEDS_APPROVAL: "more learners to unlink than UNLINK_LIMIT",
    "abandoned": f"abandoned: no progress, or opened more than {MAX_RUN_AGE // timedelta(hours=1)} hours ago",
    UNKNOWN: "another reason",
}


def in_words(reason: str) -> str:
    """Return the words for a reason code of the ledger; an unknown code is returned as it is."""
    status = re.fullmatch(r"(token_)?http_(\d+)", reason)
    if status:
        return f"the LMS {'gave no token: it ' if status[1] else ''}answered {status[2]}"
    return _REASONS.get(reason, reason)


def reason_of(phase: str, error: str | None) -> str:
    """Return the reason code of a failed run, from its phase and error; `unknown` if the error has no code."""
    code = _CODE.search(error or "")
    return phase if phase != WENT_WRONG[0] else code[1] if code else UNKNOWN


def span(length: timedelta) -> str:
    """Format a duration: 0.4 s, 12 s, 1 min 7 s, 2 h 13 min, 3 d 4 h."""
    seconds = max(0.0, length.total_seconds())
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for name, size, small, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def plural(number: int, one: str, more: str | None = None) -> str:
    """Format a number with its noun: 1 license, 1,000 licenses."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def day(moment: datetime) -> str:
    """Format a moment for a heading: 1 June 2026, 02:00 UTC."""
    return f"{moment.day} {moment:%B %Y, %H:%M}" + (f":{moment:%S}" if moment.second else "") + " UTC"


def stamp(moment: datetime) -> str:
    """Format a moment to the minute: 2026-06-01 02:00 UTC."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def second(moment: datetime) -> str:
    """Format a moment to the second: 2026-06-01 02:00:07 UTC."""
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def soon(moment: datetime, now: datetime) -> str:
    """Format a near moment: 02:31:05 UTC; with the date if it is on another day than `now`."""
    return f"{moment:%H:%M:%S} UTC" if moment.date() == now.date() else second(moment)


def again(run: Run) -> str:
    """Return the command that starts the same run again, quoted for a shell.

    Keeps force, approval and reason: without force, the command for a forced run would find nothing due.
    """
    said = ["license-expiry", "run", "--enterprise", str(run.enterprise_customer_uuid)]
    for plan in run.plan_uuids or ():
        said += ["--plan", plan]
    for option, moment in (("--expired-after", run.expired_after), ("--expired-before", run.expired_before)):
        said += [option, moment.isoformat()] if moment else []
    said += ["--force"] if run.force else []
    said += ["--approve-unlinks", str(run.approve_unlinks)] if run.approve_unlinks else []
    said += ["--reason", run.reason] if run.reason else []
    said += ["--dry-run"] if run.dry_run else []
    return shlex.join(said)
