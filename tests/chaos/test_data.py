"""The data are the same for the same seed, and no change of what a night leaves escapes the snapshot of it."""

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, delete, insert, select, text, update
from support.runs import ON_SQLITE, raw, rows

from chaos.data import LaidData, due, undisturbed
from chaos.snapshot import difference, take_snapshot
from simulator.data.rows import DOWNGRADED_EVENT, UNLINKED_EVENT
from simulator.data.schema import table
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db.ledger_tables import Downgrade, HeldLicense, Run

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.long
@pytest.mark.parametrize("engine_kind", ["mariadb"], indirect=True)
def test_two_undisturbed_nights_of_one_seed_are_alike(database_url: str) -> None:
    first, second = (undisturbed(LaidData(3), database_url) for _ in range(2))
    assert difference(first, second) == []
    tables = first.tables
    reasons = sorted((row["step"], row["reason"]) for [row] in tables["hold of license"].values())
    downgrade = [("downgrade", reason) for reason in ("http_422", "http_422", "http_500", "http_500")]
    assert reasons == [*downgrade, ("unlink", "http_400"), ("unlink", "http_500")]
    events = {row["event_name"] for many in tables["events of license"].values() for row in many}
    assert events == {DOWNGRADED_EVENT, UNLINKED_EVENT}
    assert all(tables.values())


@ON_SQLITE
def test_another_seed_is_another_ground(engine: Engine, lms: Simulator) -> None:
    grounds = [LaidData(seed) for seed in (1, 1, 2)]
    pictures = []
    for laid_data in grounds:
        laid_data.restore(engine, lms)
        pictures.append(take_snapshot(engine, lms))
    assert difference(*pictures[:2]) == []
    assert difference(*pictures[1:])
    assert grounds[0].enterprises == grounds[1].enterprises
    assert set(grounds[1].enterprises).isdisjoint(grounds[2].enterprises)
    sizes = [len(each.tables["license"]) for each in pictures]
    assert sizes[1] != sizes[2]


def test_a_restored_ground_is_as_it_was_laid(engine: Engine, lms: Simulator) -> None:
    laid_data = LaidData(5)
    laid_data.restore(engine, lms)
    laid = take_snapshot(engine, lms)
    assert due(laid_data, engine) == len(laid_data.due) == 13
    spoil(engine, lms)
    throttle = raw(engine, "SELECT * FROM license_expiry_throttle")
    assert difference(take_snapshot(engine, lms), laid)
    began = time.monotonic()
    laid_data.restore(engine, lms)
    assert time.monotonic() - began < 1.0
    assert difference(take_snapshot(engine, lms), laid) == []
    assert (rows(engine, Run), lms.journal.entries, lms.lms.faults) == ([], [], [])
    assert raw(engine, "SELECT * FROM license_expiry_throttle") == throttle
    assert len(raw(engine, "SELECT * FROM license_expiry_alembic_version")) == 1


def spoil(engine: Engine, lms: Simulator) -> None:
    plan = rows(engine, "subscriptionplan")[0]
    history = table(engine, "historicalsubscriptionplan")
    copied = {name: value for name, value in plan.items() if name in history.c}
    with engine.begin() as connection:
        connection.execute(update(table(engine, "subscriptionplan")).values(expiration_processed=True))
        connection.execute(insert(history).values(**copied, history_type="~", history_date=NOW))
        a_run(connection)
        hold(connection, a_license(connection, engine))
    lms.state.downgraded.update(lms.state.licenses)
    lms.journal.finish(lms.journal.begin("other", "/"), 200, None)
    lms.faults(Fault(status=500))


def a_run(connection: Connection) -> None:
    row: dict[str, Any] = {"id": LaidData(9).enterprises[0], "enterprise_customer_uuid": LaidData(9).enterprises[1]}
    row |= {"phase": "failed", "as_of": NOW, "force": False, "dry_run": False, "opened_at": NOW}
    connection.execute(insert(Run).values(row))


def hold(connection: Connection, license: Any, **values: Any) -> None:
    other = LaidData(9).enterprises[0]
    row = {"license_uuid": license, "enterprise_customer_uuid": other, "run_id": other, "step": "unlink"}
    row |= {"reason": "http_400", "tries": 1, "first_held_at": NOW, "as_of": NOW}
    connection.execute(insert(HeldLicense).values(row | values))


Change = Callable[[Connection, Engine, Simulator], object]


def on(name: str, **values: Any) -> Change:
    """Set columns of one row of a table of license-manager's."""

    def change(connection: Connection, engine: Engine, _: Simulator) -> None:
        of = table(engine, name)
        own = next(column for column in of.c if column.name in ("uuid", "id"))
        first = sorted(connection.execute(of.select()).mappings(), key=lambda row: str(row[own.name]))[0]
        connection.execute(update(of).where(own == first[own.name]).values(**values))

    return change


def an_event(name: str, times: int = 1) -> Change:
    def change(connection: Connection, engine: Engine, _: Simulator) -> None:
        for _number in range(times):
            row = {"license_id": a_license(connection, engine), "event_name": name, "created": NOW, "modified": NOW}
            connection.execute(insert(table(engine, "licenseevent")).values(row))

    return change


def a_license(connection: Connection, engine: Engine) -> Any:
    license = table(engine, "license")
    activated = select(license.c.uuid).where(license.c.status == "activated")
    return connection.scalars(activated.order_by(license.c.uuid).limit(1)).one()


def a_confirmation(connection: Connection, engine: Engine, _: Simulator) -> None:
    other = LaidData(9).enterprises[0]
    row = {"license_uuid": a_license(connection, engine), "run_id": other, "enterprise_customer_uuid": other}
    connection.execute(insert(Downgrade).values(confirmed_at=NOW, **row))


def an_enrollment(_: Connection, __: Engine, lms: Simulator) -> None:
    license = next(each for each in lms.state.licenses if each not in lms.state.special)
    lms.state.downgraded.symmetric_difference_update({license})


def a_link(_: Connection, __: Engine, lms: Simulator) -> None:
    next(emails for emails in lms.state.linked.values() if emails).pop()


def no_change(*_: Any) -> None:
    pass


CASES: dict[str, tuple[Change, Change, str]] = {
    "an event": (no_change, an_event(UNLINKED_EVENT), r"events of license UUID: 1 rows, not 0"),
    "an event twice": (an_event("x"), an_event("x"), r"events of license UUID: 2 rows, not 1"),
    "an event's name": (an_event("x"), on("licenseevent", event_name="y"), r"events of .* event_name is y, not "),
    "a plan's mark": (
        no_change,
        on("subscriptionplan", expiration_processed=True),
        r"plan UUID: expiration_processed is True, not False",
    ),
    "a plan's title": (no_change, on("subscriptionplan", title="x"), r"plan UUID: title is x"),
    "a plan's date": (no_change, on("subscriptionplan", expiration_date=NOW), r"plan UUID: expiration_date is"),
    "a plan touched": (no_change, on("subscriptionplan", modified=NOW), r"plan UUID: modified is since it was laid"),
    "a license's address": (no_change, on("license", user_email="x@x.example"), r"license UUID: another user_email"),
    "a license's status": (no_change, on("license", status="x"), r"license UUID: status is x"),
    "a renewal": (
        no_change,
        on("subscriptionplanrenewal", number_of_licenses=7),
        r"renewal of plan UUID: number_of_licenses",
    ),
    "an agreement": (no_change, on("customeragreement", enterprise_customer_name="x"), r"agreement UUID: enterprise_"),
    "a confirmation": (no_change, a_confirmation, r"confirmed downgrade of license UUID: 1 rows, not 0"),
    "a hold": (
        no_change,
        lambda connection, engine, _: hold(connection, a_license(connection, engine)),
        r"hold of license UUID: 1 rows, not 0",
    ),
    "a hold's reason": (
        lambda connection, engine, _: hold(connection, a_license(connection, engine)),
        lambda connection, *_: connection.execute(update(HeldLicense).values(reason="http_422")),
        r"hold of license UUID: reason is http_422, not http_400",
    ),
    "a hold gone": (
        lambda connection, engine, _: hold(connection, a_license(connection, engine)),
        lambda connection, *_: connection.execute(delete(HeldLicense)),
        r"hold of license UUID: 0 rows, not 1",
    ),
    "an enrollment": (no_change, an_enrollment, r"LMS: enrollments of license UUID: mode is audit, not verified"),
    "a link": (no_change, a_link, r"LMS: link to enterprise UUID, learner of UUID.*: 0 rows, not 1"),
    "an enterprise": (
        no_change,
        lambda _, __, lms: lms.state.inactive.update(lms.state.linked),
        r"LMS: enterprise UUID: active is False",
    ),
}


@ON_SQLITE
@pytest.mark.parametrize("case", CASES)
def test_the_picture_shows_a_change(case: str, engine: Engine, lms: Simulator) -> None:
    before, change, sentence = CASES[case]
    LaidData(1).restore(engine, lms)
    with engine.begin() as connection:
        before(connection, engine, lms)
    was = take_snapshot(engine, lms)
    with engine.begin() as connection:
        change(connection, engine, lms)
    found = difference(take_snapshot(engine, lms), was)
    assert found
    wanted = re.compile(sentence.replace("UUID", "[0-9a-f]{8}-[0-9a-f-]{27}"))
    assert any(wanted.search(each) for each in found), found
    assert "@" not in "".join(found)


@ON_SQLITE
def test_the_picture_leaves_out_what_differs_by_the_night(engine: Engine, lms: Simulator) -> None:
    LaidData(1).restore(engine, lms)
    with engine.begin() as connection:
        hold(connection, a_license(connection, engine))
    was = take_snapshot(engine, lms)
    with engine.begin() as connection:
        a_run(connection)
        connection.execute(
            update(HeldLicense).values(tries=2, as_of=datetime.now(UTC), run_id=LaidData(8).enterprises[0])
        )
        connection.execute(text("UPDATE subscriptions_licenseevent SET created = '2026-01-01 00:00:00', id = id + 100"))
    assert difference(take_snapshot(engine, lms), was) == []


@ON_SQLITE
def test_history_rows_are_counted_and_compared(engine: Engine, lms: Simulator) -> None:
    LaidData(1).restore(engine, lms)
    was = take_snapshot(engine, lms)
    spoil(engine, lms)
    once = take_snapshot(engine, lms)
    assert any("history of plan" in each and "1 rows, not 0" in each for each in difference(once, was))
    with engine.begin() as connection:
        connection.execute(text("UPDATE subscriptions_historicalsubscriptionplan SET title = 'x'"))
    [sentence] = difference(take_snapshot(engine, lms), once)
    assert "title is x" in sentence
