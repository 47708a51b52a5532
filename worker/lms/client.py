"""The LMS client: its two calls, and how often each is tried.

Every outcome becomes a return or one type of the error tree with a stable reason code, see `outcomes`.
"""

import time
from collections.abc import Sequence
from datetime import datetime
from math import inf
from uuid import UUID

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_exponential_jitter

from worker.errors import BatchRefused, Unavailable
from worker.lms.transport import Guard, Transport

DOWNGRADE_PATH = "/enterprise/api/v1/licensed-enterprise-course-enrollment/bulk_licensed_enrollments_expiration/"
UNLINK_PATH = "/enterprise/api/v1/enterprise-customer/{enterprise}/unlink_users/"

RECENTLY = 5.0
# Nobody's, so the LMS passes them over: its answer to them tells whether it works at all.
NOBODYS_LICENSE = UUID("00000000-0000-4000-8000-000000000000")
NOBODYS_EMAIL = "nobody@license-expiry.invalid"


class LmsClient(Transport):
    """The LMS as this worker's service user sees it; safe to share between threads.

    Each call takes a `guard`, see `transport.Guard`.
    """

    def downgrade(self, licenses: Sequence[UUID], modified_after: datetime | None, guard: Guard) -> None:
        """Have the LMS move the enrollments of these licenses to audit.

        Returns when the LMS has confirmed it; raises BatchRefused, RunRefused, Unavailable, or what `guard`
        raises.
        """

        def body(uuids: Sequence[UUID]) -> dict[str, object]:
            return {
                "expired_license_uuids": [str(uuid) for uuid in uuids],
                "ignore_enrollments_modified_after": modified_after and modified_after.isoformat(),
            }

        self._call("downgrade", DOWNGRADE_PATH, body(licenses), body([NOBODYS_LICENSE]), guard)

    def unlink(self, enterprise: UUID, emails: Sequence[str], guard: Guard) -> None:
        """Have the LMS unlink these learners from the enterprise, so that they may be linked again later.

        Returns when the LMS has confirmed it; raises as `downgrade` does.
        """
        body, probe = ({"user_emails": to, "is_relinkable": True} for to in (list(emails), [NOBODYS_EMAIL]))
        self._call("unlink", UNLINK_PATH.format(enterprise=enterprise), body, probe, guard)

    def _call(self, kind: str, path: str, body: object, probe: object, guard: Guard) -> None:
        """Send `body`; where it is refused, make sure that the LMS takes this kind of call at all.

        Without that, an LMS that refuses everything would have every license held, one by one.
        """
        started = time.monotonic()
        try:
            self._send_with_tries(kind, path, body, guard)
        except BatchRefused as refused:
            if self.confirmed_at.get(path, -inf) < started - RECENTLY:
                try:
                    self._send_with_tries(kind, path, probe, guard)
                except BatchRefused as error:
                    what = "the LMS refuses even a call that concerns nobody"
                    raise Unavailable(error.reason, what, "look at the LMS's log") from error
            raise refused

    def _send_with_tries(self, kind: str, path: str, body: object, guard: Guard) -> None:
        """Send `body` until it is taken, refused for good, or the tries in place are used up."""
        patience = self.patience
        backoff = wait_exponential_jitter(multiplier=patience.first_wait, max=patience.longest_wait)
        refusals, barred = 0, False

        def barring() -> float:
            nonlocal barred
            barred = True  # until the guard says otherwise: what it raises is not tried again
            until = guard()
            barred = False
            return until

        def again(error: BaseException) -> bool:
            return not barred and isinstance(error, Unavailable | BatchRefused)

        def wait(state: RetryCallState) -> float:
            asked = getattr(state.outcome and state.outcome.exception(), "retry_after", None)
            return backoff(state) if asked is None else min(asked, patience.longest_wait)

        def spent(state: RetryCallState) -> bool:
            nonlocal refusals
            error = state.outcome and state.outcome.exception()
            if isinstance(error, BatchRefused):
                refusals += 1
                return error.reason != "http_500" or refusals >= patience.tries_on_500
            return state.attempt_number >= patience.tries or getattr(error, "reason", "") == "throttled"

        for attempt in Retrying(retry=retry_if_exception(again), wait=wait, stop=spent, sleep=self.sleep, reraise=True):
            with attempt:
                self.post(kind, path, body, barring)
