"""What Prometheus is told is what the ledger holds."""

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, event, text, update
from support.eventually import eventually
from support.runs import (
    ON_EACH,
    ON_SQLITE,
    Make,
    attempt,
    finish,
    lay,
    let_waits_pass,
    open_one,
    opened_run,
    ready,
    rows,
    scan,
    start,
    unlinking,
)

from simulator.data.rows import DAY, NEXT_EMAIL, Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db.ledger_tables import Heartbeat, HeldLicense, LmsCall, Retry, Run
from worker.db.transactions import Database
from worker.deps import Deps
from worker.due.forecast import PlanRow, plan_rows
from worker.due.scope import Scope
from worker.errors import Unusable
from worker.ledger import nights, runs
from worker.ledger.order import DOWNGRADE, ENDED, Phase
from worker.web import metrics
from worker.web.metrics import Metrics

pytestmark = pytest.mark.usefixtures("all_counted")

DOCS = Path(__file__).parents[3] / "docs/reference/metrics.md"
Samples = dict[tuple[Any, ...], float]


@pytest.fixture
def deps(make_test_deps: Make) -> Deps:
    return make_test_deps(TASK_MAX_RETRIES=5)


@pytest.fixture
def shown(deps: Deps) -> Metrics:
    return Metrics(deps.database, deps.settings)


def scrape(shown: Metrics) -> Samples:
    """Each sample, by its name without our prefix and its labels' values in the order of their names."""
    families = text_string_to_metric_families(shown.exposition().decode())
    samples = [sample for family in families for sample in family.samples]
    return {
        (
            sample.name.removeprefix("license_expiry_"),
            *(value for _, value in sorted(sample.labels.items())),
        ): sample.value
        for sample in samples
    }


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """What this thread, and no other, asks the database."""
    asked: list[str] = []
    this = threading.get_ident()

    def hear(_: Any, __: Any, statement: str, *___: Any) -> None:
        if threading.get_ident() == this and not statement.startswith("BEGIN"):
            asked.append(statement)

    event.listen(engine, "before_cursor_execute", hear)
    yield asked
    event.remove(engine, "before_cursor_execute", hear)


@ON_EACH
def test_a_night_is_reported_as_the_ledger_has_it(
    engine: Engine, lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Data(engine)
    agreements = [data.agreement() for _ in range(4)]
    refused = {}
    for agreement in agreements:
        data.license(data.plan(agreement), "one@learners.example")
        plan = data.plan(agreement, expires=data.now - 100 * DAY)
        refused[agreement.enterprise_customer_uuid] = data.license(plan)
        for email in ("one@learners.example", NEXT_EMAIL, NEXT_EMAIL):
            data.license(plan, email)
    ready(data, lms)
    deps = make_test_deps(TASK_MAX_RETRIES=5, **unlinking(*(each.enterprise_customer_uuid for each in agreements)))
    shown = Metrics(deps.database, deps.settings)
    before = scrape(shown)
    assert before["ended_runs_total", "failed"] == before["downgraded_licenses_total",] == 0

    night = deps.database.now()
    assert nights.begin(deps.database, night)
    nights.opened(deps.database, night)
    first, second, third, fourth = start(deps)
    lms.faults(
        Fault(kind="downgrade", enterprise=str(first.enterprise), status=503, times=3),
        Fault(kind="downgrade", enterprise=str(second.enterprise), status=401),
        Fault(kind="downgrade", license=str(refused[third.enterprise]), status=422),
    )
    assert attempt(deps, first.enterprise, first.run_id, DOWNGRADE).retry
    let_waits_pass(deps.database)
    change(engine, Run, Run.id == first.run_id, opened_at=night - timedelta(minutes=30))
    told = scrape(shown)
    assert told["oldest_live_run_age_seconds",] >= 1800
    assert 0 < told["oldest_queued_run_age_seconds",] < 600
    for each in (first, second, third):
        finish(deps, each.enterprise, each.run_id)
    finish(deps, second.enterprise, open_one(deps, second.enterprise, dry_run=True))

    with statements(deps.database.engine) as asked:
        told = scrape(shown)
    assert 0 < len(asked) <= 11
    assert "subscriptions_" not in " ".join(asked)
    assert_as_the_ledger(told, engine)
    assert told["ended_runs_total", "failed"] >= 1
    assert told["live_runs", "queued"] == 1
    assert told["retries_total", "http_503", "downgrade"] == 1
    assert told["unlinked_licenses_total",] > 0
    assert told["last_finished_night_timestamp_seconds",] == pytest.approx(night.timestamp(), abs=60)
    assert sum(value for (name, *_), value in told.items() if name == "held_licenses") > 0
    assert scan({"metrics": shown.exposition().decode()}, engine) == []

    # What has settled is kept in the process, and what comes later is added to it.
    finish(deps, fourth.enterprise, fourth.run_id)
    monkeypatch.setattr(metrics, "SETTLED", timedelta())
    assert_as_the_ledger(scrape(shown), engine)
    (more,) = start(deps, lay(lms, seed=7).enterprise)
    finish(deps, more.enterprise, more.run_id)
    told = scrape(shown)
    assert_as_the_ledger(told, engine)
    change(engine, Run, Run.id == first.run_id, licenses_downgraded=100_000)  # as never happens
    assert counted(scrape(shown)) == counted(told)
    shown = Metrics(deps.database, deps.settings)
    assert_as_the_ledger(scrape(shown), engine)
    assert scrape(shown)["downgraded_licenses_total",] > 100_000


def change(engine: Engine, model: Any, which: Any, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(update(model).where(which).values(values))


def counted(told: Samples) -> Samples:
    """But for what changes as time goes by."""
    return {key: value for key, value in told.items() if not key[0].startswith("due_") and "age_" not in key[0]}


def assert_as_the_ledger(told: Samples, engine: Engine) -> None:
    """A plain reading of the ledger's rows comes to the same."""
    runs, real = rows(engine, Run), [run for run in rows(engine, Run) if not run["dry_run"]]
    want: Samples = dict.fromkeys((("live_runs", phase) for phase in Phase if phase not in ENDED), 0.0)
    want |= dict.fromkeys((("ended_runs_total", phase) for phase in ENDED), 0.0)
    want |= Counter(("live_runs", run["phase"]) for run in runs if run["live"])
    want |= Counter(("ended_runs_total", run["phase"]) for run in real if not run["live"])
    want["downgraded_licenses_total",] = sum(run["licenses_downgraded"] for run in real)
    want["unlinked_licenses_total",] = sum(run["learners_unlinked"] for run in real)
    want["protected_licenses_total",] = sum(run["learners_protected"] for run in real)
    want["steps_total", "downgrade"] = sum(run["downgrade_began_at"] is not None for run in runs)
    want["steps_total", "unlink"] = sum(run["unlink_began_at"] is not None for run in runs)
    want |= Counter(("retries_total", each["reason"], each["step"]) for each in rows(engine, Retry))
    want |= Counter(("held_licenses", each["reason"], each["step"]) for each in rows(engine, HeldLicense))
    calls = rows(engine, LmsCall)
    name = "lms_call_duration_seconds"
    for of in {(each["outcome"], each["step"]) for each in calls}:
        these = [each for each in calls if (each["outcome"], each["step"]) == of]
        want[f"{name}_sum", *of] = sum(each["seconds"] for each in these)
        want[f"{name}_count", *of] = sum(each["calls"] for each in these)
        for le in ("0.1", "0.25", "0.5", "1", "2.5", "5", "10", "30", "60", "120", "+Inf"):
            below = sum(each["calls"] for each in these if float(each["le"]) <= float(le))
            want[f"{name}_bucket", le, *of] = below
    names = {key[0] for key in want}
    assert {key: value for key, value in told.items() if key[0] in names} == pytest.approx(want)


@ON_SQLITE
def test_the_last_finished_night_is_the_newest_one_of_which_no_run_is_live(
    engine: Engine, deps: Deps, shown: Metrics
) -> None:
    def finished() -> float | None:
        return scrape(shown)["last_finished_night_timestamp_seconds",]

    def known_since() -> float | None:
        return scrape(shown).get(("first_night_timestamp_seconds",))

    now = deps.database.now()
    noted, nothing_due, newest = (now.replace(microsecond=0) - timedelta(days=days) for days in (3, 2, 1))
    assert (finished(), known_since()) == (0, None)
    assert nights.note_and_find_overdue(deps.database, noted) == []
    assert finished() == 0
    assert known_since() == pytest.approx(now.timestamp(), abs=60)

    assert nights.begin(deps.database, nothing_due)
    assert finished() == 0
    nights.opened(deps.database, nothing_due)
    begun = finished()
    assert begun == pytest.approx(now.timestamp(), abs=60)

    assert nights.begin(deps.database, newest)
    ends = []
    for minutes in (50, 90):
        opened = opened_run(deps.database, uuid4(), now, scheduled_for=newest)
        ends.append((opened.run_id, now + timedelta(minutes=minutes)))
    nights.opened(deps.database, newest)
    for run_id, ended_at in ends:
        assert finished() == begun
        change(engine, Run, Run.id == run_id, live=None, phase=Phase.FAILED, ended_at=ended_at)
    assert finished() == pytest.approx(ends[1][1].timestamp(), abs=0.001)
    change(engine, Heartbeat, Heartbeat.id == 1, reconciled_at=now - timedelta(days=1))
    assert scrape(shown)["last_reconcile_timestamp_seconds",] < now.timestamp() - 86_000
    nights.record_heartbeat(deps.database)
    assert scrape(shown)["last_reconcile_timestamp_seconds",] == pytest.approx(now.timestamp(), abs=60)


@ON_SQLITE
def test_the_work_due_is_counted_beside_the_scrapes_and_seldom(
    lms: Simulator, make_test_deps: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = lay(lms, licenses=5)
    deps = make_test_deps(**unlinking(laid.enterprise))
    shown = Metrics(deps.database, deps.settings)
    go_on, counts = threading.Event(), []

    def slow(database: Database, scope: Scope, *, detailed: bool) -> list[PlanRow]:
        counts.append(scope)
        assert go_on.wait(30)
        return plan_rows(database, scope, detailed=detailed)

    monkeypatch.setattr(metrics, "plan_rows", slow)
    for _ in range(2):
        assert not [key for key in scrape(shown) if key[0].startswith("due_")]
    go_on.set()
    eventually(lambda: ("due_enterprises",) in scrape(shown))
    told = scrape(shown)
    assert [told[f"due_{what}",] for what in ("enterprises", "downgrades", "unlinks")] == [1, 5, 5]
    assert told["due_counted_timestamp_seconds",] == counts[0].as_of.timestamp()
    assert len(counts) == 1

    monkeypatch.setattr(metrics, "DUE_SECONDS", 0.0)
    shown = Metrics(deps.database, deps.settings)
    open_one(deps, laid.enterprise)
    eventually(lambda: scrape(shown) and len(counts) > 2, what="a new count once the last one is old")


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_a_ledger_that_cannot_be_read_is_reported_and_not_made_up(engine: Engine, shown: Metrics) -> None:
    assert scrape(shown)["build_info", version("license-expiry")] == 1
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE license_expiry_retry"))
    with pytest.raises(Unusable, match="table license_expiry_retry is missing: run license-expiry init-db"):
        scrape(shown)


@ON_SQLITE
def test_every_metric_is_in_the_docs_with_its_type_and_labels(
    engine: Engine, lms: Simulator, deps: Deps, shown: Metrics
) -> None:
    laid = lay(lms)
    lms.faults(Fault(kind="downgrade", status=503, times=3))
    run_id = open_one(deps, laid.enterprise)
    assert attempt(deps, laid.enterprise, run_id, DOWNGRADE).retry
    lms.faults(Fault(kind="downgrade", license=str(laid.licenses[0]), status=422))
    finish(deps, laid.enterprise, run_id)
    waits = lay(lms, seed=2)
    lms.faults(Fault(kind="downgrade", status=503))
    assert attempt(deps, waits.enterprise, open_one(deps, waits.enterprise), DOWNGRADE).retry
    nights.note_and_find_overdue(deps.database, deps.database.now())
    runs.record_refusal(deps.database, uuid4(), deps.database.now(), "the LMS answered 403 [http_403]")
    eventually(lambda: ("due_enterprises",) in scrape(shown))

    told = shown.exposition().decode()
    families = {family.name: family for family in text_string_to_metric_families(told)}
    table = re.findall(r"^\| `(license_expiry_\w+)` \| (\w+) \|([^|]*)\|", DOCS.read_text(), flags=re.MULTILINE)
    documented = {name.removesuffix("_total"): (kind, set(re.findall(r"\w+", labels))) for name, kind, labels in table}
    assert documented == {
        name: (family.type, {label for sample in family.samples for label in sample.labels} - {"le"})
        for name, family in families.items()
    }, "run: make reference"
    assert all(name.endswith("_total") == (kind == "counter") for name, kind, _ in table)
    without = [name for name, family in families.items() if not family.samples]
    assert not without, "these have no value: see _read and _zeros of metrics.py, and sums of past.py"
