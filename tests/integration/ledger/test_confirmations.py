"""The held list, the confirmations, and what is dropped of both when a run is finished."""

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine
from support.runs import ON_SQLITE, held, opened_run, rows

from simulator.data.rows import Data
from worker.db.ledger_tables import Downgrade, HeldLicense, Run
from worker.db.transactions import Database
from worker.ledger import confirmations, held as confirmations_held, runs as confirmations_runs, runs as opening
from worker.ledger.claims import claim
from worker.ledger.held import HOLD_FOR
from worker.ledger.order import DOWNGRADE, UNLINK, Phase

AS_OF = datetime(2026, 6, 1, 2, 0, tzinfo=UTC)
LATER = AS_OF + timedelta(days=1)
IN_A_MINUTE = timedelta(minutes=1)
PURGED: dict[str, Any] = {"status": "revoked", "email": None}  # by license-manager's retire_old_licenses


@pytest.fixture
def database(engine: Engine) -> Database:
    return Database(engine)


def make_run(enterprise: UUID | None = None, as_of: datetime = AS_OF, **columns: Any) -> Run:
    """A run that is in no database: what the functions here read of it."""
    return Run(id=uuid4(), enterprise_customer_uuid=enterprise or uuid4(), as_of=as_of, **columns)


def hold(database: Database, run: Run, *licenses: UUID, reason: str = "http_422") -> None:
    for license in licenses:
        database.transact(
            partial(confirmations_held.hold, run=run, step="downgrade", license_uuid=license, reason=reason)
        )


def test_a_license_that_is_refused_again_keeps_its_place_on_the_held_list(database: Database, engine: Engine) -> None:
    enterprise, license = uuid4(), uuid4()
    first, second = make_run(enterprise), make_run(enterprise, LATER)
    hold(database, first, license)
    expected = {
        "license_uuid": license,
        "enterprise_customer_uuid": enterprise,
        "run_id": first.id,
        "step": "downgrade",
        "reason": "http_422",
        "tries": 1,
        "first_held_at": AS_OF,
        "as_of": AS_OF,
    }
    assert rows(engine, HeldLicense) == [expected]
    database.transact(lambda session: confirmations_held.hold(session, second, "unlink", license, "http_400"))
    expected |= {"run_id": second.id, "step": "unlink", "reason": "http_400", "tries": 2, "as_of": LATER}
    assert rows(engine, HeldLicense) == [expected]


def test_only_the_licenses_that_the_lms_took_come_off_the_held_list(database: Database, engine: Engine) -> None:
    taken, also_taken, still = (uuid4() for _ in range(3))
    hold(database, make_run(), taken, also_taken, still)
    database.transact(lambda session: confirmations_held.release(session, [taken, also_taken, uuid4()]))
    assert set(held(engine)) == {still}
    database.transact(lambda session: confirmations_held.release(session, []))
    assert set(held(engine)) == {still}


def test_confirmations_are_kept_until_their_plan_is_marked(database: Database, engine: Engine) -> None:
    data = Data(engine, now=AS_OF)
    ours, theirs = data.agreement(), data.agreement()
    past = AS_OF - timedelta(days=3)
    marked = data.license(data.plan(ours, expires=past, expiration_processed=True))
    unmarked = data.license(data.plan(ours, expires=past))
    others = data.license(data.plan(theirs, expires=past, expiration_processed=True))
    data.flush()
    run, other = make_run(ours.enterprise_customer_uuid), make_run(theirs.enterprise_customer_uuid)
    database.transact(lambda session: confirmations.confirm_downgrades(session, run, [marked, unmarked]))
    database.transact(lambda session: confirmations.confirm_downgrades(session, other, [others]))
    assert {(row["license_uuid"], row["run_id"], row["confirmed_at"]) for row in rows(engine, Downgrade)} == {
        (marked, run.id, AS_OF),
        (unmarked, run.id, AS_OF),
        (others, other.id, AS_OF),
    }
    database.transact(lambda session: confirmations.drop_confirmations(session, ours.enterprise_customer_uuid))
    assert {row["license_uuid"] for row in rows(engine, Downgrade)} == {unmarked, others}


# What became of a held license, and why its hold stays or goes.
HOLDS: list[tuple[str, bool, dict[str, Any], dict[str, Any]]] = [
    ("its plan has expired: the LMS still refuses it", True, {}, {}),
    ("purged: the LMS was told nothing, and the learner has a paid enrollment", True, {}, PURGED),
    ("renewed, so no query finds it due any more", True, {}, {"renewed": True}),
    ("its plan was marked by hand: that downgrades nobody", True, {"expiration_processed": True}, {}),
    ("its plan was switched off", True, {"is_active": False}, {}),
    ("its plan was extended: nothing is to be downgraded", False, {"expires": IN_A_MINUTE}, {}),
    ("it was deleted", False, {}, {"deleted": True}),
]


@pytest.mark.parametrize("held_ago", [timedelta(), HOLD_FOR, timedelta(days=40)], ids=str)
def test_a_hold_goes_with_its_license_or_its_plans_expiration_and_never_else(
    database: Database, engine: Engine, held_ago: timedelta
) -> None:
    now = database.now()
    data = Data(engine, now=now)
    agreement, stays = data.agreement(), {}
    for why, stays_held, of_plan, of_license in HOLDS:
        of_plan, of_license = dict(of_plan), dict(of_license)
        minutes: timedelta = of_plan.pop("expires", -timedelta(days=9))
        plan = data.plan(agreement, expires=now + minutes, **of_plan)
        on = data.license(plan) if of_license.pop("renewed", False) else None
        gone = of_license.pop("deleted", False)
        stays[uuid4() if gone else data.license(plan, renewed_to=on, **of_license)] = (why, stays_held)
    data.flush()
    hold(database, make_run(agreement.enterprise_customer_uuid, now - held_ago), *stays)
    of_another = uuid4()
    hold(database, make_run(), of_another)
    database.transact(lambda session: confirmations_held.drop_stale_holds(session, agreement.enterprise_customer_uuid))
    left = held(engine)
    assert {why for uuid, (why, _) in stays.items() if uuid in left} == {why for why, kept in stays.values() if kept}
    assert of_another in left


@pytest.mark.parametrize("narrowed", [{}, {"expired_after": AS_OF - timedelta(days=900)}], ids=["all", "narrowed"])
def test_any_run_of_the_enterprise_drops_them_as_it_ends(
    database: Database, engine: Engine, narrowed: dict[str, Any]
) -> None:
    enterprise, gone = uuid4(), uuid4()
    hold(database, make_run(enterprise), gone)
    run_id = opened_run(database, enterprise, LATER, **narrowed).run_id
    for step in (DOWNGRADE, UNLINK):
        assert set(held(engine)) == {gone}
        claim(database, run_id, enterprise, step, "a test", 300).advance()
    assert held(engine) == {}


@ON_SQLITE
def test_a_held_license_whose_agreement_moved_is_held_there(database: Database, engine: Engine) -> None:
    before, after, license = make_run(), make_run(as_of=LATER), uuid4()
    hold(database, before, license)
    hold(database, after, license)
    [row] = rows(engine, HeldLicense)
    assert (row["enterprise_customer_uuid"], row["tries"]) == (after.enterprise_customer_uuid, 2)
    assert row["first_held_at"] == AS_OF


def test_runs_are_listed_the_newest_first_and_one_for_each_enterprise(database: Database) -> None:
    one, other = uuid4(), uuid4()
    opened: dict[UUID, list[UUID]] = {one: [], other: []}
    for enterprise in (one, other, one, one):
        opened[enterprise].append(opening.record_refusal(database, enterprise, AS_OF, "no"))
    newest = database.transact(lambda session: confirmations_runs.newest_runs(session, None))
    assert [run.id for run in newest] == [opened[one][2], opened[other][0]]
    of_one = database.transact(lambda session: confirmations_runs.newest_runs(session, one, limit=2))
    assert [run.id for run in of_one] == opened[one][:0:-1]
    asked = [opened[one][1], opened[other][0], opened[one][0], uuid4()]
    by_id = database.transact(lambda session: confirmations_runs.runs_by_id(session, iter(asked)))
    assert [run.id for run in by_id] == [opened[one][0], opened[other][0], opened[one][1]]


@ON_SQLITE
def test_the_held_list_is_in_order(database: Database) -> None:
    enterprises = sorted(uuid4() for _ in range(2))
    licenses = sorted(uuid4() for _ in range(3))
    runs = [make_run(enterprise) for enterprise in enterprises]
    hold(database, runs[1], licenses[1], licenses[0])
    hold(database, runs[0], licenses[2])
    listed = database.transact(confirmations_held.held_licenses)
    assert [each.license_uuid for each in listed] == [licenses[2], licenses[0], licenses[1]]


@ON_SQLITE
def test_a_run_is_described_in_json(database: Database) -> None:
    run_id = opened_run(database, uuid4(), AS_OF, dry_run=True).run_id
    run = database.transact(lambda session: session.get_one(Run, run_id))
    described = json.loads(json.dumps(confirmations_runs.describe(run)))
    assert described == {
        "run_id": str(run_id),
        "enterprise_customer_uuid": str(run.enterprise_customer_uuid),
        "phase": Phase.QUEUED.value,
        "dry_run": True,
        "triggered_by": None,
        "reason": None,
        "plans_processed": 0,
        "licenses_downgraded": 0,
        "licenses_held": 0,
        "learners_unlinked": 0,
        "learners_protected": 0,
        "error": None,
    }
