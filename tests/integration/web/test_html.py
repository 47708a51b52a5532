"""The pages, made from real ledgers: what they say of a night, in what order, at what cost, and what never."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, delete, event, insert, update
from support.past_nights import lay_past
from support.runs import ON_SQLITE, Make, attempt, lay, let_waits_pass, open_one, rows, run_of, scan, unlinking

from simulator.data.schema import create_tables
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.lms.state import Enrollment
from worker.db.engine import make_engine
from worker.db.ledger_tables import Heartbeat, Night, Run
from worker.db.transactions import Database
from worker.errors import BadArgument, Unusable
from worker.ledger import migrations
from worker.ledger.nights import record_heartbeat
from worker.ledger.order import DOWNGRADE, STEPS, Phase
from worker.runs import request, start
from worker.web import history, html as pages, matters
from worker.web.runs import one_run

BAR = re.compile(r'<rect class="(s0|s1)" x="([\d.]+)%"')


def never(_: Any) -> None:
    return None


def lines(html: str) -> dict[str, str]:
    """The line of each enterprise of a night's page, in the order of the page."""
    found = re.findall(r'<tr><th scope="row">.*?</tr>', html, re.S)
    return {re.findall(r'class="id">([0-9a-f-]{36})<', line)[0]: line for line in found}


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """The SQL that is executed meanwhile."""
    said: list[str] = []

    def listen(*event: Any) -> None:
        said.append(event[2])

    event.listen(engine, "before_cursor_execute", listen)
    try:
        yield said
    finally:
        event.remove(engine, "before_cursor_execute", listen)


@ON_SQLITE
def test_a_night_is_shown_in_its_order_with_its_trouble_first_and_no_address(
    lms: Simulator, make_test_deps: Make
) -> None:
    fine, retried, holding, failing, live = laid = [lay(lms, licenses=3, seed=seed) for seed in range(1, 6)]
    deps = make_test_deps(TASK_MAX_RETRIES=5, **unlinking(*(each.enterprise for each in laid)))
    lms.state.add_license(holding.licenses[0], holding.enterprise, [Enrollment(fault="locked")])
    started = start.start_runs(deps, request.Request(), (), lambda *_: None, deps.database.now())
    runs = {one.enterprise: one.run_id for one in started}
    for each in (fine, holding):
        for step in STEPS:
            attempt(deps, each.enterprise, runs[each.enterprise], step)
    lms.faults(Fault(kind="downgrade", enterprise=str(retried.enterprise), status=503))
    assert attempt(deps, retried.enterprise, runs[retried.enterprise], DOWNGRADE).retry
    let_waits_pass(deps.database)
    lms.faults(Fault(kind="downgrade", enterprise=str(failing.enterprise), status=401))
    for step in STEPS:
        attempt(deps, retried.enterprise, runs[retried.enterprise], step)
    with pytest.raises(Exception, match="401"):
        attempt(deps, failing.enterprise, runs[failing.enterprise], DOWNGRADE)
    attempt(deps, live.enterprise, runs[live.enterprise], DOWNGRADE)

    night = run_of(deps.database, runs[fine.enterprise])
    assert night.scheduled_for is not None
    html = pages.night_page(deps.database, history.night_key(night.scheduled_for))
    shown = lines(html)
    assert list(shown)[:2] == [str(failing.enterprise), str(live.enterprise)]
    assert list(shown)[-1] == str(fine.enterprise)
    for each in (fine, retried, holding):
        bars = BAR.findall(shown[str(each.enterprise)])
        assert [lane for lane, _ in bars if lane == "s1"] == ["s1"], "one unlink"
        assert max(float(x) for lane, x in bars if lane == "s0") <= float(bars[-1][1])
        assert bars[-1][0] == "s1"
    assert BAR.findall(shown[str(failing.enterprise)])[-1][0] == "s0"
    assert "Failed: the LMS answered 401" in shown[str(failing.enterprise)]
    assert "#failed" in shown[str(failing.enterprise)]
    assert "#retry" in shown[str(retried.enterprise)]
    assert "the LMS answered 503, downgrade retried at" in shown[str(retried.enterprise)]
    assert "1 license held" in shown[str(holding.enterprise)]
    assert "Downgraded for" in shown[str(live.enterprise)]
    assert 'data-again="yes"' in html
    report = pages.night_file(deps.database, None)
    assert lines(report).keys() == shown.keys()
    assert "<script" not in report
    assert "href=" not in re.sub(r'href="(#|data:)', "", report)

    texts = {"night": html, "report": report, "nights": pages.nights_page(deps.database, never)}
    texts |= {str(run_id): pages.run_page(deps.database, str(run_id)) for run_id in runs.values()}
    assert scan(texts, deps.database.engine) == []
    assert not [name for name, text in texts.items() if "@" in text.replace("@media", "")]
    for enterprise, run_id in runs.items():
        ended = enterprise != live.enterprise
        assert (f"license-expiry run --enterprise {enterprise}<" in texts[str(run_id)]) is ended
    assert str(holding.licenses[0]) in texts[str(runs[holding.enterprise])]
    leaves_out = {run_id for run_id in runs.values() if "It leaves out the held licenses" in texts[str(run_id)]}
    assert leaves_out == {runs[holding.enterprise]}
    assert "http_503" in texts[str(runs[retried.enterprise])]
    assert re.search(r"http_200</code></td>", texts[str(runs[fine.enterprise])])
    assert "1 enterprise failed</b>: the LMS answered 401" in texts["nights"]
    assert "1 license held" in texts["nights"]
    now = deps.database.now()
    with deps.database.engine.begin() as connection:
        night_without_it = {"scheduled_for": now, "opened_at": now, "lease_until": None, "tries": 1}
        connection.execute(insert(Night).values(night_without_it))
    assert "enterprise failed" not in pages.nights_page(deps.database, never), "a later night had nothing of it"


@ON_SQLITE
def test_what_an_operator_wrote_is_shown_as_text(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=1)
    deps = make_test_deps()
    run_id = open_one(deps, laid.enterprise, force=True, reason="<script>alert(1)</script>", dry_run=True)
    html = pages.run_page(deps.database, str(run_id))
    assert "yes: &lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "<script>" not in html
    assert "dry run: nothing was sent" in html
    assert "dry run" in pages.nights_page(deps.database, never)


@ON_SQLITE
def test_a_night_without_work_one_by_hand_and_none_at_all(engine: Engine) -> None:
    database = Database(engine)
    with pytest.raises(BadArgument, match="no night yet"):
        pages.night_file(database, None)
    assert "There was no night in the last 31 days" in pages.nights_page(database, never)
    assert "Beat is silent" not in pages.nights_page(database, never), "a new ledger alarms nobody"
    now = database.now()
    with engine.begin() as connection:
        connection.execute(update(Heartbeat).values(reconciled_at=now - 2 * matters.SILENT))
    assert "Beat is silent</b> since" in pages.nights_page(database, never)
    night = {"scheduled_for": now, "opened_at": now, "lease_until": None}
    with engine.begin() as connection:
        connection.execute(insert(Night).values(night | {"tries": 0}))
        connection.execute(update(Heartbeat).values(reconciled_at=now))
    with pytest.raises(BadArgument):  # it was only noted as before the ledger's time
        pages.night_page(database, history.night_key(now))
    with engine.begin() as connection:
        connection.execute(update(Night).values(tries=1))
    assert "Nothing was due." in pages.night_page(database, history.night_key(now))
    shown = pages.nights_page(database, lambda moment: moment + timedelta(hours=4))
    assert "nothing was due" in shown
    assert "No problems now" in shown
    assert "begins in 4 h" in shown
    for wrong in ("x", "2026-01-31T020000Z", "../..", "1" * 500):
        with pytest.raises(BadArgument):
            pages.night_page(database, wrong)
        with pytest.raises(BadArgument):
            pages.run_page(database, wrong)
    with pytest.raises(BadArgument):
        pages.run_page(database, str(uuid4()))


@ON_SQLITE
def test_a_run_of_before_times_were_kept_is_shown_without_bars(engine: Engine) -> None:
    past = lay_past(engine, 1, trouble=0)
    with engine.begin() as connection:
        columns = ("scheduled_for", "downgrade_began_at", "downgraded_at", "unlink_began_at")
        connection.execute(update(Run).values(dict.fromkeys(columns)))
        connection.execute(delete(Night))
    html = pages.night_file(Database(engine), None)
    assert "the times of its steps were not recorded" in lines(html)[str(past.enterprises[0])]
    assert BAR.findall(lines(html)[str(past.enterprises[0])]) == []
    assert "By hand, " in html


@pytest.mark.long
def test_a_month_of_a_thousand_enterprises_takes_the_statements_of_one_and_none_over_licenses(tmp_path: Path) -> None:
    said, of_run = {}, {}
    for size, nights in ((1, 1), (1_000, 30)):
        engine = make_engine(f"sqlite:///{tmp_path}/{size}.sqlite3")
        create_tables(engine, "char32")
        migrations.upgrade(engine)
        past = lay_past(engine, size, nights, trouble=0.02 if size > 1 else 1)
        database = Database(engine)
        [run, *_] = rows(engine, Run) if size == 1 else history.one_night(database, None).runs
        run_id = str(run["id"] if isinstance(run, dict) else run.id)
        with statements(engine) as each:
            html = pages.nights_page(database, never)
            night = pages.night_page(database, history.night_key(past.last))
            pages.enterprise_page(database, never, str(past.enterprises[0]))
            pages.grid_page(database)
        said[size] = each
        with statements(engine) as each:
            pages.run_page(database, run_id)
        of_run[size] = each
        assert html.count('href="nights/') == nights
        assert len(lines(night)) == size
        engine.dispose()
    assert len(said[1]) == len(said[1_000])
    assert len(of_run[1]) == len(of_run[1_000])
    assert not [each for each in said[1_000] if "subscriptions_license" in each or "subscriptions_subscription" in each]


def test_each_question_is_answered_on_each_engine(engine: Engine) -> None:
    past = lay_past(engine, 12, nights=2, trouble=0.4, live=1)
    database = Database(engine)
    seen = matters.overview(database)
    [newest, before] = seen.nights
    assert (newest.moment, newest.enterprises, newest.live) == (past.last, 12, 1)
    assert newest.finished + newest.failed + newest.live == before.enterprises == 12
    assert seen.failed_runs == len(seen.failed["http_403"]) == newest.failed > 0
    assert {failed.enterprise for failed in seen.failed["http_403"][: matters.MOST_NAMED]} == seen.names.keys()
    assert seen.live_since is not None
    one = history.one_night(database, history.night_key(past.last))
    assert {run.enterprise_customer_uuid for run in one.runs} == set(past.enterprises) == one.names.keys()
    assert sum(map(len, one.retries.values())) == sum(run.retries for run in one.runs) == newest.retries > 0
    for run in one.runs:
        of_run = one_run(database, run.id)
        assert [len(of_run.held), len(of_run.others)] == [run.licenses_held, 1]
        assert [(call[2], round(call[3], 1)) for call in of_run.calls] == [(4, 6.1)]
        assert run.phase == Phase.FAILED or run.downgrade_began_at is not None
    history.check_ledger(database)


@ON_SQLITE
def test_a_heartbeat_that_is_gone_is_reported_and_reconcile_brings_it_back(engine: Engine) -> None:
    database = Database(engine)
    database.transact(lambda session: session.execute(delete(Heartbeat)))
    with pytest.raises(Unusable, match="license_expiry_heartbeat has lost its row: start beat and a worker"):
        matters.overview(database)
    record_heartbeat(database)
    assert matters.overview(database).reconciled_at


@ON_SQLITE
def test_a_ledger_of_another_release_and_a_database_that_is_unreachable_are_reported(database_url: str) -> None:
    engine = make_engine(database_url)
    create_tables(engine, "char32")
    for ask in (history.check_ledger, matters.overview):
        with pytest.raises(Unusable, match="init-db"):
            ask(Database(engine))
    engine.dispose()
    away = Database(make_engine("postgresql+psycopg://nobody:hush@127.0.0.1:9/nothing"))
    with pytest.raises(Unusable, match="cannot be used") as told:
        history.check_ledger(away)
    assert "hush" not in str(told.value)
