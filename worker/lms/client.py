"""The LMS client: its two calls, its one query, and how often each is tried.

Every outcome becomes a return or one type of the error tree with a stable reason code, see `outcomes`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from math import inf
from typing import Any, TypeVar
from uuid import UUID

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_before_delay, wait_exponential_jitter

from worker.errors import BatchRefused, Unavailable
from worker.lms import learners
from worker.lms.outcomes import LOOK_AT_THE_LMS, may_be_of_all, refused_for_all
from worker.lms.transport import Content, Guard, Prepare, Transport

DOWNGRADE_PATH = "/enterprise/api/v1/licensed-enterprise-course-enrollment/bulk_licensed_enrollments_expiration/"
UNLINK_PATH = "/enterprise/api/v1/enterprise-customer/{enterprise}/unlink_users/"

RECENTLY = 5.0
# They belong to nobody, so the LMS ignores them: its answer shows whether it takes such calls at all.
NOBODYS_LICENSE = UUID("00000000-0000-4000-8000-000000000000")
NOBODYS_EMAIL = "nobody@license-expiry.invalid"

T = TypeVar("T")


@dataclass(frozen=True)
class Selection:
    """The licenses or learners of one try of a call, just selected from the database.

    `items` are license UUIDs or e-mail addresses; when it is empty nothing is sent and the call returns. The first byte
    leaves before `fresh_until`, on clock.steady, or not at all. `modified_after` is the date of a downgrade.
    """

    items: Sequence[Any] = field(repr=False)
    fresh_until: float = inf
    modified_after: datetime | None = None


Select = Callable[[], Selection]
"""Asked right before each try, after every wait. May raise to end the call; that is not tried again in place."""


class LmsClient(Transport):
    """The LMS as this worker's service user sees it; safe to share between threads.

    Each call takes a `guard`, see `transport.Guard`. In each try come first the waits, then the token, then `select`,
    then `guard`, and then the bytes.
    """

    def downgrade(self, select: Select, guard: Guard) -> None:
        """Have the LMS move the enrollments of the selected licenses to audit.

        Returns when the LMS has confirmed it, or when nothing is selected. Raises BatchRefused, RunRefused,
        Unavailable, or what `select` or `guard` raises.
        """
        self._call("downgrade", DOWNGRADE_PATH, _downgrade_body, select, guard)

    def unlink(self, enterprise: UUID, select: Select, guard: Guard) -> None:
        """Have the LMS unlink the selected learners from the enterprise, so that they may be linked again later.

        Returns and raises as `downgrade` does.
        """
        self._call("unlink", UNLINK_PATH.format(enterprise=enterprise), _unlink_body, select, guard)

    def check_downgrades(self, guard: Guard, tries: int | None = None) -> None:
        """Send the downgrade call that concerns nobody, in at most `tries` tries.

        Raises RunRefused, Unavailable, or what `guard` raises.
        """
        self._call_for_nobody("downgrade", DOWNGRADE_PATH, guard, tries)

    def check_unlinks(self, enterprise: UUID, guard: Guard, recently: float | None = None) -> None:
        """Send the unlink call that concerns nobody. Raises as `check_downgrades` does.

        With `recently` it is not sent when an unlink of this enterprise was confirmed in that many seconds before (inf:
        ever since this client was made).
        """
        path = UNLINK_PATH.format(enterprise=enterprise)
        if recently is None or not self._confirmed_since(path, time.monotonic() - recently):
            self._call_for_nobody("unlink", path, guard)

    def linked_learners(self, enterprise: UUID, user_ids: Sequence[int], guard: Guard) -> dict[int, str] | None:
        """Which of these users are linked to the enterprise: the e-mail address of each, as the platform has it now.

        None when the LMS refuses the question or does not know it: then addresses cannot be checked. A service user
        that is not staff gets an empty list; only `check_unlinks` shows whether it is. Raises RunRefused, Unavailable,
        or what `guard` raises.
        """

        def ask(path: str) -> bytes | None:
            try:
                return self._in_tries(lambda bar: self.get("learners", path, bar(guard)))
            except BatchRefused as refused:
                if refused.reason == "http_500":
                    raise Unavailable(refused.reason, refused.what, LOOK_AT_THE_LMS) from refused
                return None

        return learners.linked(ask, enterprise, user_ids)

    def _call(
        self, kind: str, path: str, body: Callable[[Selection], dict[str, object]], select: Select, guard: Guard
    ) -> None:
        """Send what is selected; where it is refused, make sure that the LMS takes this kind of call at all.

        Without that, an LMS that refuses everything would have every license held, one by one.
        """
        started = time.monotonic()

        def prepare() -> Content | None:
            selection = select()
            return Content(body(selection), selection.fresh_until) if selection.items else None

        try:
            self._send_with_tries(kind, path, prepare, guard)
        except BatchRefused as refused:
            # A role or a route may be lost from one moment to the next: all licenses of RECENTLY would be held.
            since = started if may_be_of_all(refused) else started - RECENTLY
            if not self._confirmed_since(path, since):
                self._call_for_nobody(kind, path, guard)
            raise refused

    def _call_for_nobody(self, kind: str, path: str, guard: Guard, tries: int | None = None) -> None:
        """Send the call of this kind that concerns nobody. Raises RunRefused or Unavailable where it is refused."""
        body = _downgrade_body(Selection([NOBODYS_LICENSE])) if kind == "downgrade" else _unlink_body(NOBODY)
        try:
            self._send_with_tries(kind, path, lambda: Content(body), guard, tries)
        except BatchRefused as refused:
            raise refused_for_all(refused) from refused

    def _confirmed_since(self, path: str, moment: float) -> bool:
        return self.confirmed_at.get(path, -inf) > moment

    def _send_with_tries(self, kind: str, path: str, prepare: Prepare, guard: Guard, tries: int | None = None) -> None:
        self._in_tries(lambda bar: self.post(kind, path, bar(prepare), bar(guard)), tries)

    def _in_tries(self, once: Callable[["_Bar"], T], tries: int | None = None) -> T:
        """Call `once` until it succeeds, is refused for good, or the tries in place are used up.

        `once` gets a wrapper for the caller's own functions: an error that these raise is not retried.
        """
        patience, bar, began = self.patience, _Bar(), time.monotonic()
        backoff = wait_exponential_jitter(multiplier=patience.first_wait, jitter=patience.first_wait)
        too_long = stop_before_delay(patience.in_place)
        refusals = 0

        def again(error: BaseException) -> bool:
            return not bar.barred and isinstance(error, Unavailable | BatchRefused)

        def wait(state: RetryCallState) -> float:
            error = state.outcome and state.outcome.exception()
            if isinstance(error, BatchRefused):  # a 500 has its second try even when no other would fit
                return min(backoff(state), max(0.0, began + patience.in_place - time.monotonic()))
            asked = getattr(error, "retry_after", None)
            return backoff(state) if asked is None else float(asked)

        def spent(state: RetryCallState) -> bool:
            nonlocal refusals
            error = state.outcome and state.outcome.exception()
            if isinstance(error, BatchRefused):
                refusals += 1
                return error.reason != "http_500" or refusals >= min(patience.tries_on_500, tries or refusals + 1)
            return state.attempt_number >= (tries or patience.tries) or too_long(state)

        retrying = Retrying(retry=retry_if_exception(again), wait=wait, stop=spent, sleep=self.sleep, reraise=True)
        try:
            return retrying(once, bar)
        except Unavailable as error:
            error.lasted = time.monotonic() - began
            raise


class _Bar:
    """Wraps functions of the caller, and knows whether one of them has raised."""

    def __init__(self) -> None:
        self.barred = False

    def __call__(self, ask: Callable[[], T]) -> Callable[[], T]:
        """Wrap one of them."""
        return partial(self._ask, ask)

    def _ask(self, ask: Callable[[], T]) -> T:
        self.barred = True  # until it has answered
        answer = ask()
        self.barred = False
        return answer


def _downgrade_body(selection: Selection) -> dict[str, object]:
    date = selection.modified_after
    return {
        "expired_license_uuids": [str(uuid) for uuid in selection.items],
        "ignore_enrollments_modified_after": date and date.isoformat(),
    }


def _unlink_body(selection: Selection) -> dict[str, object]:
    return {"user_emails": list(selection.items), "is_relinkable": True}


NOBODY = Selection([NOBODYS_EMAIL])
