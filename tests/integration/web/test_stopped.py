"""What the pages and the metrics tell of a pause, of nights that it held back, and of runs that were stopped."""

import re
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, update
from support.runs import ON_SQLITE, Make, lapse, lay, open_one, run_of

from simulator.lms.server import Simulator
from worker.db.ledger_tables import Night
from worker.ledger import claims, nights, runs, waits
from worker.ledger.order import DOWNGRADE
from worker.web import history, html as pages
from worker.web.metrics import Metrics

pytestmark = ON_SQLITE

METRIC = re.compile(r"^license_expiry_paused_since_timestamp_seconds (\S+)$", re.MULTILINE)


def never(_: Any) -> None:
    return None


def test_a_pause_is_trouble_and_a_gauge_and_the_nights_that_it_holds_back_are_reported(
    engine: Engine, lms: Simulator, make_test_deps: Make
) -> None:
    deps = make_test_deps()
    shown = Metrics(deps.database, deps.settings)

    def paused_since() -> float:
        [value] = METRIC.findall(shown.exposition().decode())
        return float(value)

    assert (paused_since(), "No problems now" in pages.nights_page(deps.database, never)) == (0, True)
    pause = waits.pause(deps.database, "ops on host", "<b>an upgrade</b>")
    assert paused_since() == pause.since.timestamp()
    now = deps.database.now().replace(microsecond=0)
    for days in (2, 1):
        nights.note(deps.database, now - timedelta(days=days))
    page = pages.nights_page(deps.database, never)
    assert "To check" in page
    assert "Problems now" not in page, "a pause is somebody's wish"
    assert re.search(r"Everything is paused</b> since .*, by ops on host: &lt;b&gt;an upgrade", page)
    assert page.count("begins after the pause") == 2
    assert 'href="nights/' not in page, "there is nothing to be seen of these yet"
    waits.resume(deps.database)
    assert nights.note_and_find_overdue(deps.database, now - timedelta(days=1)) == [now - timedelta(days=1)]
    with engine.begin() as connection:
        connection.execute(update(Night).where(nights.HELD_BACK).values(tries=1, lease_until=None))
    page = pages.nights_page(deps.database, never)
    assert ("paused</b>" in page, page.count("skipped: everything was paused")) == (False, 1)
    assert page.count('href="nights/') == 1
    assert paused_since() == 0


def test_stopped_runs_are_reported_with_who_and_why_and_are_no_failures(
    engine: Engine, lms: Simulator, make_test_deps: Make
) -> None:
    laid = [lay(lms, licenses=2, seed=seed) for seed in (1, 2, 3)]
    deps = make_test_deps()
    queued, at_work, lost = (open_one(deps, each.enterprise) for each in laid)
    for each, run_id in zip(laid[1:], (at_work, lost), strict=True):
        claims.claim(deps.database, run_id, each.enterprise, DOWNGRADE, "a worker", 300)
    for run_id in (queued, at_work, lost):
        runs.stop_run(deps.database, run_id, "ops on host", "a wrong plan")
    lapse(engine, lost)
    told = {run_id: pages.run_page(deps.database, str(run_id)) for run_id in (queued, at_work, lost)}
    assert "Stopped by ops on host: a wrong plan" in told[queued]
    assert 'class="panel bad"' not in told[queued]
    assert "Downgrading, ends before its next LMS call: stopped by ops on host: a wrong plan" in told[at_work]
    assert "ends the run, which was stopped" in told[lost]
    night = pages.night_page(deps.database, history.night_key(run_of(deps.database, queued).triggered_at))
    assert "Stopped by an operator: 1" in night
    assert "#stopped" in night
    assert "Failed or abandoned" not in night
    overview = pages.nights_page(deps.database, never)
    assert "1 stopped</span>" in overview
    assert "enterprise failed" not in overview
    exposed = Metrics(deps.database, deps.settings).exposition().decode()
    assert 'license_expiry_ended_runs_total{phase="stopped"} 1.0' in exposed
    assert 'license_expiry_ended_runs_total{phase="failed"} 0.0' in exposed
