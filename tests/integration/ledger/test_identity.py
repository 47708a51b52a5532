"""The LMS that a database belongs to: written down by the first run, and kept to by every worker."""

import pytest
from sqlalchemy import Engine
from support.runs import ON_EACH, ON_SQLITE, Make, attempt, lay, night, rows, snapshot, start, together, unlinking

from simulator.lms.server import Simulator
from worker.db.ledger_tables import Lms
from worker.db.transactions import Database
from worker.deps import Deps
from worker.errors import LicenseExpiryError, Unusable
from worker.ledger.identity import check_lms, lms_of, set_lms
from worker.ledger.order import DOWNGRADE
from worker.runs import reconcile
from worker.runs.start import start_scheduled_night

PRODUCTION, STAGING = "https://courses.example.com", "https://staging.example.com"


@ON_EACH
def test_the_first_run_gives_the_database_to_its_lms(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=1)
    deps = make_test_deps(**unlinking(laid.enterprise))
    assert lms_of(deps.database) is None
    night(deps)
    assert [row["url"] for row in rows(deps.database.engine, Lms)] == [deps.settings.LMS_URL]
    night(deps)


@ON_EACH
def test_of_many_first_runs_of_two_lms_one_lms_has_the_database(engine: Engine) -> None:
    database = Database(engine)
    urls = [PRODUCTION, STAGING] * 4
    outcomes = together(len(urls), lambda number: check_lms(database, urls[number], first=True))
    [owner] = [row["url"] for row in rows(engine, Lms)]
    refused = [isinstance(outcome, LicenseExpiryError) for outcome in outcomes]
    assert refused == [url != owner for url in urls]


@ON_SQLITE
@pytest.mark.parametrize("what", ["a trigger", "a scheduled night", "a step", "reconcile"])
def test_a_worker_of_another_lms_sends_nothing_and_records_nothing(
    what: str, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=2)
    production = make_test_deps(**unlinking(laid.enterprise))
    [opened] = start(production, laid.enterprise)
    staging = make_test_deps(**unlinking(laid.enterprise), LMS_URL=STAGING)
    before = snapshot(staging.database.engine)

    def publish(*_: object) -> None:
        raise AssertionError("a message was sent")

    def begin(deps: Deps) -> object:
        if what == "a trigger":
            return start(deps, laid.enterprise)
        if what == "a scheduled night":
            return start_scheduled_night(deps, deps.database.now(), publish, "beat")
        if what == "a step":
            return attempt(deps, laid.enterprise, opened.run_id, DOWNGRADE)
        return reconcile.republish_stalled_runs(deps, publish, lambda: 0)

    with pytest.raises(Unusable) as caught:
        begin(staging)
    told = str(caught.value)
    assert production.settings.LMS_URL in told
    assert f"LMS_URL is {STAGING}" in told
    assert f"license-expiry init-db --lms-url {STAGING}" in told
    assert lms.journal.entries == []
    assert snapshot(staging.database.engine) == before


@ON_SQLITE
def test_an_lms_that_moved_is_accepted_after_init_db_with_its_new_address(engine: Engine) -> None:
    database = Database(engine)
    check_lms(database, PRODUCTION, first=True)
    set_lms(database, STAGING)
    set_lms(database, STAGING)
    check_lms(database, STAGING, first=True)
    with pytest.raises(Unusable):
        check_lms(database, PRODUCTION, first=True)


@ON_SQLITE
def test_capitals_of_an_address_make_no_other_lms(engine: Engine) -> None:
    check_lms(Database(engine), PRODUCTION, first=True)
    check_lms(Database(engine), "https://Courses.Example.com", first=True)


@ON_SQLITE
def test_a_look_gives_the_database_to_nobody(engine: Engine) -> None:
    check_lms(Database(engine), STAGING, first=False)
    assert lms_of(Database(engine)) is None
