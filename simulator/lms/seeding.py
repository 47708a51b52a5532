"""Seeds the simulated LMS's state from license-manager's data."""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine, Select, select

from simulator.data.rows import DOWNGRADED_EVENT, UNLINKED_EVENT
from simulator.data.schema import table
from simulator.lms.state import Enrollment, State


def seed_from_database(engine: Engine) -> State:
    """Return the state of an LMS that matches license-manager's database.

    Each agreement becomes an enterprise. Each assigned or activated license gets one or two enrollments. They are
    verified, unless its plan is processed or an event shows a downgrade. Its e-mail, stripped, is linked to the
    enterprise, unless an event shows an unlink. A license with a user id becomes an account. If licenses have several
    e-mails for one user, the account gets that of the plan that expires last.
    """
    state = State()
    shared: dict[UUID, UUID] = {}  # one object for each enterprise, however many licenses point at it
    with engine.connect().execution_options(yield_per=10_000) as connection:
        agreements = table(engine, "customeragreement")
        for (enterprise,) in connection.execute(select(agreements.c.enterprise_customer_uuid)):
            state.add_enterprise(enterprise)
            shared[enterprise] = enterprise
        event = table(engine, "licenseevent")
        named = select(event.c.license_id, event.c.event_name)
        wanted = named.where(event.c.event_name.in_([UNLINKED_EVENT, DOWNGRADED_EVENT]))
        events = {(license.int, name) for license, name in connection.execute(wanted)}
        for license, email, user_id, processed, enterprise in connection.execute(_licenses(engine)):
            downgraded = processed or (license.int, DOWNGRADED_EVENT) in events
            state.add_license(license, shared[enterprise], audit=downgraded)
            address = (email or "").strip()  # an account's address has no white space around it
            if address and user_id is not None:
                state.add_learner(user_id, address)
            if address and (license.int, UNLINKED_EVENT) not in events:
                state.linked[enterprise].add(address)
    return state


def seed_from_json(state: State, content: Any) -> None:
    """Add enterprises and licenses to an LMS's state.

    Takes `{"enterprises": [{"uuid", "active", "linked": [e-mail]}], "licenses": [{"uuid", "enterprise",
    "enrollments": [{"mode", "fault", "modified"}]}], "learners": [{"user_id", "email"}], "two_accounts": [e-mail]}`,
    each part optional.
    """
    for one in content.get("enterprises", []):
        state.add_enterprise(UUID(one["uuid"]), one.get("linked", []), one.get("active", True))
    for one in content.get("licenses", []):
        enrollments = [_enrollment(**each) for each in one["enrollments"]] if "enrollments" in one else None
        state.add_license(UUID(one["uuid"]), UUID(one["enterprise"]), enrollments)
    for one in content.get("learners", []):
        state.add_learner(int(one["user_id"]), one["email"])
    state.two_accounts.update(content.get("two_accounts", []))


def _enrollment(modified: str | None = None, **given: Any) -> Enrollment:
    return Enrollment(modified=datetime.fromisoformat(modified) if modified else None, **given)


def _licenses(engine: Engine) -> Select[Any]:
    license, plan = table(engine, "license"), table(engine, "subscriptionplan")
    agreement = table(engine, "customeragreement")
    joined = license.join(plan, license.c.subscription_plan_id == plan.c.uuid).join(
        agreement, plan.c.customer_agreement_id == agreement.c.uuid
    )
    return (
        select(
            license.c.uuid,
            license.c.user_email,
            license.c.lms_user_id,
            plan.c.expiration_processed,
            agreement.c.enterprise_customer_uuid,
        )
        .select_from(joined)
        .where(license.c.status.in_(["assigned", "activated"]))
        .order_by(plan.c.expiration_date)
    )
