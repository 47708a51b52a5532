"""Whatever a server's defaults are, our sessions read and write as ever: each setting that could be wrong in turn."""

from datetime import timedelta

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session
from support.database_account import Account
from support.runs import ON_EACH, ON_SERVERS, Make, counts, lay, night, raw, ready, unlinking
from support.services import SERVERS, administer

from simulator.data.rows import Data
from simulator.lms.server import Simulator
from worker.cli.checks.database import check_database
from worker.db.sessions import mysql_settings, postgresql_settings
from worker.db.transactions import Database
from worker.due.forecast import plan_rows
from worker.due.scope import scope_of
from worker.errors import LicenseExpiryError, Unavailable
from worker.settings import DatabaseSettings

PLAN = "subscriptions_subscriptionplan"
ON_POSTGRESQL = pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
ON_MYSQLS = pytest.mark.parametrize("engine_kind", ["mariadb"], indirect=True)

WRONG_ON_POSTGRESQL = {
    "DateStyle": ("SQL, DMY", "German", "Postgres, MDY"),
    "IntervalStyle": ("iso_8601", "sql_standard", "postgres_verbose"),
    "TimeZone": ("America/New_York", "Asia/Tokyo"),
    "client_encoding": ("SQL_ASCII", "LATIN1"),
    "standard_conforming_strings": ("off",),
    "transform_null_equals": ("on",),
    "extra_float_digits": ("-15",),
    "default_transaction_isolation": ("serializable",),
    "default_transaction_deferrable": ("on",),
    "statement_timeout": ("300ms",),
    "idle_session_timeout": ("300ms",),
    "lock_timeout": ("1ms",),
    "row_security": ("on",),
    "bytea_output": ("escape",),
}


@ON_POSTGRESQL
@pytest.mark.parametrize("number", range(3))
def test_a_night_is_as_ever_on_postgresql(
    number: int, engine: Engine, lms: Simulator, account: Account, make_test_deps: Make
) -> None:
    """With the first, the second, the third wrong value of each setting, or its last."""
    for name, values in WRONG_ON_POSTGRESQL.items():
        value = values[min(number, len(values) - 1)]
        administer(SERVERS["postgresql"], f"ALTER ROLE {account.name} SET {name} = '{value}'")
    laid = lay(lms, 5)
    deps = make_test_deps(DATABASE_URL=account.url, **unlinking(laid.enterprise))
    with deps.database.engine.connect() as connection:
        current = text("SELECT current_setting(:name, true)")  # NULL where this server is too old to know it
        shown = {each: connection.scalar(current, {"name": each}) for each in postgresql_settings()}
    expected = postgresql_settings() | {"idle_in_transaction_session_timeout": "1min", "work_mem": "256MB"}
    assert {each for each, value in shown.items() if value not in (None, expected[each])} == set()
    run = night(deps, laid.enterprise)[laid.enterprise]
    assert (run.phase, run.error) == ("finished", None)
    assert counts(run) == {"plans": 1, "downgraded": 5, "held": 0, "unlinked": 5, "protected": 0}
    assert not [each for each in check_database(DatabaseSettings(DATABASE_URL=account.url)) if each.status == "wrong"]


@ON_MYSQLS
def test_each_setting_of_ours_is_the_sessions(engine: Engine) -> None:
    with engine.connect() as connection:
        for name, value in mysql_settings().items():
            assert str(connection.scalar(text(f"SELECT @@SESSION.{name}"))) == value.strip("'")
        limits = raw(engine, "SHOW VARIABLES WHERE Variable_name IN ('max_execution_time', 'max_statement_time')")
    assert [float(value) for _, value in limits] == [0.0]


UNREADABLE = [
    pytest.param("postgresql", "'0044-03-15 12:00 BC'", id="before the year 1"),
    pytest.param("postgresql", "'-infinity'", id="for ever"),
    pytest.param("mariadb", "'0000-00-00 00:00:00'", id="no date"),
]


@pytest.mark.parametrize(("engine_kind", "moment"), UNREADABLE, indirect=["engine_kind"])
def test_a_plan_whose_date_cannot_be_read_is_reported_and_costs_nobody_else_the_night(
    engine: Engine, database_url: str, lms: Simulator, make_test_deps: Make, moment: str
) -> None:
    data = Data(engine)
    agreement = data.agreement()
    sick, well = (data.plan(agreement, expires=data.now - timedelta(days=100)) for _ in range(2))
    for plan in (sick, well):
        data.license(plan)
    ready(data, lms)
    with engine.begin() as connection:
        if engine.dialect.name == "mysql":
            connection.execute(text("SET SESSION sql_mode = ''"))
        set_date = text(f"UPDATE {PLAN} SET expiration_date = {moment} WHERE uuid = :uuid")
        connection.execute(set_date, {"uuid": sick if engine.dialect.name == "postgresql" else sick.hex})
    engine.dispose()
    deps = make_test_deps(**unlinking(agreement.enterprise_customer_uuid))

    told = plan_rows(deps.database, scope_of(deps.database, deps.settings, deps.database.now()))
    assert {plan.plan_uuid: (plan.state, plan.downgrades) for plan in told} == {
        str(sick): ("undated", 0),
        str(well): ("due", 1),
    }
    run = night(deps, agreement.enterprise_customer_uuid)[agreement.enterprise_customer_uuid]
    assert (run.phase, run.error) == ("finished", None)
    assert counts(run) == {"plans": 1, "downgraded": 1, "held": 0, "unlinked": 1, "protected": 0}
    [finding] = [each for each in check_database(DatabaseSettings(DATABASE_URL=database_url)) if str(sick) in each.what]
    assert finding.status == "warning"
    assert "cannot be read" in finding.what


@ON_POSTGRESQL
@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_a_plan_of_the_year_1_is_done_as_any_other(
    engine: Engine, lms: Simulator, account: Account, make_test_deps: Make, zone: str
) -> None:
    administer(SERVERS["postgresql"], f"ALTER ROLE {account.name} SET TimeZone = '{zone}'")
    laid = lay(lms, 2)
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {PLAN} SET expiration_date = '0001-01-01 00:00:00+00'"))
    deps = make_test_deps(DATABASE_URL=account.url, **unlinking(laid.enterprise))
    assert night(deps, laid.enterprise)[laid.enterprise].phase == "finished"


@ON_EACH
def test_a_value_that_cannot_be_is_reported_without_it(engine: Engine) -> None:
    """Whatever the column: a database's own words would show it, and it may be an address."""
    database = Database(engine)
    long = "learner@x.example" * 100
    insert = text("INSERT INTO license_expiry_lms (id, url) VALUES ('learner@x.example', :long)")
    if engine.dialect.name == "sqlite":  # takes any value
        return
    with pytest.raises(LicenseExpiryError) as caught:
        database.transact(lambda session: session.execute(insert, {"long": long}))
    assert "learner@x" not in str(caught.value)


@ON_SERVERS
def test_a_statement_that_somebody_ends_is_not_tried_again(engine: Engine) -> None:
    """An administrator, or a limit of the server's that came after our session's own settings."""
    tries: list[int] = []

    def work(session: Session) -> None:
        tries.append(1)
        if engine.dialect.name == "postgresql":
            session.execute(text("SET LOCAL statement_timeout = 50"))
            session.execute(text("SELECT pg_sleep(30)"))
        else:  # MariaDB has a word for it, MySQL a hint
            many = ", ".join(f"information_schema.collations {each}" for each in "abc")
            limits = "/*M! SET STATEMENT max_statement_time = 0.05 FOR */ SELECT /*+ MAX_EXECUTION_TIME(50) */"
            session.execute(text(f"{limits} max(rand()) FROM {many}"))

    with pytest.raises(Unavailable, match="what canceled the statement"):
        Database(engine).transact(work)
    assert tries == [1]
