"""What is marked as processed, when other jobs and people are at work: the mark attests what is so when it is made."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, event, text, update
from support.runs import (
    ON_SERVERS,
    Make,
    events,
    held,
    lay,
    night,
    processed,
    ready,
    rows,
    sent,
    texts,
    unlinking,
)

from simulator.data.rows import DAY, Data
from simulator.data.schema import table
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db.engine import make_engine
from worker.db.license_manager_tables import DOWNGRADED_EVENT, UNLINKED_EVENT, License, SubscriptionPlan

Change = Callable[[Connection, UUID, datetime], object]


@contextmanager
def between_look_and_mark(engine: Engine, url: str, change: Callable[[Connection], object]) -> Iterator[list[str]]:
    """Commit a change on another connection when the UPDATE that marks is about to begin; only the first time."""
    done: list[str] = []

    def before(_: Connection, __: Any, statement: str, *___: Any) -> None:
        if statement.startswith("UPDATE subscriptions_subscriptionplan") and not done:
            done.append(statement)
            other = make_engine(url)
            with other.begin() as connection:
                change(connection)
            other.dispose()

    event.listen(engine, "before_cursor_execute", before)
    yield done
    event.remove(engine, "before_cursor_execute", before)


def extend(by: timedelta, connection: Connection, plan: UUID, now: datetime) -> None:
    expires = update(SubscriptionPlan).where(SubscriptionPlan.uuid == plan).values(expiration_date=now + by)
    assert connection.execute(expires).rowcount == 1


def move_in(connection: Connection, plan: UUID, _: datetime) -> None:
    """As license-manager's transfer job does it: into this plan, whichever one it was in."""
    moved = update(License).where(License.subscription_plan_id != plan).values(subscription_plan_id=plan)
    assert connection.execute(moved).rowcount == 1


def revoke(connection: Connection, plan: UUID, now: datetime) -> None:
    """As its retire_old_licenses does it; they are confirmed already."""
    connection.execute(
        update(License).where(License.subscription_plan_id == plan).values(status="revoked", revoked_date=now)
    )


@ON_SERVERS  # SQLite lets nobody write while a transaction of ours is open
@pytest.mark.parametrize(
    ("change", "marked"),
    [
        pytest.param(partial(extend, 30 * DAY), False, id="paid late: it expires in a month"),
        pytest.param(partial(extend, DAY), False, id="it expires tomorrow"),
        pytest.param(move_in, False, id="a license is moved in that nobody has downgraded"),
        pytest.param(revoke, True, id="its licenses are purged once they are confirmed"),
        pytest.param(lambda *_: None, True, id="nothing happens"),
    ],
)
def test_what_is_committed_between_look_and_mark_counts(
    engine: Engine, lms: Simulator, make_test_deps: Make, change: Change, marked: bool
) -> None:
    data = Data(engine)
    agreement = data.agreement()
    plan = data.plan(agreement, expires=data.now - 2 * DAY)
    data.license(plan)
    data.license(data.plan(agreement, expires=data.now + 9 * DAY))
    ready(data, lms)
    deps = make_test_deps()
    now, url = deps.database.now(), engine.url.render_as_string(hide_password=False)
    with between_look_and_mark(deps.database.engine, url, lambda connection: change(connection, plan, now)) as done:
        [run] = night(deps).values()
    assert len(done) == 1
    assert processed(engine) == ({plan} if marked else set())
    assert run.plans_processed == len(rows(engine, "historicalsubscriptionplan")) == int(marked)


def test_a_customer_who_paid_late_is_downgraded_again_when_the_plan_expires_again(
    engine: Engine, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps()
    night(deps)
    assert processed(engine) == {laid.plan}
    plans, past = table(engine, "subscriptionplan"), deps.database.now() + timedelta(seconds=-1)
    with engine.begin() as connection:  # it is extended, and expires; the mark was for the date before
        connection.execute(update(plans).values(expiration_date=past))
        connection.execute(text("DELETE FROM license_expiry_downgrade"))
    history = table(engine, "historicalsubscriptionplan")
    with engine.begin() as connection:
        connection.execute(update(history).values(history_date=past - 30 * DAY))
    lms.journal.clear()
    night(deps, laid.enterprise)
    assert sorted(chain(*sent(lms, "downgrade", 200))) == sorted(texts(laid.licenses))
    assert len(rows(engine, "historicalsubscriptionplan")) == 2
    lms.journal.clear()
    assert night(deps) == {}, "and then it is done"


def test_licenses_that_the_purge_revoked_are_sent_and_their_plan_is_marked_once_these_are_confirmed(
    engine: Engine, lms: Simulator, make_test_deps: Make
) -> None:
    """Of A, which B renewed: nothing of it was due until B expired, and then its licenses were purged already."""
    data = Data(engine)
    agreement = data.agreement()
    a, b = (data.plan(agreement, expires=data.now - days * DAY) for days in (366, 1))
    data.renewal(a, b)
    gone: dict[str, Any] = {"status": "revoked", "email": None, "revoked_date": data.now - 200 * DAY}
    purged, bad = data.license(a, **gone), data.license(a, **gone)
    before = data.license(a, **gone | {"revoked_date": data.now - 400 * DAY})
    data.license(b)
    ready(data, lms)
    lms.faults(Fault("downgrade", status=422, license=str(bad)))
    night(make_test_deps(**unlinking(agreement.enterprise_customer_uuid)))
    assert str(purged) in chain(*sent(lms, "downgrade", 200))
    assert str(before) not in chain(*sent(lms, "downgrade"))
    assert held(engine).keys() == {bad}
    assert processed(engine) == {b}
    assert not events(engine, UNLINKED_EVENT)
    assert not events(engine, DOWNGRADED_EVENT)
