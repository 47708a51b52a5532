"""The state of the simulated LMS, and how its calls read and change it.

Built for a million licenses: a license that was seeded from a database needs a few words of memory, and its
enrollments are computed from its UUID. Only those set by hand are stored one by one.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal
from uuid import UUID

Mode = Literal["verified", "audit"]
EnrollmentFault = Literal["locked", "no_overview", "no_history"]

# Django's own rules for the part before the @ (without quoted strings) and for the domain (ASCII only).
EMAIL = re.compile(
    r"[-!#$%&'*+/=?^_`{}|~0-9A-Z]+(\.[-!#$%&'*+/=?^_`{}|~0-9A-Z]+)*"
    r"@([A-Z0-9]([A-Z0-9-]{0,61}[A-Z0-9])?\.)+[A-Z][A-Z0-9-]{0,61}[A-Z0-9]",
    re.IGNORECASE,
)
UUID_FORM = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True)
class Answer:
    """The LMS's answer to one request."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def json_answer(status: int, content: Any, **headers: str) -> Answer:
    """Return an answer with a JSON body; an underscore in a header's name becomes a dash."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(content).encode(), {"Content-Type": "application/json", **named})


@dataclass
class Enrollment:
    """One course enrollment under a license.

    `fault` is the problem that the LMS has when it changes it: "locked" cannot be changed (422), "no_overview" is a
    course without an overview (500), "no_history" an enrollment without history (500 when a date is given).
    """

    mode: Mode = "verified"
    fault: EnrollmentFault | None = None
    modified: datetime | None = None


class State:
    """Licenses with their enrollments, enterprises with their linked e-mails, and the accounts of learners.

    An account has one e-mail. If licenses have several for the same learner, each counts as linked, and unlinking the
    account's e-mail unlinks all of them; see `add_learner`.
    """

    def __init__(self) -> None:
        """Start with an LMS without users, enterprises and licenses."""
        self.licenses: dict[int, UUID] = {}  # a license's UUID as a number, and its enterprise
        self.downgraded: set[int] = set()
        self.special: dict[int, list[Enrollment]] = {}
        self.linked: dict[UUID, set[str]] = {}  # an enterprise exists if it is a key
        self.accounts: dict[int, str] = {}  # a platform user's id, and the present e-mail of the account
        self.former: dict[
            str, set[str]
        ] = {}  # by an account's e-mail: the other e-mails that licenses have for this user
        self.inactive: set[UUID] = set()
        self.two_accounts: set[str] = set()
        self.barred: dict[UUID, set[str]] = {}  # unlinked without is_relinkable: they can never be linked again

    def add_enterprise(self, enterprise: UUID, emails: Iterable[str] = (), active: bool = True) -> None:
        """Add an enterprise, link e-mails to it, and set whether it is active."""
        self.linked.setdefault(enterprise, set()).update(emails)
        (self.inactive.discard if active else self.inactive.add)(enterprise)

    def add_license(
        self,
        license: UUID,
        enterprise: UUID,
        enrollments: list[Enrollment] | None = None,
        audit: bool = False,
    ) -> None:
        """Add a license, with the enrollments given or one or two computed from its UUID."""
        self.licenses[license.int] = enterprise
        if enrollments is not None:
            self.special[license.int] = enrollments
        if audit:
            self.downgraded.add(license.int)

    def add_learner(self, user_id: int, email: str) -> None:
        """Add an account, or change the e-mail of an existing one, which stays linked."""
        former = self.accounts.get(user_id, email)
        self.accounts[user_id] = email
        if former != email:
            others = self.former.setdefault(email, set())
            others |= {former, *self.former.pop(former, ())}
            others.discard(email)

    def change_email(self, user_id: int, email: str) -> None:
        """Change a learner's address: the old one is no longer linked. Raises KeyError if there is no such user."""
        old = self.emails_of(user_id)
        for emails in self.linked.values():
            if emails & old:
                emails -= old
                emails.add(email)
        self.former.pop(self.accounts[user_id], None)
        self.accounts[user_id] = email

    def emails_of(self, user_id: int) -> set[str]:
        """Return an account's e-mail and the others that licenses have for it. Raises KeyError if unknown."""
        email = self.accounts[user_id]
        return {email, *self.former.get(email, ())}

    def learners(self, enterprise: str, user_ids: Iterable[int]) -> list[tuple[int, str]]:
        """Return id and e-mail of the accounts, among these users, that are linked to an enterprise."""
        number = _number(enterprise)
        linked = self.linked.get(UUID(int=number), set()) if number is not None else set()
        known = sorted(user_id for user_id in set(user_ids) if user_id in self.accounts)
        return [(user_id, self.accounts[user_id]) for user_id in known if self.emails_of(user_id) & linked]

    def enrollments(self, license: UUID) -> list[Enrollment]:
        """Return the enrollments of a license, none for an unknown one."""
        if license.int in self.special:
            return self.special[license.int]
        if license.int not in self.licenses:
            return []
        mode: Mode = "audit" if license.int in self.downgraded else "verified"
        return [Enrollment(mode) for _ in range(1 + license.int % 2)]

    def enterprises_of(self, licenses: Iterable[object]) -> list[str]:
        """Return the enterprises of licenses, given as UUIDs in text; unknown ones are skipped."""
        found = {self.licenses.get(number) for number in map(_number, licenses) if number is not None}
        return sorted(str(enterprise) for enterprise in found if enterprise)

    def downgrade(self, content: Any, atomic: bool = True) -> Answer:
        """Downgrade the licenses of a request's content; return the LMS's answer.

        With `atomic`, a request that ends in a 500 changes nothing; otherwise the work done before the fault stays.
        """
        asked = content.get("expired_license_uuids") if isinstance(content, dict) else None
        if not isinstance(asked, list) or not asked:
            return json_answer(400, "Parameter expired_license_uuids must be provided")
        after = content.get("ignore_enrollments_modified_after")
        try:
            date = _moment(after) if after is not None else None
        except (TypeError, ValueError):
            return json_answer(400, "Parameter ignore_enrollments_modified_after is malformed")
        numbers = [_number(license) for license in asked]
        if None in numbers:
            return Answer(500)
        locked, done = False, list[Callable[[], None]]()
        for number in dict.fromkeys(numbers):
            outcome = self._downgrade_one(number, date, done) if number in self.licenses else "done"
            if outcome == "stop":
                for undo in done if atomic else ():
                    undo()
                return Answer(500)
            locked = locked or outcome == "locked"
        return Answer(422 if locked else 200)

    def _downgrade_one(
        self, number: int, date: datetime | None, done: list[Callable[[], None]]
    ) -> Literal["done", "locked", "stop"]:
        """Downgrade one license; append functions that undo it to `done`."""
        if number not in self.special:
            if number not in self.downgraded:
                done.append(partial(self.downgraded.discard, number))
            self.downgraded.add(number)
            return "done"
        locked = False
        for enrollment in self.special[number]:
            if enrollment.mode == "audit":
                continue
            if enrollment.fault == "no_overview" or (enrollment.fault == "no_history" and date):
                return "stop"
            if date and enrollment.modified and enrollment.modified > date:
                continue
            if enrollment.fault == "locked":
                locked = True
            else:
                done.append(partial(setattr, enrollment, "mode", enrollment.mode))
                enrollment.mode = "audit"
        return "locked" if locked else "done"

    def unlink(self, enterprise: str, content: Any) -> Answer:
        """Unlink the e-mails of a request's content from an enterprise; return the LMS's answer."""
        content = content if isinstance(content, dict) else {}
        errors = _unlink_errors(content)
        if errors:
            return json_answer(400, errors)
        number = _number(enterprise)
        customer = UUID(int=number) if number is not None else None
        if customer not in self.linked or customer in self.inactive:
            return json_answer(404, {"detail": "No EnterpriseCustomer matches the given query."})
        emails = {email.strip() for email in content["user_emails"]}  # strips any Unicode white space, as the LMS does
        if emails & self.two_accounts:
            return Answer(500)
        emails |= {former for email in emails for former in self.former.get(email, ())}
        going = emails & self.linked[customer]
        self.linked[customer] -= going
        if content.get("is_relinkable") is not True:
            self.barred.setdefault(customer, set()).update(going)
        return Answer(200)

    def to_json(self) -> dict[str, Any]:
        """Return all of the state."""
        return {
            "enterprises": {
                str(enterprise): {
                    "active": enterprise not in self.inactive,
                    "linked": sorted(emails),
                    "barred": sorted(self.barred.get(enterprise, ())),
                }
                for enterprise, emails in self.linked.items()
            },
            "licenses": {
                str(UUID(int=number)): [
                    {"mode": enrollment.mode, "fault": enrollment.fault}
                    for enrollment in self.enrollments(UUID(int=number))
                ]
                for number in self.licenses
            },
        }

    def counts(self) -> dict[str, int]:
        """Count licenses, fully downgraded licenses, and e-mails linked and barred."""
        done = len(self.downgraded - self.special.keys())
        done += sum(all(one.mode == "audit" for one in many) for many in self.special.values())
        return {
            "licenses": len(self.licenses),
            "licenses_downgraded": done,
            "linked": sum(map(len, self.linked.values())),
            "barred": sum(map(len, self.barred.values())),
        }


def _unlink_errors(content: dict[str, Any]) -> dict[str, Any]:
    """Return the errors that the LMS's serializer finds in an unlink request."""
    if "user_emails" not in content:
        return {"user_emails": ["This field is required."]}
    emails = content["user_emails"]
    if not isinstance(emails, list):
        return {"user_emails": ["Expected a list of items."]}
    if not emails:
        return {"user_emails": ["This list may not be empty."]}
    wrong = {str(index): [fault] for index, email in enumerate(emails) if (fault := _email_fault(email))}
    if wrong:
        return {"user_emails": wrong}
    if not isinstance(content.get("is_relinkable", False), bool):
        return {"is_relinkable": ["Must be a valid boolean."]}
    return {}


def _email_fault(email: object) -> str | None:
    if email is None:
        return "This field may not be null."
    if not isinstance(email, str):
        return "Not a valid string."
    if not email.strip():
        return "This field may not be blank."
    return None if EMAIL.fullmatch(email.strip()) else "Enter a valid email address."


def _number(license: object) -> int | None:
    written = str(license)
    if UUID_FORM.fullmatch(written):  # almost all are; making a UUID object takes twice as long
        return int(written.replace("-", ""), 16)
    try:
        return UUID(written).int
    except ValueError:
        return None


def _moment(given: Any) -> datetime:
    moment = datetime.fromisoformat(given)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
