"""The first page says what is the matter now, by cause; the metrics count the same, and what was mended is gone."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, insert, update
from support.runs import (
    ON_EACH,
    ON_SQLITE,
    Make,
    attempt,
    finish,
    lapse,
    lay,
    let_waits_pass,
    open_one,
    unlinking,
)

from simulator.data.rows import Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db.ledger_tables import HeldLicense, Night, Run
from worker.db.transactions import Database
from worker.ledger import claims, waits
from worker.ledger.order import DOWNGRADE, Phase
from worker.web import html as pages, matters
from worker.web.metrics import Metrics

Fail = Callable[..., UUID]
FORBIDDEN = "the LMS answered 403: give the service user its role [http_403]"


def page_of(database: Database) -> str:
    """The first page's text: spaces and tags made one space."""
    shown = pages.nights_page(database, lambda _: None)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", shown))


@pytest.fixture
def lay_run(engine: Engine) -> Fail:
    """Puts a run of an enterprise into the ledger, opened so many minutes ago."""
    now = Database(engine).now()

    def one(enterprise: UUID, minutes: float, phase: Phase = Phase.FAILED, **columns: Any) -> UUID:
        opened, run_id = now - timedelta(minutes=minutes), uuid4()
        times = {"opened_at": opened, "triggered_at": opened, "as_of": opened, "ended_at": opened}
        row = {"id": run_id, "enterprise_customer_uuid": enterprise, "phase": phase, "dry_run": False, "force": False}
        if phase == Phase.FAILED:
            row["error"] = FORBIDDEN
        with engine.begin() as connection:
            connection.execute(insert(Run).values({**row, **times, **columns}))
        return run_id

    return one


@ON_EACH
def test_failed_enterprises_stand_by_reason_and_go_once_their_newest_run_has_ended_well(
    engine: Engine, lay_run: Fail
) -> None:
    database, data = Database(engine), Data(engine)
    one, two, three, four = (data.agreement(name=name).enterprise_customer_uuid for name in ("A", "B", "C", "D"))
    data.flush()
    shown = Metrics(database, None)  # type: ignore[arg-type]
    shown._due.latest = dict  # type: ignore[method-assign]

    def failed() -> dict[str, int]:
        seen = matters.overview(database)
        said = re.findall(r'failed_enterprises{reason="(\w+)"} (\d+)', shown.exposition().decode())
        counted = {reason: len(of_reason) for reason, of_reason in seen.failed.items()}
        assert counted == {reason: int(number) for reason, number in said}
        return counted

    for enterprise in (one, two):
        lay_run(enterprise, 60)
    lay_run(three, 60, error="1,200 learners are due to be unlinked [needs_approval]")
    lay_run(four, 60, Phase.ABANDONED, error="given up while downgrading")
    lay_run(uuid4(), 60, dry_run=True)
    assert failed() == {"http_403": 2, "needs_approval": 1, "abandoned": 1}
    text = page_of(database)
    assert re.search(r"2 enterprises failed : the LMS answered 403: give the service user its role \[http_403\]", text)
    assert "1 enterprise needs approval : 1,200 learners" in text
    assert "1 enterprise failed : given up while downgrading" in text
    assert all(f"{name} " in text for name in "ABCD")
    assert text.index("2 enterprises failed") < text.index("1 enterprise needs approval")

    lay_run(one, 30, Phase.FINISHED)
    lay_run(two, 30, Phase.STOPPED)
    again = lay_run(three, 30, Phase.QUEUED, live=three, ended_at=None)
    assert failed() == {"needs_approval": 1, "abandoned": 1}, "a run that is only live has mended nothing yet"
    assert "a new run is live" in page_of(database)
    now = database.now()
    night = {"scheduled_for": now, "opened_at": now, "lease_until": None, "tries": 1}
    with engine.begin() as connection:
        connection.execute(insert(Night).values(night))
    assert failed() == {"needs_approval": 1}, "the night found nothing due of the other"
    with engine.begin() as connection:
        ended = {"phase": Phase.FINISHED, "live": None, "ended_at": now}
        connection.execute(update(Run).where(Run.id == again).values(ended))
    assert failed() == {}
    assert "No problems now" in page_of(database)


@ON_SQLITE
def test_of_many_that_failed_the_first_are_named(engine: Engine, lay_run: Fail) -> None:
    for number in range(14):
        lay_run(uuid4(), 10 + number, error=f"an error of our own, number {number}")
    shown = pages.nights_page(Database(engine), lambda _: None)
    assert "14 enterprises failed</b>: another reason" in shown
    assert shown.count("an enterprise without a name") == 10
    assert "and 4 more" in shown
    assert "an error of our own, number 3" in shown


@ON_SQLITE
def test_an_outage_is_one_sentence_and_a_wait_of_a_runs_own_another(
    engine: Engine, lms: Simulator, make_test_deps: Make
) -> None:
    laid = [lay(lms, licenses=1, seed=seed) for seed in range(1, 4)]
    deps = make_test_deps(TASK_MAX_RETRIES=5)
    runs = [open_one(deps, each.enterprise) for each in laid]
    lms.faults(Fault(kind="downgrade", status=503))
    for each, run_id in zip(laid, runs, strict=True):
        assert attempt(deps, each.enterprise, run_id, DOWNGRADE).retry
    text, time = page_of(deps.database), r"[\d:]{8} UTC"
    assert "Problems now" in text
    assert re.search(
        rf"LMS unavailable since 20[\d-]+ {time} \(the LMS answered 503\), 3 runs wait, next try (\S+ )?{time}, "
        r"first run fails 20[\d-]+ [\d:]+ UTC\. \d+ failed tr",
        text,
    ), text
    assert "runs wait :" not in text, "it is told once"
    waits.end_outage(deps.database)
    text = page_of(deps.database)
    assert "LMS unavailable" not in text
    assert re.search(r"3 runs wait : the LMS answered 503; next try .* UTC, first run fails 20\S+ \S+ UTC\.", text)
    assert "To check" in text
    let_waits_pass(deps.database)
    lms.faults()
    for each, run_id in zip(laid, runs, strict=True):
        finish(deps, each.enterprise, run_id)
    assert "No problems now" in page_of(deps.database)


@ON_SQLITE
def test_held_a_pause_and_a_lost_worker_are_to_be_looked_at_and_are_no_trouble(
    engine: Engine, lms: Simulator, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=2)
    deps = make_test_deps(**unlinking(laid.enterprise))
    now = deps.database.now()
    held = {
        "run_id": uuid4(),
        "step": "downgrade",
        "reason": "http_422",
        "tries": 1,
        "first_held_at": now,
        "as_of": now,
    }
    with engine.begin() as connection:
        for _ in range(3):
            row = {"license_uuid": uuid4(), "enterprise_customer_uuid": uuid4(), **held}
            connection.execute(insert(HeldLicense).values(row))
    run_id = open_one(deps, laid.enterprise)
    claims.claim(deps.database, run_id, laid.enterprise, DOWNGRADE, "a worker", 300)
    lapse(engine, run_id)
    waits.pause(deps.database, "ops on host", "an upgrade")
    text = page_of(deps.database)
    assert "3 licenses held in downgrade, of 3 enterprises: the LMS answered 422" in text
    assert "1 run has lost its worker" in text
    assert "Everything is paused" in text
    assert "To check" in text
    shown = pages.nights_page(deps.database, lambda _: None)
    assert 'class="bad"' not in shown
