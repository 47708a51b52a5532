"""The question who of some users is linked to an enterprise, and under which e-mail address: asked page by page.

No message here holds anything of an answer: answers hold e-mail addresses.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from worker.errors import Unavailable
from worker.lms.outcomes import LOOK_AT_THE_LMS

PATH = "/enterprise/api/v1/enterprise-learner/?enterprise_customer_uuid={}&user_ids={}&page_size={}"
# Users asked for at once: the LMS gives no longer page, and its server no longer a line of a request than 4 kB.
MOST_AT_ONCE = 100

Ask = Callable[[str], bytes | None]
"""Asks the LMS for a path: the body of its answer, or None when it refuses."""


class _OfOthers(Exception):
    """The answer lists users who were not asked for: this LMS does not know `user_ids`."""


def linked(ask: Ask, enterprise: UUID, user_ids: Sequence[int]) -> dict[int, str] | None:
    """The e-mail address, as the LMS has it, of each of these users that is linked to the enterprise.

    None when the LMS refuses the question, or answers it for all learners of the enterprise, as those do that do not
    know `user_ids`. Raises Unavailable (`not_understood`) when an answer is not what the LMS's API promises, and as
    `ask`.
    """
    found: dict[int, str] = {}
    wanted = list(dict.fromkeys(user_ids))
    for start in range(0, len(wanted), MOST_AT_ONCE):
        try:
            part = _linked_of(ask, enterprise, wanted[start : start + MOST_AT_ONCE])
        except _OfOthers:
            return None
        if part is None:
            return None
        found |= part
    return found


def _linked_of(ask: Ask, enterprise: UUID, asked: Sequence[int]) -> dict[int, str] | None:
    path = PATH.format(enterprise, ",".join(map(str, asked)), len(asked))
    found: dict[int, str] = {}
    listed: set[int] = set()
    for page in range(1, len(asked) + 2):
        body = ask(path if page == 1 else f"{path}&page={page}")
        if body is None and page == 1:
            return None
        results, more, count = _page(body)
        for user_id, email in (_learner(result, asked) for result in results):
            listed.add(user_id)
            if email is not None:
                found[user_id] = email
        if not results or not more:
            if count not in (None, len(listed)):  # the list changed between two pages, and somebody was passed over
                break
            return found
    raise _not_understood()


def _page(body: bytes | None) -> tuple[list[Any], bool, int | None]:
    """The results of a page, whether another follows, and how many there are on all pages, if the LMS says so."""
    try:
        answer = json.loads(body or b"")
        results, count = answer["results"], answer.get("count")
        more = bool(answer.get("next"))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise _not_understood() from None
    if not isinstance(results, list):
        raise _not_understood()
    return results, more, count if isinstance(count, int) else None


def _learner(result: Any, asked: Sequence[int]) -> tuple[int, str | None]:
    """A user's id and e-mail address; None for one whose account is gone, so that there is nobody to unlink."""
    try:
        user_id, user = result["user_id"], result["user"]
        email = None if user is None else user["email"]
    except (TypeError, LookupError):
        raise _not_understood() from None
    if type(user_id) is not int or not (email is None if user is None else isinstance(email, str)):
        raise _not_understood()
    if user_id not in asked:
        raise _OfOthers
    return user_id, email


def _not_understood() -> Unavailable:
    what = "the LMS's list of the enterprise's linked learners is not in the format of its API"
    return Unavailable("not_understood", what, LOOK_AT_THE_LMS)
