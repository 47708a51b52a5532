"""What license-manager's jobs and people do, each a hand at a desk that says what it is for."""

from collections.abc import Sequence
from uuid import UUID

from chaos.people import Desk, Hand
from chaos.timeline import Row
from simulator.data.rows import DAY
from simulator.data.schema import table


def plan_extended(desk: Desk) -> Sequence[UUID] | None:
    """A customer pays late: an expired plan is moved on by half a year."""
    if (plan := desk.choose(desk.expired())) is None:
        return None
    desk.change_plan(plan, expiration_date=desk.now + 200 * DAY)
    return [plan["uuid"]]


def plan_cut(desk: Desk) -> Sequence[UUID] | None:
    """A current plan ends: this very moment, or (somebody corrects a date) long ago."""
    if (plan := desk.choose(desk.current())) is None:
        return None
    days = desk.random.choice((0, 0, 10, 100))
    desk.change_plan(plan, expiration_date=desk.now - days * DAY)
    return [plan["uuid"]]


def marked_plan_moved(desk: Desk) -> Sequence[UUID] | None:
    """The date of a plan that is marked as processed changes, and stays in the past."""
    if (plan := desk.choose([row for row in desk.expired() if row["expiration_processed"]])) is None:
        return None
    desk.change_plan(plan, expiration_date=desk.now - desk.random.choice((0, 1, 95)) * DAY)
    return [plan["uuid"]]


def plan_flipped(desk: Desk) -> Sequence[UUID] | None:
    """A plan is made inactive, or active: one that protects, where there is one."""
    if (plan := desk.choose(desk.current() or desk.rows.plans)) is None:
        return None
    desk.change_plan(plan, is_active=not plan["is_active"])
    return [plan["uuid"]]


def renewal_made(desk: Desk) -> Sequence[UUID] | None:
    """A plan is to be renewed: by one that is still to be made, or (a self-service trial) by one that is there."""
    known = {row["prior_subscription_plan_id"] for row in desk.rows.renewals}
    if (plan := desk.choose([row for row in desk.rows.plans if row["uuid"] not in known])) is None:
        return None
    following = desk.add_plan() if desk.random.random() < 0.5 else None
    effective = desk.now + desk.random.choice((-1, 7)) * DAY
    times = {"created": desk.now, "modified": desk.now, "processed": False, "processed_datetime": None}
    desk.data.renewal(plan["uuid"], following, effective, **times)
    return [plan["uuid"]]


def renewal_processed(desk: Desk) -> Sequence[UUID] | None:
    """A renewal is processed: the plan that follows gets a license for each learner's, which is carried on by it."""
    if (renewal := desk.choose([row for row in desk.rows.renewals if not row["processed"]])) is None:
        return None
    following = renewal["renewed_subscription_plan_id"] or desk.add_plan()
    carried = desk.learners(renewal["prior_subscription_plan_id"])
    pairs = [
        (row, desk.add_license(following, row["user_email"], row["lms_user_id"], row["status"])) for row in carried
    ]
    desk.data.write(desk.connection)  # what is pointed at goes in first
    for license, renewed_to in pairs:
        desk.change_license(license, renewed_to_id=renewed_to)
    done = {"processed": True, "processed_datetime": desk.now}
    desk.set_renewal(renewal, renewed_subscription_plan_id=following, **done)
    return [renewal["prior_subscription_plan_id"], following]


def renewal_cancelled(desk: Desk) -> Sequence[UUID] | None:
    """A renewal that nobody has processed is deleted."""
    if (renewal := desk.choose([row for row in desk.rows.renewals if not row["processed"]])) is None:
        return None
    desk.delete("subscriptionplanrenewal", table(desk.engine, "subscriptionplanrenewal").c.id == renewal["id"])
    return [renewal["prior_subscription_plan_id"]]


def license_revoked(desk: Desk) -> Sequence[UUID] | None:
    """An administrator takes a license back; its e-mail stays."""
    if (license := desk.choose(desk.learners())) is None:
        return None
    desk.change_license(license, status="revoked", revoked_date=desk.now)
    return [license["uuid"]]


def enterprise_purged(desk: Desk) -> Sequence[UUID] | None:
    """`retire_old_licenses`: what expired more than 90 days ago is revoked and loses its e-mail, not its user's id."""
    old = {row["uuid"] for row in desk.expired(days=90)}
    found = [row for row in desk.rows.licenses if row["subscription_plan_id"] in old and row["user_email"] is not None]
    for license in found:
        again = license["status"] == "revoked"
        revoked: Row = {} if again else {"status": "revoked", "revoked_date": desk.now}
        desk.change_license(license, user_email=None, **revoked)
    return [row["uuid"] for row in found] or None


def license_reassigned(desk: Desk) -> Sequence[UUID] | None:
    """A license goes to another learner, one of a plan that has expired too."""
    if (license := desk.choose(desk.rows.licenses)) is None:
        return None
    email, user = f"{desk.name}@{desk.agreement.domain}", desk.random.getrandbits(31)
    learner: Row = {"user_email": email, "lms_user_id": user, "assigned_date": desk.now}
    desk.change_license(license, status="assigned", revoked_date=None, activation_date=None, **learner)
    desk.given.append((license["uuid"], email, user))
    return [license["uuid"]]


def license_deleted(desk: Desk) -> Sequence[UUID] | None:
    """An administrator deletes a license: its events first, which block it."""
    if (license := desk.choose(desk.rows.licenses)) is None:
        return None
    for other in _carried_on_by(desk, license):
        desk.change_license(other, renewed_to_id=None)
    desk.end_history(license)
    desk.delete("licenseevent", table(desk.engine, "licenseevent").c.license_id == license["uuid"])
    desk.delete("license", table(desk.engine, "license").c.uuid == license["uuid"])
    return [license["uuid"]]


def _carried_on_by(desk: Desk, license: Row) -> list[Row]:
    return [row for row in desk.rows.licenses if row["renewed_to_id"] == license["uuid"]]


def license_moved(desk: Desk) -> Sequence[UUID] | None:
    """The transfer job: a license is in another plan of its customer's from now on; its `modified` stays."""
    if (license := desk.choose(desk.rows.licenses)) is None:
        return None
    others = [row["uuid"] for row in desk.rows.plans if row["uuid"] != license["subscription_plan_id"]]
    if not others:
        return None
    desk.change_license(license, touch=False, subscription_plan_id=desk.random.choice(others))
    return [license["uuid"]]


def license_given(desk: Desk) -> Sequence[UUID] | None:
    """A learner whose license has expired gets one of a current plan: under their address, or under another."""
    expired = {row["uuid"] for row in desk.expired()}
    if (license := desk.choose([row for row in desk.learners() if row["subscription_plan_id"] in expired])) is None:
        return None
    email, user = license["user_email"], license["lms_user_id"]
    if user is not None and desk.random.random() < 0.5:
        email = f"{desk.name}@{desk.agreement.domain}"
    elif email is not None and desk.random.random() < 0.3:
        email = email.title()
    following = desk.choose([row for row in desk.current() if row["is_active"]])
    plan = following["uuid"] if following else desk.add_plan()
    given = desk.add_license(plan, email, user, desk.random.choice(("assigned", "activated")))
    return [license["uuid"], given]


HANDS: dict[str, Hand] = {
    hand.__name__: hand
    for hand in (
        plan_extended,
        plan_cut,
        marked_plan_moved,
        plan_flipped,
        renewal_made,
        renewal_processed,
        renewal_cancelled,
        license_revoked,
        enterprise_purged,
        license_reassigned,
        license_deleted,
        license_moved,
        license_given,
    )
}
