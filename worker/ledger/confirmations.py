"""What the ledger keeps of licenses, what is read from it, and what is dropped from it."""

from collections.abc import Iterable, Sequence
from typing import Any, cast
from uuid import UUID

from sqlalchemy import CursorResult, Select, String, Table, bindparam, case, delete, func, insert, select, true, update
from sqlalchemy.orm import Session

from worker.db.ledger_tables import Downgrade, HeldLicense, License, LicenseEvent, LmsCall, Retry, Run, SubscriptionPlan
from worker.db.types import DatabaseNow, Digits, OneOf
from worker.due.conditions import HOLD, any_of
from worker.due.learners import by_key

COUNTS = ("plans_processed", "licenses_downgraded", "licenses_held", "learners_unlinked", "learners_protected")


def _of_licenses(*columns: Any) -> Select[Any]:
    return by_key(select(Digits(License.uuid), *columns).where(OneOf(License.uuid, "licenses")), License)


# Built once; from the licenses' own rows, because drivers take long over many rows of values.
_CONFIRMED = ("run_id", "enterprise_customer_uuid", "confirmed_at")
_CONFIRM = insert(cast(Table, Downgrade.__table__)).from_select(
    ["license_uuid", *_CONFIRMED],
    _of_licenses(*(bindparam(name, None, Downgrade.__table__.c[name].type) for name in _CONFIRMED)),
)
_NOW = select(DatabaseNow().label("now")).offset(0).subquery()  # one moment for all of them
_INSERT_EVENTS = insert(cast(Table, LicenseEvent.__table__)).from_select(
    ["license_id", "event_name", "created", "modified"],
    _of_licenses(bindparam("event_name", None, String()), _NOW.c.now, _NOW.c.now.label("modified")).join(_NOW, true()),
)


def hold(session: Session, run: Run, step: str, license_uuid: UUID, reason: str) -> None:
    """Put a license on the held list, or raise its number of tries."""
    values = {"run_id": run.id, "step": step, "reason": reason, "as_of": run.as_of}
    if not changed(
        session,
        update(HeldLicense)
        .where(HeldLicense.license_uuid == license_uuid)
        .values(tries=HeldLicense.tries + 1, **values),
    ):
        session.execute(
            insert(HeldLicense).values(
                license_uuid=license_uuid,
                enterprise_customer_uuid=run.enterprise_customer_uuid,
                tries=1,
                first_held_at=run.as_of,
                **values,
            )
        )


def unhold(session: Session, licenses: Sequence[UUID]) -> None:
    """Take licenses off the held list: the LMS took them at last."""
    if licenses:
        session.execute(delete(HeldLicense).where(HeldLicense.license_uuid.in_(licenses)))


def confirm_downgrades(session: Session, run: Run, licenses: Sequence[UUID]) -> None:
    """Keep that the LMS confirmed these downgrades, so that nobody sends them again."""
    row = {"run_id": run.id, "enterprise_customer_uuid": run.enterprise_customer_uuid, "confirmed_at": run.as_of}
    session.execute(_CONFIRM, row | {"licenses": licenses})


def insert_events(session: Session, licenses: Sequence[UUID], name: str) -> None:
    """Insert a license event of this name for each of these licenses."""
    session.execute(_INSERT_EVENTS, {"event_name": name, "licenses": licenses})


def drop_confirmations(session: Session, enterprise: UUID) -> None:
    """Drop the confirmations that their plan's mark now stands for: to be done however a run ends."""
    processed = (
        select(License.uuid)
        .join(SubscriptionPlan, SubscriptionPlan.uuid == License.subscription_plan_id)
        .where(SubscriptionPlan.expiration_processed.is_(True), License.uuid == Downgrade.license_uuid)
    )
    session.execute(delete(Downgrade).where(Downgrade.enterprise_customer_uuid == enterprise, any_of(processed)))


def drop_holds(session: Session, run: Run) -> None:
    """Drop the holds that were up and that this run, if it looked at all plans, did not find due any more."""
    narrowed = (run.plan_uuids, run.expired_after, run.expired_before) != (None, None, None)
    if not narrowed:
        session.execute(
            delete(HeldLicense).where(
                HeldLicense.enterprise_customer_uuid == run.enterprise_customer_uuid,
                HeldLicense.run_id != run.id,
                HeldLicense.as_of <= run.as_of - HOLD,
            )
        )


def keep_calls(session: Session, run: Run, calls: Sequence[dict[str, Any]]) -> None:
    """Keep the LMS calls of this claim of a run."""
    if calls:
        session.execute(insert(LmsCall), [{"run_id": run.id, "fence": run.fence, **each} for each in calls])


def drop_calls(session: Session, run: Run) -> None:
    """Drop the LMS calls of this claim of a run, to keep them once more."""
    session.execute(delete(LmsCall).where(LmsCall.run_id == run.id, LmsCall.fence == run.fence))


def keep_retry(session: Session, run: Run, step: str, reason: str, seconds: int) -> None:
    """Keep that this claim of a run was given back for this reason, to come again in so many seconds."""
    session.execute(delete(Retry).where(Retry.run_id == run.id, Retry.fence == run.fence))
    row = {"run_id": run.id, "fence": run.fence, "step": step, "reason": reason}
    session.execute(insert(Retry).values(row | {"at": DatabaseNow(), "again_at": DatabaseNow(seconds)}))


def describe(run: Run) -> dict[str, Any]:
    """A run as tasks and `--json` show it: ids, phase and counts."""
    return {
        "run_id": str(run.id),
        "enterprise_customer_uuid": str(run.enterprise_customer_uuid),
        "phase": str(run.phase),
        "dry_run": run.dry_run,
        **{name: getattr(run, name) for name in COUNTS},
        "error": run.error,
    }


def runs_by_id(session: Session, run_ids: Iterable[UUID]) -> Sequence[Run]:
    """These runs, in the order in which they were opened."""
    return session.scalars(select(Run).where(Run.id.in_(list(run_ids))).order_by(Run.opened_at)).all()


def newest_runs(session: Session, enterprise: UUID | None, limit: int = 20) -> Sequence[Run]:
    """The newest run of each enterprise, a dry run only where there was no other; or, with `enterprise`, its newest."""
    if enterprise is not None:
        of_one = select(Run).where(Run.enterprise_customer_uuid == enterprise)
        return session.scalars(of_one.order_by(Run.opened_at.desc()).limit(limit)).all()
    opened = func.coalesce(func.max(case((Run.dry_run.is_(False), Run.opened_at))), func.max(Run.opened_at))
    of_each = select(Run.enterprise_customer_uuid, opened.label("opened_at")).group_by(Run.enterprise_customer_uuid)
    newest = of_each.subquery()
    same = (Run.enterprise_customer_uuid == newest.c.enterprise_customer_uuid) & (Run.opened_at == newest.c.opened_at)
    return session.scalars(select(Run).join(newest, same).order_by(Run.opened_at.desc())).all()


def held_licenses(session: Session) -> Sequence[HeldLicense]:
    """Everything on the held list, by enterprise."""
    order = (HeldLicense.enterprise_customer_uuid, HeldLicense.step, HeldLicense.license_uuid)
    return session.scalars(select(HeldLicense).order_by(*order)).all()


def changed(session: Session, statement: Any, values: dict[str, Any] | None = None) -> bool:
    """Execute an UPDATE with these parameters and tell whether it changed any row."""
    result = session.execute(statement, values)
    assert isinstance(result, CursorResult)  # noqa: S101, for the type checker
    return result.rowcount > 0
