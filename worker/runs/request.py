"""Checks a trigger's arguments: their values and combinations, and whether they fit the database."""

import unicodedata
from datetime import UTC, datetime
from typing import Any, Self
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationError,
    field_validator,
    model_validator,
)

from worker.db.transactions import Database
from worker.due import enterprises
from worker.errors import BadArgument
from worker.settings import DatabaseSettings
from worker.settings.sources import in_words

REASON_LENGTH = 255  # the length of the ledger's columns


def one_line(text: str) -> str:
    """Return the text if every database can store it and every page and table can show it, else raise ValueError."""
    # Control characters, surrogates, format characters (which can reverse a line's direction), and line ends.
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Cf", "Zl", "Zp") for letter in text):
        raise ValueError("must be one line of text without control characters")
    return text


class WrongTogether(ValueError):
    """Arguments that do not fit together; the error is reported for `argument`."""

    def __init__(self, argument: str, what: str) -> None:
        super().__init__(what)
        self.argument = argument


class Request(BaseModel):
    """A trigger's checked arguments, with its user and reason. Date-times without a zone are UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dry_run: StrictBool = False
    plan_uuids: tuple[UUID, ...] | None = Field(None, min_length=1, max_length=1000)
    expired_after: datetime | None = None
    expired_before: datetime | None = None
    force: StrictBool = False
    reason: str | None = Field(None, max_length=REASON_LENGTH)
    approve_unlinks: StrictInt | None = Field(None, ge=1, le=2**31 - 1)
    triggered_by: str | None = Field(None, max_length=REASON_LENGTH)

    @field_validator("expired_after", "expired_before", mode="before")
    @classmethod
    def _in_utc(cls, value: Any) -> datetime | None:
        if value is None:
            return None
        try:  # not pydantic's parser, which accepts numbers as seconds since 1970
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
            return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("must be a date-time such as 2026-01-31T00:00:00Z") from None

    @field_validator("reason", "triggered_by")
    @classmethod
    def _storable(cls, value: str | None) -> str | None:
        return value and one_line(value)

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.force and not (self.reason and self.reason.strip()):
            raise WrongTogether("reason", "force needs a reason, which is kept in the ledger: give reason")
        if self.approve_unlinks and not (self.reason and self.reason.strip()):
            what = "approve_unlinks needs a reason, which is kept in the ledger: give reason"
            raise WrongTogether("reason", what)
        if self.approve_unlinks and not (self.triggered_by and self.triggered_by.strip()):
            what = "approve_unlinks needs triggered_by, which is kept in the ledger: give your name"
            raise WrongTogether("triggered_by", what)
        if self.expired_after and self.expired_before and self.expired_after > self.expired_before:
            raise WrongTogether("expired_after", "expired_after is later than expired_before: swap the two")
        return self

    @property
    def as_every_night(self) -> bool:
        """True if it asks for exactly what a scheduled night does; its user and reason are ignored."""
        return self.model_copy(update={"reason": None, "triggered_by": None}) == Request()


def parse_request(**arguments: Any) -> Request:
    """Check a trigger's arguments. Raises BadArgument with one sentence that names each wrong argument."""
    try:
        return Request(**arguments)
    except ValidationError as error:
        complaints = {_argument(wrong): _sentence(wrong) for wrong in reversed(error.errors())}
        raise BadArgument("; ".join(reversed(complaints.values())), complaints=complaints) from None


def parse_uuid(name: str, value: Any) -> UUID:
    """Return the argument `name` as a UUID. Raises BadArgument."""
    try:
        return value if isinstance(value, UUID) else UUID(str(value))
    except ValueError:
        raise BadArgument(f"{name} is not a UUID: {value!r}") from None


def parse_reason(text: str) -> str:
    """Return the reason of a stop or a pause, stripped. Raises BadArgument if it is empty, too long or has controls."""
    try:
        text = one_line(text).strip()
    except ValueError as error:
        raise BadArgument(f"the reason {error}") from None
    if not 1 <= len(text) <= REASON_LENGTH:
        raise BadArgument(f"the reason must have 1 to {REASON_LENGTH} characters")
    return text


def check_against_database(database: Database, request: Request, named: frozenset[UUID], as_of: datetime) -> None:
    """Raise BadArgument for an unknown enterprise, a plan of none of these enterprises, or a date after `as_of`."""
    for unknown in sorted(named - _known(database, named)):
        raise BadArgument(_no_agreement(unknown), "check the UUID")
    for name in ("expired_after", "expired_before"):
        moment = getattr(request, name)
        if moment and moment > as_of:
            what = f"{name} {moment.isoformat()} is in the future"
            remedy = "give a past date-time: only expired plans can be processed"
            raise BadArgument(what, remedy, {name: f"{what}: {remedy}"})
    if request.plan_uuids:
        query = enterprises.plans_of(named, request.plan_uuids)
        theirs = database.transact(lambda session: session.scalars(query).all())
        for stray in sorted(set(request.plan_uuids) - set(theirs)):
            whose = f"enterprise {', '.join(map(str, sorted(named)))}" if named else "any enterprise"
            raise BadArgument(f"plan {stray} is not a plan of {whose}", "check its UUID")


def unknown_enterprises(settings: DatabaseSettings, database: Database) -> dict[UUID, BadArgument]:
    """Return an error for each enterprise on the unlink list that has no customer agreement."""
    listed = settings.CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED
    remedy = "check the UUID, or remove it from CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"
    return {
        enterprise: BadArgument(_no_agreement(enterprise), remedy)
        for enterprise in sorted(listed - _known(database, listed))
    }


def _known(database: Database, asked: frozenset[UUID]) -> frozenset[UUID]:
    query = enterprises.known_enterprises(asked)
    return frozenset(database.transact(lambda session: session.scalars(query).all())) if asked else frozenset()


def _no_agreement(enterprise: UUID) -> str:
    return f"enterprise {enterprise} has no customer agreement in license-manager"


def _argument(error: Any) -> str:
    together = error.get("ctx", {}).get("error")
    return together.argument if isinstance(together, WrongTogether) else str(error["loc"][0])


def _sentence(error: Any) -> str:
    message = in_words(error)
    return f"{error['loc'][0]}: {message} (given {error['input']!r})" if error["loc"] else message
