"""What the status of an LMS call means: a return for success, or one type of the error tree with a reason code."""

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from worker.errors import BatchRefused, RunRefused, Unavailable

CREDENTIALS_REMEDY = (
    "check BACKEND_SERVICE_EDX_OAUTH2_KEY and BACKEND_SERVICE_EDX_OAUTH2_SECRET, and that "
    "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT (LMS_URL when not set) is this LMS"
)
LOOK_AT_THE_LMS = "look at the LMS"
REMEDIES = {
    401: f"it does not accept our token: {CREDENTIALS_REMEDY}",
    403: "the service user lacks the permission: give license-manager's service user the enterprise "
    "operator role in the LMS",
    404: "it does not know the enterprise, or the enterprise is not active there, or LMS_URL is wrong",
    413: "the batch is too large for it: lower LICENSE_EXPIRATION_BATCH_SIZE or BULK_UNLINK_BATCH_SIZE",
}


def judge(status: int, retry_after: float | None = None, web_page: bool = False) -> None:
    """Return for a 2xx; else raise what this status means. (429 and a first 401 are dealt with before.)

    A `web_page` is no success either: something in front of the LMS sent it, a sign-in or a maintenance page.
    Raises BatchRefused, RunRefused or Unavailable, with the reason http_<status> or not_the_lms.
    """
    reason = f"http_{status}"
    if 200 <= status < 300 and web_page:
        raise RunRefused("not_the_lms", f"a web page came back with {status}, not the LMS's answer", "check LMS_URL")
    if 200 <= status < 300:
        return
    what = f"the LMS answered {status}"
    if status in (400, 422, 500):
        raise BatchRefused(reason, what)
    if status == 408 or status > 500:
        raise Unavailable(reason, what, LOOK_AT_THE_LMS, retry_after)
    raise RunRefused(reason, what, REMEDIES.get(status, "check LMS_URL: this is not its API"))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer's Retry-After asks for, in either of its forms; None without a readable one."""
    value = headers.get("Retry-After", "").strip()
    try:
        if value.isascii() and value.isdigit():
            return float(value)
        return max(0.0, (_moment(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def date_of(headers: Mapping[str, str]) -> datetime | None:
    """The moment of the answering clock, UTC, to the second; None without a readable Date."""
    try:
        return _moment(headers.get("Date", ""))
    except (ValueError, OverflowError):
        return None


def _moment(value: str) -> datetime:
    moment = parsedate_to_datetime(value)
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
