"""An account with just the rights that docs/how-to/accounts.md gives it, on each server: enough, and none too many."""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from support.claims import wait
from support.database_account import Account, documented
from support.eventually import eventually
from support.runs import (
    LONGEST,
    ON_ALL_SERVERS,
    ON_SERVERS,
    Make,
    events,
    finish,
    held,
    night,
    processed,
    ready,
    unlinking,
)

from simulator.data.rows import DAY, Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.cli.checks import database as database_check, rights
from worker.cli.checks.findings import Finding
from worker.cli.checks.rights import RIGHTS, Right
from worker.db.engine import make_engine
from worker.db.license_manager_tables import DOWNGRADED_EVENT, UNLINKED_EVENT
from worker.flower import forms
from worker.ledger import claims, nights, runs as ledger_runs, stalled, waits
from worker.ledger.migrations import VERSION_TABLE
from worker.ledger.order import DOWNGRADE, Phase
from worker.runs import reconcile, start
from worker.runs.request import Request
from worker.settings import DatabaseSettings
from worker.web import history, matters, metrics, runs

ON_EACH_SERVER = pytest.mark.parametrize(
    "engine_kind", ["postgresql", "mariadb", "mariadb-uuid", "mysql"], indirect=True
)
HISTORY = Right("SELECT", "subscriptions_historicallicense")
Findings = Callable[[], list[Finding]]


def lay(data: Data, lms: Simulator) -> tuple[UUID, UUID]:
    """An enterprise with every kind of work: due, waiting, held, protected; give its id and a faultless plan's."""
    agreement = data.agreement()
    old = data.plan(agreement, expires=data.now - 120 * DAY)
    waiting = data.plan(agreement, expires=data.now - 110 * DAY)
    data.renewal(waiting, None)
    bad, *_ = [data.license(plan) for plan in (old, old, old, waiting)]
    data.license(data.plan(agreement), user_email="both@rights.example")
    data.license(old, user_email="both@rights.example")
    done = data.plan(agreement, expires=data.now - 100 * DAY)
    data.license(done)
    ready(data, lms)
    lms.faults(Fault("downgrade", status=422, license=str(bad)))
    return agreement.enterprise_customer_uuid, done


@ON_EACH_SERVER
def test_a_whole_night_and_all_that_is_looked_at_by_day_need_no_more(
    engine: Engine, account: Account, lms: Simulator, make_test_deps: Make
) -> None:
    enterprise, done = lay(Data(engine), lms)
    deps = make_test_deps(DATABASE_URL=account.url, LMS_REQUESTS_PER_MINUTE=60_000, **unlinking(enterprise))
    deps.database.require_schema()
    tonight = deps.database.now().replace(microsecond=0)
    assert nights.note_and_find_overdue(deps.database, tonight - timedelta(days=1)) == []
    [started] = start.start_scheduled_night(deps, tonight, lambda *_: None, "beat") or []
    nights.give_back(deps.database, tonight)
    assert reconcile.start_overdue_nights(deps, tonight, lambda *_: None) == 1
    claim = claims.claim(deps.database, started.run_id, enterprise, DOWNGRADE, "a test", 300, deps.calls)
    wait(claim, 0)
    run = finish(deps, enterprise, started.run_id)
    assert (run.phase, run.error) == (Phase.FINISHED, None)
    assert (len(held(engine)), sum(events(engine, DOWNGRADED_EVENT).values())) == (1, 1)
    assert sum(events(engine, UNLINKED_EVENT).values()) == 4
    assert processed(engine) == {done}
    nights.record_heartbeat(deps.database)
    assert stalled.release_stalled(deps.database, LONGEST, 0) == ([], [])
    assert runs.one_run(deps.database, run.id)
    assert history.one_night(deps.database, None)
    assert matters.overview(deps.database)
    shown = metrics.Metrics(deps.database, deps.settings)
    eventually(lambda: b"\nlicense_expiry_due_enterprises " in shown.exposition())


OF_FLOWER = {
    "license_expiry_run": {"UPDATE"},
    "license_expiry_downgrade": {"DELETE"},
    "license_expiry_wait": {"INSERT", "DELETE"},
}


@ON_EACH_SERVER
def test_the_pages_in_flower_need_to_read_and_to_stop_and_pause_and_no_more(
    engine: Engine, account: Account, lms: Simulator, make_test_deps: Make
) -> None:
    for table, verbs in RIGHTS.items():
        for verb in set(verbs) - {"SELECT"} - OF_FLOWER.get(table, set()):
            account.revoke(Right(verb, table))
    enterprise, _ = lay(Data(engine), lms)
    deps = make_test_deps(DATABASE_URL=account.url, **unlinking(enterprise))
    deps.database.require_schema()
    for concerned in (enterprise, None):
        assert forms.preview(deps.database, deps.settings, concerned, Request()).unlink_limit
    assert deps.database.transact(lambda session: forms.expired_plans(session, enterprise))
    [opened] = ledger_runs.open_runs(make_test_deps().database, [enterprise], deps.database.now())
    [stopped] = ledger_runs.stop_run(deps.database, opened.run_id, "operator in Flower", "a mistake")
    assert stopped.phase == Phase.STOPPED
    waits.pause(deps.database, "operator in Flower", "the LMS is upgraded")
    assert waits.resume(deps.database)


@pytest.fixture
def findings(account: Account) -> Iterator[Callable[[], list[Finding]]]:
    """What doctor finds about the account's rights, as they are when asked."""
    engine = make_engine(account.url)

    def look() -> list[Finding]:
        engine.dispose()  # PostgreSQL looks at a schema's rights once in a session
        with engine.connect() as connection:
            return list(database_check._rights(connection, rights.missing_rights(connection)))

    yield look
    engine.dispose()


@ON_ALL_SERVERS
def test_doctor_finds_nothing_lacking_and_nothing_to_spare(account: Account, findings: Findings) -> None:
    assert [(each.status, each.what) for each in findings()] == [
        ("ok", f"{account.name} has each right that is needed")
    ]


@pytest.mark.long
@ON_ALL_SERVERS
def test_each_right_that_is_taken_away_is_named_and_its_remedy_gives_it_back(
    account: Account, findings: Findings
) -> None:
    for table, verbs in RIGHTS.items():
        for verb in verbs:
            account.revoke(Right(verb, table))
            wrong = [each for each in findings() if each.status == "wrong"]
            assert [each.what for each in wrong] == [f"{account.name} lacks {verb} on {table}"]
            account.execute(wrong[0].remedy)
    assert [(each.status, each.what) for each in findings() if each.status != "ok"] == []


@ON_EACH_SERVER
def test_a_right_that_a_night_can_do_without_is_a_warning_of_what_is_lost(account: Account, findings: Findings) -> None:
    account.revoke(HISTORY)
    ok, warning = findings()
    assert ok.status == "ok"
    assert warning.status == "warning"
    assert warning.what == (
        f"{account.name} lacks SELECT on subscriptions_historicallicense: licenses that are moved into a processed "
        "plan after its mark are not noticed, and their learners are unlinked without a downgrade"
    )
    account.execute(warning.remedy)
    assert [each.status for each in findings()] == ["ok"]


@ON_EACH_SERVER
@pytest.mark.parametrize("may_read", [True, False])
def test_a_license_moved_after_the_mark_is_downgraded_first_where_its_history_may_be_read(
    engine: Engine, account: Account, lms: Simulator, make_test_deps: Make, may_read: bool
) -> None:
    data = Data(engine)
    agreement, day = data.agreement(), timedelta(days=1)
    before, plan = (data.plan(agreement, expires=data.now - ago * day, expiration_processed=True) for ago in (110, 100))
    data.plan_history(plan, data.now - 99 * day, processed=True)
    moved = data.license(plan)
    data.license_history(moved, data.now - 200 * day, before)
    data.license_history(moved, data.now - 2 * day, plan)
    ready(data, lms)
    if not may_read:
        account.revoke(HISTORY)
    enterprise = agreement.enterprise_customer_uuid
    night(make_test_deps(DATABASE_URL=account.url, **unlinking(enterprise)), enterprise)
    assert events(engine, DOWNGRADED_EVENT) == ({moved: 1} if may_read else {})
    assert events(engine, UNLINKED_EVENT) == {moved: 1}


@ON_EACH_SERVER
def test_a_ledger_that_the_account_cannot_see_is_one_finding(
    engine: Engine, account: Account, findings: Findings
) -> None:
    for table, verbs in RIGHTS.items():
        for verb in verbs if table.startswith("license_expiry_") else ():
            account.revoke(Right(verb, table))
    [finding] = findings()
    assert finding.what == f"{account.name} has no right on the ledger's tables, or the tables do not exist"
    assert "init-db" in finding.remedy


PLAN, MARKS = "subscriptions_subscriptionplan", "expiration_processed, modified"
OTHER = "subscriptions_historicalcustomeragreement"
SPARE = {
    "mysql": {
        "DELETE ON license_manager.subscriptions_license": "DELETE on {database}.subscriptions_license",
        f"UPDATE (title) ON license_manager.{PLAN}": f"UPDATE ({MARKS}, title) on {{database}}.{PLAN}",
        f"SELECT ON license_manager.{OTHER}": f"SELECT on {{database}}.{OTHER}",
        "DROP, ALTER, CREATE, INDEX ON license_manager.*": "CREATE, DROP, INDEX and 1 more on {database}.*",
        "ALL ON license_manager.license_expiry_alembic_version": None,
        "PROCESS ON *.*": "PROCESS on *.*",
        "SELECT ON `license_expiry_of another`.*": "SELECT on license_expiry_of another.*",
    },
    "postgresql": {
        "DELETE, TRUNCATE ON subscriptions_license": "DELETE, TRUNCATE on subscriptions_license",
        f"UPDATE (title) ON {PLAN}": f"UPDATE on {PLAN}",
        "UPDATE (user_email) ON subscriptions_license": "UPDATE on subscriptions_license",
        f"SELECT ON {OTHER}": f"SELECT on {OTHER}",
        "ALL ON license_expiry_alembic_version": None,
    },
}


@ON_SERVERS
def test_what_the_account_could_do_besides_is_a_warning(engine: Engine, account: Account, findings: Findings) -> None:
    for spare, told in SPARE["postgresql" if account.postgresql else "mysql"].items():
        account.execute(f"GRANT {spare} TO {account.name}")
        ok, *warnings = findings()
        assert ok.status == "ok"
        assert [each.status for each in warnings] == (["warning"] if told else [])
        for each in warnings:
            assert each.what.endswith(f" more than a night needs: {str(told).format(database=engine.url.database)}")
        account.execute(f"REVOKE {spare} FROM {account.name}")
        account.execute(
            f"GRANT SELECT ON {'' if account.postgresql else 'license_manager.'}{VERSION_TABLE} TO {account.name}"
        )


@pytest.mark.parametrize("engine_kind", ["mariadb", "mysql"], indirect=True)
def test_a_right_that_may_be_handed_on_is_one_too_many(account: Account, findings: Findings) -> None:
    account.execute(f"GRANT SELECT ON license_manager.subscriptions_license TO {account.name} WITH GRANT OPTION")
    [_, warning] = findings()
    assert "GRANT OPTION on " in warning.what
    assert warning.what.endswith(".subscriptions_license")


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_what_lies_beside_the_tables_is_seen_too(engine: Engine, account: Account, findings: Findings) -> None:
    view = "CREATE VIEW addresses AS SELECT user_email FROM subscriptions_license"
    for change in (view, "CREATE SCHEMA other", "CREATE TABLE other.subscriptions_license (id int)"):
        with engine.begin() as connection:
            connection.execute(text(change))
    account.execute(f"ALTER ROLE {account.name} CREATEROLE")
    for grant in ("SELECT ON addresses", "CREATE ON SCHEMA public", "SELECT ON other.subscriptions_license"):
        account.execute(f"GRANT {grant} TO {account.name}")
    [_, warning] = findings()
    told = "make roles; make tables of its own; SELECT on addresses; SELECT on other.subscriptions_license"
    assert warning.what.endswith(f"may do more than a night needs: {told}")


@ON_SERVERS
@pytest.mark.parametrize(("table", "right"), [(PLAN, f"UPDATE ({MARKS})"), ("subscriptions_licenseevent", "INSERT")])
def test_a_right_on_some_of_the_columns_is_not_enough(
    account: Account, findings: Findings, table: str, right: str
) -> None:
    account.revoke(Right(right, table))
    some = "UPDATE (modified)" if table == PLAN else "INSERT (created)"
    where = table if account.postgresql else f"license_manager.{table}"
    account.execute(f"GRANT {some} ON {where} TO {account.name}")
    assert [each.what for each in findings() if each.status == "wrong"] == [f"{account.name} lacks {right} on {table}"]


@ON_SERVERS
def test_an_account_with_an_odd_name_is_reported_with_what_gives_it_its_rights(engine: Engine) -> None:
    account = Account(engine, "o'brien" if engine.dialect.name == "mysql" else "O-Brien")
    try:
        account.revoke(Right("INSERT", "subscriptions_licenseevent"))
        made = make_engine(account.url)
        with made.connect() as connection:
            [right] = rights.missing_rights(connection)
            account.execute(right.grant(connection))
            assert rights.missing_rights(connection) == []
        made.dispose()
    finally:
        account.drop()


@ON_EACH_SERVER
def test_a_ledger_of_the_release_before_is_reported_and_not_the_rights_on_what_it_lacks(
    engine: Engine, account: Account
) -> None:
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE license_expiry_lms_call"))
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '0002'"))
    wrong = [
        each
        for each in database_check.check_database(DatabaseSettings(DATABASE_URL=account.url))
        if each.status == "wrong"
    ]
    assert [each.remedy for each in wrong] == ["run license-expiry init-db"]


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_a_database_that_takes_no_writes_is_reported(engine: Engine, account: Account) -> None:
    account.execute(f"ALTER ROLE {account.name} SET default_transaction_read_only = on")
    wrong = [
        each
        for each in database_check.check_database(DatabaseSettings(DATABASE_URL=account.url))
        if each.status == "wrong"
    ]
    assert [each.subject for each in wrong] == ["database"]
    assert re.search(r"accepts no writes \(cannot execute INSERT in a read-only transaction", wrong[0].what)


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_rows_numbered_by_a_sequence_need_a_right_on_it(engine: Engine, account: Account, findings: Findings) -> None:
    """As Django before 4.1 made them."""
    numbered = {"licenseevent": "id", "historicalsubscriptionplan": "history_id"}
    with engine.begin() as connection:
        for table, column in numbered.items():
            name = f"subscriptions_{table}"
            for change in (
                f"ALTER TABLE {name} ALTER {column} DROP IDENTITY",
                f"CREATE SEQUENCE {name}_{column}_seq OWNED BY {name}.{column}",
                f"ALTER TABLE {name} ALTER {column} SET DEFAULT nextval('{name}_{column}_seq')",
            ):
                connection.execute(text(change))
    wrong = [each for each in findings() if each.status == "wrong"]
    assert len(wrong) == 2
    for finding, statement in zip(wrong, documented("postgresql")[1], strict=True):
        assert finding.remedy.replace("public.", "").replace(account.name, "license_expiry") == statement
        account.execute(finding.remedy)
    assert [(each.status, each.what) for each in findings() if each.status != "ok"] == []


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_a_schema_that_the_account_may_not_use_is_named(engine: Engine, account: Account, findings: Findings) -> None:
    with engine.begin() as connection:
        connection.execute(text("REVOKE USAGE ON SCHEMA public FROM PUBLIC"))
        connection.execute(text(f"REVOKE USAGE ON SCHEMA public FROM {account.name}"))
    [finding] = findings()
    assert finding.what == f"{account.name} lacks USAGE on SCHEMA public"
    account.execute(finding.remedy)
    assert [(each.status, each.what) for each in findings() if each.status != "ok"] == []
