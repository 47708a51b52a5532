"""Opening runs: check what is asked for, find the enterprises with work due, open a run for each, publish its chain."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, field_validator, model_validator

from worker.db.transactions import Database, require
from worker.deps import Deps
from worker.due import enterprises as customers
from worker.due.scope import scope_of
from worker.errors import BadArgument, LicenseExpiryError
from worker.ledger import claims, nights, runs
from worker.logs import get_logger
from worker.settings import DatabaseSettings

log = get_logger(__name__)

# So many runs are opened at once; then they are published, and those who wait for work need not wait for the others.
CHUNK = 100

Publish = Callable[[UUID, UUID], None]
"""Publishes the chain of an enterprise's run: (enterprise customer UUID, run id)."""


class Request(BaseModel):
    """What a trigger asks for, checked. Date-times without a zone are UTC."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dry_run: StrictBool = False
    plan_uuids: tuple[UUID, ...] | None = Field(None, min_length=1)
    expired_after: datetime | None = None
    expired_before: datetime | None = None
    force: StrictBool = False
    reason: str | None = Field(None, max_length=255)

    @field_validator("expired_after", "expired_before", mode="before")
    @classmethod
    def _in_utc(cls, value: Any) -> datetime | None:
        if value is None:
            return None
        try:  # not pydantic's reading, which takes numbers for seconds since 1970
            moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
            return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
        except (TypeError, ValueError, OverflowError):
            raise ValueError("must be a date-time such as 2026-01-31T00:00:00Z") from None

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.force and not (self.reason and self.reason.strip()):
            raise ValueError("force needs a reason, which is kept in the ledger: give reason")
        if self.expired_after and self.expired_before and self.expired_after > self.expired_before:
            raise ValueError("expired_after is later than expired_before: exchange them")
        return self


@dataclass(frozen=True)
class Started:
    """The live run of one enterprise after a trigger; `new` when this trigger opened it."""

    enterprise: UUID
    run_id: UUID
    new: bool


def parse_request(**arguments: Any) -> Request:
    """Check a trigger's arguments; raises BadArgument with one sentence that names each wrong one."""
    try:
        return Request(**arguments)
    except ValidationError as error:
        complaints = {str(each["loc"][:1]): _sentence(each) for each in reversed(error.errors())}
        raise BadArgument("; ".join(reversed(complaints.values()))) from None


def parse_uuid(name: str, value: Any) -> UUID:
    """Read a UUID argument; raises BadArgument with one sentence."""
    try:
        return value if isinstance(value, UUID) else UUID(str(value))
    except ValueError:
        raise BadArgument(f"{name} is not a UUID: {value!r}") from None


def start(
    deps: Deps,
    request: Request,
    enterprises: Iterable[UUID],
    publish: Publish,
    scheduled_for: datetime | None = None,
) -> list[Started]:
    """Open and publish a run for each of these enterprises (or for all, when none is named) that has work due.

    Raises BadArgument, before anything is written, for an unknown enterprise, a plan that is not of one of these
    enterprises, or a window in the future. An enterprise on the unlink list that license-manager does not know
    gets a failed run with the reason, when all were asked for. `scheduled_for` is the scheduled night that this is.
    Raises Unusable, before anything is written, as `worker.db.transactions.require` does.
    """
    named = frozenset(enterprises)
    as_of = deps.database.now()
    check(deps.database, request, named, as_of)
    due = due_enterprises(deps, request, named, as_of)
    if due:  # a worker may have been at work before license-manager was upgraded: look once more
        deps.database.transact(lambda session: require(session.connection()))
    columns = request.model_dump() | {"plan_uuids": request.plan_uuids and [str(u) for u in request.plan_uuids]}
    started = []
    for first in range(0, len(due), CHUNK):
        chunk = due[first : first + CHUNK]
        opened = runs.open_runs(deps.database, chunk, as_of, scheduled_for=scheduled_for, **columns)
        started += _publish(deps.database, publish, opened)
    if not named and request == Request():
        started += [
            Started(
                enterprise,
                runs.record_refusal(deps.database, enterprise, as_of, sentence, scheduled_for),
                new=True,
            )
            for enterprise, sentence in strangers(deps.settings, deps.database).items()
        ]
    return started


def _publish(database: Database, publish: Publish, opened: dict[UUID, runs.Opened]) -> list[Started]:
    left = {each.run_id for each in opened.values() if each.new}
    try:
        for enterprise, each in opened.items():
            if each.new:
                publish(enterprise, each.run_id)
                left.remove(each.run_id)
                log.info("run opened", enterprise=enterprise, run=each.run_id)
            else:
                log.info("has a live run already", enterprise=enterprise, run=each.run_id)
    except Exception:
        with suppress(LicenseExpiryError):  # else they are published when they have waited for long
            runs.let_lapse(database, left)
        raise
    return [Started(enterprise, each.run_id, each.new) for enterprise, each in opened.items()]


def check(database: Database, request: Request, named: frozenset[UUID], as_of: datetime) -> None:
    """Raise BadArgument for an unknown enterprise, a plan that is not of one of these, or a window in the future."""
    for unknown in sorted(named - _known(database, named)):
        raise BadArgument(_stranger(unknown))
    for name in ("expired_after", "expired_before"):
        moment = getattr(request, name)
        if moment and moment > as_of:
            raise BadArgument(f"{name} {moment.isoformat()} is in the future: only expired plans can be processed")
    if request.plan_uuids:
        query = customers.plans_of(named, request.plan_uuids)
        theirs = database.transact(lambda session: session.scalars(query).all())
        for stray in sorted(set(request.plan_uuids) - set(theirs)):
            whose = f"enterprise {', '.join(map(str, sorted(named)))}" if named else "any enterprise"
            raise BadArgument(f"plan {stray} is not a plan of {whose}: check its UUID")


def start_scheduled(deps: Deps, scheduled_for: datetime, publish: Publish) -> list[Started] | None:
    """Start the night that is scheduled for this moment, as `start` does; None when it had begun before."""
    if not nights.begin(deps.database, scheduled_for):
        log.info("the night had begun before", night=scheduled_for.isoformat())
        return None
    try:
        started = start(deps, Request(), (), publish, scheduled_for)
    except Exception:
        log.error("the night could not be opened whole", night=scheduled_for.isoformat())
        nights.let_down(deps.database, scheduled_for)
        raise
    nights.opened(deps.database, scheduled_for)
    log.info("the night is opened", night=scheduled_for.isoformat(), enterprises=len(started))
    return started


def make_good(deps: Deps, latest: datetime, publish: Publish) -> int:
    """Start the `latest` scheduled night if nobody has, and go on with those let down; return how many these were."""
    begun = 0
    for scheduled_for in nights.overdue(deps.database, latest):
        log.warning("making good a night that was missed or let down", night=scheduled_for.isoformat())
        begun += start_scheduled(deps, scheduled_for, publish) is not None
    return begun


def due_enterprises(deps: Deps, request: Request, named: frozenset[UUID], as_of: datetime) -> list[UUID]:
    """The enterprise customers with anything due, of those named if any."""
    scopes = [scope_of(deps.settings, request, as_of, enterprise) for enterprise in named or [None]]
    return sorted(
        enterprise
        for scope in scopes
        for enterprise in deps.database.transact(partial(customers.due_enterprises, scope=scope))
    )


def strangers(settings: DatabaseSettings, database: Database) -> dict[UUID, str]:
    """The enterprises on the unlink list that have no customer agreement, each with a sentence about it."""
    listed = settings.CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED
    return {
        enterprise: f"{_stranger(enterprise)}, or take it off CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"
        for enterprise in sorted(listed - _known(database, listed))
    }


def take_up_stalled(deps: Deps, publish: Publish) -> dict[str, int]:
    """Publish the rest of each chain that was let down; return how many were published and given up.

    Raises what a publication raised, after the others were tried.
    """
    again, given_up = claims.take_up_stalled(deps.database)
    failure: Exception | None = None
    for run in again:
        log.warning(
            "taking up a run that was let down", enterprise=run.enterprise_customer_uuid, run=run.id, phase=run.phase
        )
        try:
            publish(run.enterprise_customer_uuid, run.id)
        except Exception as error:
            failure = error
    for run_id in given_up:
        log.error("run given up: license-expiry status tells why", run=run_id)
    if failure:
        raise failure
    return {"published": len(again), "abandoned": len(given_up)}


def _known(database: Database, enterprises: frozenset[UUID]) -> frozenset[UUID]:
    query = customers.known_enterprises(enterprises)
    return frozenset(database.transact(lambda session: session.scalars(query).all())) if enterprises else frozenset()


def _stranger(enterprise: UUID) -> str:
    return f"enterprise {enterprise} has no customer agreement in license-manager: check the UUID"


def _sentence(error: Any) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"{error['loc'][0]}: {message} (given {error['input']!r})" if error["loc"] else message
