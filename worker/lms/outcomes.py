"""Judges an answer of the LMS: a return for success, or one type of the error tree with a reason code."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from worker.errors import BatchRefused, Postponed, ReasonedError, RunRefused, Unavailable

CREDENTIALS_REMEDY = (
    "check BACKEND_SERVICE_EDX_OAUTH2_KEY and BACKEND_SERVICE_EDX_OAUTH2_SECRET, and that "
    "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT (LMS_URL when not set) is this LMS"
)
NOT_THE_LMS = "not_the_lms"
NOT_THE_LMS_REMEDY = "check {}, and any proxy, firewall, maintenance or sign-in page in front of the LMS"
TOKEN_URL = "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT (LMS_URL when not set)"  # noqa: S105, a setting's name
REMEDIES = {
    401: f"it does not accept our token: {CREDENTIALS_REMEDY}",
    403: "the service user lacks the permission: give license-manager's service user the enterprise "
    "operator role in the LMS",
    404: "it does not know the enterprise, or the enterprise is not active there, or the service user has the operator "
    'role but not "is staff" in the LMS, or LMS_URL is wrong',
    413: "even the smallest request is too large: raise the limit of the LMS, or of the proxy in front of it",
}
LOOK_AT_THE_LMS = "look at the LMS"
# A refusal with one of these is about the licenses in the call, unless a call that concerns nobody meets it as well.
OF_THE_BATCH = (400, 422, 500)
# The reason of a 429: on the service user, and no fault of a run's.
THROTTLED = "throttled"
# Reasons of Unavailable: with ANSWERS the LMS is up; with NOT_ASKED it was not called.
ANSWERS = (*(f"http_{status}" for status in OF_THE_BATCH), "not_understood")
NOT_ASKED = ("too_late", "no_thread", "database")
LONGEST_HEADER = 60
# Larger values from an LMS are nonsense and are cut to these.
LONGEST_SECONDS = 24 * 3600.0
LATEST = datetime(9000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Answer:
    """An answer of the LMS, or of a server in its place; the body may hold e-mail addresses."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)

    @property
    def is_empty(self) -> bool:
        """Whether the body holds nothing but white space."""
        return not self.body.strip()

    @property
    def is_web_page(self) -> bool:
        """Whether the body is made for a browser."""
        declared = "html" in self.headers.get("Content-Type", "").lower()
        start = self.body[:200].lstrip().lower()
        return not self.is_empty and (declared or start.startswith((b"<!doctype html", b"<html")))

    @property
    def told(self) -> str:
        """Describes an answer that is not the LMS's: status, content type, sender; never the body."""
        kind = _shown(self.headers.get("Content-Type", "").partition(";")[0])
        sender = next(
            (f"{name}: {_shown(self.headers[name])}" for name in ("Server", "Via") if name in self.headers), ""
        )
        body = "with an empty body" if self.is_empty else f"with a body of {kind or 'no content type'}"
        return f"{self.status} {body} came back" + (f" ({sender})" if sender else "")


def judge(answer: Answer) -> None:
    """Return when the LMS has done what a call asked for: 200 or 204 with an empty body. Else raise what it means.

    (A first 401 is dealt with before.) Raises BatchRefused, RunRefused or Unavailable, with the reason http_<status>,
    throttled or not_the_lms.
    """
    if answer.status not in (200, 204) or not answer.is_empty:
        raise _meaning(answer)


def judge_question(answer: Answer) -> None:
    """Return when the LMS has answered a question: 200, and no web page. Else raise as `judge` does."""
    if answer.status != 200 or answer.is_web_page:
        raise _meaning(answer)


def judge_token(answer: Answer) -> None:
    """Return when a token may be in the answer. Else raise RunRefused or Unavailable."""
    status, reason = answer.status, f"token_http_{answer.status}"
    if status == 429:
        raise _throttled(answer)
    if status == 408 or status >= 500:
        later = retry_after(answer.headers)
        raise Unavailable(reason, f"the LMS gave no token: it answered {status}", LOOK_AT_THE_LMS, later)
    if answer.is_web_page:
        raise _not_the_lms(answer, TOKEN_URL)
    if not 200 <= status < 300:
        raise RunRefused(reason, f"the LMS gave no token: it answered {status}", CREDENTIALS_REMEDY)


def token_in(answer: Answer) -> tuple[str, float]:
    """The token in an answer, and for how many seconds it may be used. Raises RunRefused (`bad_token`)."""
    try:
        given = json.loads(answer.body)
        token, lifetime = given["access_token"], float(given["expires_in"])
        if not (re.fullmatch(r"[!-~]+", token) and lifetime > 0):
            raise ValueError("no token")
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError) as error:
        raise RunRefused(
            "bad_token", f"the LMS answered {answer.status} without a usable token", CREDENTIALS_REMEDY
        ) from error
    return token, min(lifetime, LONGEST_SECONDS)


def too_large(answer: Answer, most: int, setting: str) -> RunRefused:
    """The error for an answer of more than `most` bytes that is no refusal; `setting` has the address."""
    return _not_the_lms(answer, setting, f", of more than {most} bytes")


def refused_for_all(refused: BatchRefused) -> ReasonedError:
    """The error when a call that concerns nobody was refused like this: RunRefused or Unavailable."""
    what = f"{refused.what}, even to a call that concerns nobody"
    if refused.reason == NOT_THE_LMS:
        return RunRefused(NOT_THE_LMS, what, NOT_THE_LMS_REMEDY.format("LMS_URL"))
    status = int(refused.reason.removeprefix("http_"))
    if status in OF_THE_BATCH:
        return Unavailable(refused.reason, what, "look at the LMS's log")
    return RunRefused(refused.reason, what, REMEDIES.get(status, "check LMS_URL: this is not its API"))


def is_outage(error: Unavailable) -> bool:
    """Whether the LMS is away or throttles, by this error: then no run needs to find out for itself."""
    return was_asked(error) and error.reason not in ANSWERS


def was_asked(error: Unavailable) -> bool:
    """Whether the LMS had a call at all before this error."""
    return not isinstance(error, Postponed) and error.reason not in NOT_ASKED


def may_be_of_all(refused: BatchRefused) -> bool:
    """Whether every call may be refused so: for the role or the address, say, and not for what is in the call."""
    return refused.reason not in {f"http_{status}" for status in OF_THE_BATCH}


def _meaning(answer: Answer) -> ReasonedError:
    """The error for an answer that is no success."""
    status, reason = answer.status, f"http_{answer.status}"
    what = f"the LMS answered {status}"
    if 200 <= status < 300:
        return _not_the_lms(answer)
    if 300 <= status < 400 and (answer.is_web_page or "Location" in answer.headers):
        return _not_the_lms(answer)
    if status == 429:
        return _throttled(answer)
    if status == 401:
        return RunRefused(reason, what, REMEDIES[401])
    if status == 408 or status > 500:
        return Unavailable(reason, what, LOOK_AT_THE_LMS, retry_after(answer.headers))
    if status == 500:
        return BatchRefused(reason, what)
    if 400 <= status < 500:
        return BatchRefused(NOT_THE_LMS, answer.told) if answer.is_web_page else BatchRefused(reason, what)
    return RunRefused(reason, what, "check LMS_URL: this is not its API")


def _throttled(answer: Answer) -> Unavailable:
    remedy = "set LMS_DOWNGRADES_PER_MINUTE and LMS_UNLINKS_PER_MINUTE to the limits of the LMS"
    return Unavailable(THROTTLED, "the LMS throttles us (it answered 429)", remedy, retry_after(answer.headers))


def _not_the_lms(answer: Answer, setting: str = "LMS_URL", size: str = "") -> RunRefused:
    what = f"{answer.told}{size}, which is not the LMS's answer"
    return RunRefused(NOT_THE_LMS, what, NOT_THE_LMS_REMEDY.format(setting))


def _shown(value: str) -> str:
    """A header's value as a message may show it: short, printable, and with no e-mail address."""
    printable = "".join(each for each in value if each.isascii() and each.isprintable()).strip()
    return "(not shown)" if "@" in printable or "%40" in printable else printable[:LONGEST_HEADER]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an answer's Retry-After asks for, in either of its forms; None without a readable one.

    At most LONGEST_SECONDS: 400 digits are infinity to `float`, and nothing would be sent ever again.
    """
    value = headers.get("Retry-After", "").strip()
    try:
        if value.isascii() and value.isdigit():
            return min(float(value), LONGEST_SECONDS)
        return min(max(0.0, (_moment(value) - datetime.now(UTC)).total_seconds()), LONGEST_SECONDS)
    except (ValueError, OverflowError):
        return None


def date_of(headers: Mapping[str, str]) -> datetime | None:
    """The moment of the answering clock, UTC, to the second and LATEST at most; None without a readable Date."""
    try:
        return min(_moment(headers.get("Date", "")), LATEST)  # so that seconds may be added to it
    except (ValueError, OverflowError):
        return None


def _moment(value: str) -> datetime:
    moment = parsedate_to_datetime(value)
    return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
