"""The promises that hold while people are at work: each found broken in a forged night, and held where it is not."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, insert, update
from support.runs import rows

from chaos.forged import Night, assert_found, unlink_events
from chaos.timeline import Deed, read
from simulator.data.rows import DAY
from simulator.data.schema import table
from worker.db.ledger_tables import Downgrade, HeldLicense

SECOND = timedelta(seconds=1)
Change = Callable[[Night, Any], None]


def edit(night: Night, name: str, ago: timedelta, before: datetime, *changes: Any) -> None:
    """Let somebody do something to an enterprise's rows so long before a moment, and the worker not know it."""
    enterprise, at = night.enterprise(name), before - ago
    with night.engine.begin() as connection:
        for change in changes:
            connection.execute(change)
        after = read(night.engine, connection, enterprise)
    night.timeline.note(Deed("forged", enterprise, at, at, ()), after)


def changed(night: Night, of: str, where: Any, **values: Any) -> Any:
    into = table(night.engine, of)
    return update(into).where(where(into.c)).values(**values)


def learner(night: Night, name: str, number: int = 0) -> tuple[Any, dict[str, Any]]:
    """The call that unlinked a learner of an enterprise, and the license."""
    call = night.calls(name, "unlink")[number]
    [license] = [row for row in rows(night.engine, "license") if row["user_email"] == call.emails[0]]
    return call, license


def protected_in_time(night: Night, ago: timedelta) -> None:
    """A learner gets a license of a current plan before the unlink."""
    call, license = learner(night, "large")
    plans = rows(night.engine, "subscriptionplan")
    [plan] = [row for row in plans if row["uuid"] == license["subscription_plan_id"]]
    current = plan | {"uuid": uuid4(), "expiration_date": call.started_at + 100 * DAY, "expiration_processed": False}
    current["title"] = "Another"
    given = license | {"uuid": uuid4(), "subscription_plan_id": current["uuid"]}
    made = [insert(table(night.engine, "subscriptionplan")).values(**current)]
    made += [insert(table(night.engine, "license")).values(**given)]
    edit(night, "large", ago, call.started_at, *made)


def extended_in_time(night: Night, ago: timedelta) -> None:
    """The plan is moved on before the unlink."""
    call, license = learner(night, "large")
    of = license["subscription_plan_id"]
    moved = changed(night, "subscriptionplan", lambda c: c.uuid == of, expiration_date=call.started_at + 100 * DAY)
    edit(night, "large", ago, call.started_at, moved)


def revoked_in_time(night: Night, ago: timedelta) -> None:
    call, license = learner(night, "large")
    revoked = {"status": "revoked", "revoked_date": call.started_at - ago}
    edit(
        night,
        "large",
        ago,
        call.started_at,
        changed(night, "license", lambda c: c.uuid == license["uuid"], **revoked),
    )


def extended_before_the_downgrade(night: Night, ago: timedelta) -> None:
    call = night.calls("recent", "downgrade")[0]
    [license] = [row for row in rows(night.engine, "license") if str(row["uuid"]) == call.licenses[0]]
    of = license["subscription_plan_id"]
    moved = changed(night, "subscriptionplan", lambda c: c.uuid == of, expiration_date=call.started_at + 100 * DAY)
    edit(night, "recent", ago, call.started_at, moved)


def touched(night: Night, name: str) -> None:
    """Let something harmless be done to an enterprise, so that only the moving promises stand for it."""
    edit(night, name, timedelta(), datetime.now(UTC))


def never_confirmed(night: Night) -> None:
    """Of a plan that waits for its renewal, whose licenses are downgraded one by one: no mark stands for them."""
    touched(night, "waiting")
    waiting = {row["uuid"] for row in rows(night.engine, "subscriptionplan") if not row["expiration_processed"]}
    sent = {email for call in night.calls("waiting", "unlink") for email in call.emails}
    license = next(
        row
        for row in rows(night.engine, "license")
        if row["user_email"] in sent and row["subscription_plan_id"] in waiting
    )
    for each in night.calls("waiting", "downgrade"):
        if str(license["uuid"]) in each.licenses:
            each.status = 503


def held_before(night: Night) -> None:
    """It was refused alone long before, and is on the list."""
    touched(night, "large")
    call, license = learner(night, "large")
    row = {"license_uuid": license["uuid"], "enterprise_customer_uuid": night.enterprise("large"), "run_id": uuid4()}
    row |= {"step": "unlink", "reason": "http_400", "tries": 1}
    row |= {"first_held_at": call.started_at - 60 * SECOND, "as_of": call.started_at - 60 * SECOND}
    night.execute(insert(HeldLicense).values(**row))
    refused = {"status": 400, "worked": False, "started_at": call.started_at - 9 * SECOND}
    night.add("large", "unlink", call.emails[:1], 1, **refused, ended_at=call.started_at - 8 * SECOND)


def an_invented_event(night: Night) -> None:
    touched(night, "large")
    learner(night, "large")[0].status = 503


def a_linked_learner(night: Night) -> None:
    touched(night, "large")
    night.lms.state.linked[night.enterprise("large")].add(learner(night, "large")[0].emails[0])


def a_lost_event(night: Night) -> None:
    touched(night, "large")
    event = table(night.engine, "licenseevent")
    night.execute(delete(event).where(event.c.id == unlink_events(night, "large")[0]["id"]))


def an_unlink_that_was_never_sent(night: Night) -> None:
    """It is recorded, and the LMS knows nothing of it."""
    an_invented_event(night)


def a_lost_mark(night: Night) -> None:
    touched(night, "recent")
    plan = _plan_of(night, "recent")
    for row in rows(night.engine, Downgrade):
        night.execute(delete(Downgrade).where(Downgrade.license_uuid == row["license_uuid"]))
    night.execute(changed(night, "subscriptionplan", lambda c: c.uuid == plan, expiration_processed=False))


def _plan_of(night: Night, name: str) -> UUID:
    license = UUID(night.calls(name, "downgrade")[0].licenses[0])
    [plan] = [row["subscription_plan_id"] for row in rows(night.engine, "license") if row["uuid"] == license]
    return UUID(str(plan))


def a_mark_without_a_confirmation(night: Night) -> None:
    touched(night, "recent")
    night.calls("recent", "downgrade")[0].status = 503


EARLY, LATE = 5 * SECOND, SECOND
NOT_DUE = r"At work: enterprise UUID: unlink #\d+ holds the learner of license UUID, not due, protected or held at"
CASES: dict[str, tuple[Callable[[Night], None], str]] = {
    "protected": (lambda night: protected_in_time(night, EARLY), NOT_DUE),
    "extended": (lambda night: extended_in_time(night, EARLY), NOT_DUE),
    "revoked": (lambda night: revoked_in_time(night, EARLY), NOT_DUE),
    "held": (held_before, NOT_DUE),
    "not downgraded": (
        never_confirmed,
        r"At work: .*: unlink #\d+ holds the learner of license UUID, not confirmed",
    ),
    "not due": (
        lambda night: extended_before_the_downgrade(night, EARLY),
        r"At work: enterprise UUID: downgrade #\d+ holds license UUID, not due at that moment",
    ),
    "an invented event": (an_invented_event, r"At work: license UUID is recorded as unlinked, which the LMS had not"),
    "still linked": (a_linked_learner, r"At work: license UUID is recorded as unlinked, but its learner is still"),
    "an invented downgrade": (never_confirmed, r"At work: license UUID is recorded as downgraded, which no request"),
    "an invented mark": (a_mark_without_a_confirmation, r"At work: plan UUID was marked as processed at .*, with lice"),
    "a lost event": (a_lost_event, r"At work: license UUID is due, and its unlink is not recorded"),
    "a lost unlink": (an_unlink_that_was_never_sent, r"At work: license UUID is due, and its unlink is not confirmed"),
    "a lost downgrade": (
        a_mark_without_a_confirmation,
        r"At work: license UUID is due, and its downgrade is not confirmed",
    ),
    "a lost mark": (a_lost_mark, r"At work: plan UUID is due and not marked as processed"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_promise_is_found(case: str, night: Night) -> None:
    forge, sentence = CASES[case]
    forge(night)
    assert_found(night, sentence)


@pytest.mark.parametrize("forge", [protected_in_time, extended_in_time, revoked_in_time, extended_before_the_downgrade])
def test_what_was_done_within_the_last_two_seconds_no_worker_can_know(
    forge: Callable[[Night, timedelta], None], night: Night
) -> None:
    forge(night, LATE)
    assert not [each for each in night.verdict() if "not due" in each]


def test_a_freeze_between_look_and_request_explains_an_old_look(night: Night) -> None:
    call, _ = learner(night, "large")
    protected_in_time(night, EARLY)
    night.strike("freeze_child", "large", call.started_at - EARLY)
    assert not [each for each in night.verdict() if "not due" in each]


def test_an_answer_of_the_list_of_learners_stands_for_a_lost_one(night: Night) -> None:
    """The unlink was done, its answer was lost, and the LMS says later that the user is not linked."""
    call, license = learner(night, "large")
    known = changed(night, "license", lambda c: c.uuid == license["uuid"], lms_user_id=4242)
    edit(night, "large", 60 * SECOND, call.started_at, known)
    call.dropped = "truncated"
    assert [each for each in night.verdict() if "which the LMS had not told" in each]
    call.dropped, call.emails = None, call.emails[1:]
    lost = night.add("large", "unlink", [license["user_email"]], call.start - 3, started_at=call.started_at)
    lost.dropped = "truncated"
    answer = night.add("large", "unlink", [], call.start - 1, started_at=call.started_at, ended_at=call.ended_at)
    answer.kind, answer.user_ids = "learners", [4242]
    assert not [each for each in night.verdict() if "which the LMS had not told" in each]


@pytest.mark.parametrize(
    ("ago", "lost"),
    [
        pytest.param(60 * SECOND, True, id="it was a learner's when its plan was marked"),
        pytest.param(-60 * SECOND, False, id="it was nobody's then: there was nothing to send"),
    ],
)
def test_a_license_that_is_assigned_after_its_plans_mark_was_not_lost(ago: timedelta, lost: bool, night: Night) -> None:
    call = night.calls("recent", "downgrade")[0]
    [like] = [row for row in rows(night.engine, "license") if str(row["uuid"]) == call.licenses[0]]
    nobodys = {"uuid": uuid4(), "status": "unassigned", "user_email": None, "lms_user_id": None}
    nobodys |= {"activation_key": None, "assigned_date": None, "activation_date": None}
    edit(night, "recent", 90 * SECOND, call.started_at, insert(table(night.engine, "license")).values(**like | nobodys))
    assigned = {"status": "assigned", "user_email": "late@forged.example", "assigned_date": call.started_at - ago}
    given = changed(night, "license", lambda c: c.uuid == nobodys["uuid"], **assigned)
    edit(night, "recent", ago, call.started_at, given)
    assert bool([each for each in night.verdict() if "is due, and its downgrade is not confirmed" in each]) == lost
