"""An account of serve's own may read and no more, and no e-mail address: that is enough for each page."""

from collections.abc import Callable

import pytest
from sqlalchemy import Engine, text
from support.command_line import SETTINGS, json_of, license_expiry
from support.database_account import Account
from support.runs import Make, lay, night, unlinking

from simulator.lms.server import Simulator
from worker.cli.checks.findings import Finding
from worker.cli.checks.rights import OF_SERVE, OPTIONAL, RIGHTS, Right
from worker.cli.checks.serve import check_serve
from worker.db.license_manager_tables import License
from worker.db.transactions import Database
from worker.ledger.migrations import VERSION_TABLE
from worker.settings import DatabaseSettings
from worker.web import history, matters, metrics, runs

ON_EACH_SERVER = pytest.mark.parametrize(
    "engine_kind", ["postgresql", "mariadb", "mariadb-uuid", "mysql"], indirect=True
)
LICENSES = License.__tablename__


def give(account: Account, verb: str, table: str) -> None:
    where = table if account.postgresql else f"license_manager.{table}"
    account.execute(f"GRANT {verb} ON {where} TO {account.name}")


@pytest.fixture
def least(account: Account) -> Account:
    """The account with what serve needs, and nothing else."""
    for table, verbs in {**RIGHTS, **OPTIONAL}.items():
        for verb in verbs:
            if verb not in OF_SERVE.get(table, ()):
                account.revoke(Right(verb, table))
    [verb] = OF_SERVE[LICENSES]
    give(account, verb, LICENSES)
    return account


@pytest.fixture
def found(account: Account, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Finding]]:
    """What doctor says of the account."""
    monkeypatch.setenv("DATABASE_URL", account.url)
    return lambda: list(check_serve(DatabaseSettings()))


@ON_EACH_SERVER
def test_each_page_needs_no_more(
    least: Account, lms: Simulator, make_test_deps: Make, found: Callable[[], list[Finding]]
) -> None:
    laid = lay(lms)
    [run] = night(make_test_deps(**unlinking(laid.enterprise)), laid.enterprise).values()
    deps = make_test_deps(DATABASE_URL=least.url, **unlinking(laid.enterprise))
    database: Database = deps.database
    database.require_schema()
    history.check_ledger(database)
    assert history.one_night(database, None).runs
    assert runs.one_run(database, run.id).plans
    for done in (runs.DOWNGRADED, runs.UNLINKED):
        assert runs.licenses(database, run.id, done, None).licenses
    assert matters.overview(database)
    assert b"\nlicense_expiry_live_runs" in metrics.Metrics(database, deps.settings).exposition()
    assert [(each.subject, each.status) for each in found()] == [
        ("database", "ok"),
        ("rights", "ok"),
        ("rights", "ok"),
        ("ledger", "ok"),
    ]
    assert "may not read e-mail addresses" in found()[2].what


@ON_EACH_SERVER
def test_what_is_missing_is_named_with_its_grant(least: Account, found: Callable[[], list[Finding]]) -> None:
    for table in ("subscriptions_licenseevent", "license_expiry_run", VERSION_TABLE, LICENSES):
        [verb] = OF_SERVE[table]
        least.revoke(Right(verb, table))
        wrong = [each for each in found() if each.status == "wrong"]
        assert [each.what for each in wrong] == [f"{least.name} lacks {verb} on {table}"]
        least.execute(wrong[0].remedy)
        assert {each.status for each in found()} == {"ok"}


@ON_EACH_SERVER
def test_what_is_too_much_is_named(account: Account, engine: Engine, found: Callable[[], list[Finding]]) -> None:
    said = {(each.status, each.what.partition(" may ")[2].partition(":")[0]) for each in found()}
    assert ("ok", "read e-mail addresses") in said
    [too_much] = [each for each in found() if each.status == "warning"]
    assert "may do more than serve needs: " in too_much.what
    assert "INSERT" in too_much.what


@pytest.mark.parametrize("engine_kind", ["sqlite"], indirect=True)
def test_doctor_for_serve_asks_for_nothing_of_the_lms_or_the_broker(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    result = license_expiry("doctor", "--for", "serve", "--json")
    assert (result.exit_code, json_of(result)["findings"][0]["subject"]) == (1, "settings")
    monkeypatch.setenv("DATABASE_URL", database_url)
    result = license_expiry("doctor", "--for", "serve", "--json")
    assert [finding["subject"] for finding in json_of(result)["findings"]] == ["database", "ledger"]
    assert result.exit_code == 0
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE license_expiry_run"))
    result = license_expiry("doctor", "--for", "serve", "--json")
    assert result.exit_code == 1
    assert "license-expiry init-db" in result.stdout
