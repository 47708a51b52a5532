"""An operator without a shell, in a browser: from the front page to the cause, and from there to what sets it right."""

import re
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import Engine
from support.browser import chromium, operators_page, screenshot
from support.eventually import eventually
from support.processes import COMMAND, WORKER_SQLITE, ended, listed, runs
from support.runs import sent

from simulator.data.rows import DAY, Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port, listens
from worker.ledger.order import Phase


@pytest.mark.long
@WORKER_SQLITE
def test_an_outage_an_approval_a_forced_run_and_a_mistake(
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    worker: Any,
    beat: Any,
    request: Any,
    processes: Processes,
) -> None:
    enterprises = {}
    for name, licenses in (("Acme", 2), ("Bulk", 5), ("Cordoba", 3)):
        agreement = data.agreement(name=name)
        plan = data.plan(agreement, expires=data.now - 100 * DAY, title=f"{name}'s plan")
        for _ in range(licenses):
            data.license(plan)
        enterprises[name] = agreement.enterprise_customer_uuid
    data.flush()
    lms.seed()
    port = free_port()
    serve = f"http://127.0.0.1:{port}"
    settings = {"UNLINK_LIMIT": 4, "TASK_RETRY_SECONDS": 5, "SERVE_URL": serve, **listed(*enterprises.values())}
    environment(**settings)
    flower = request.getfixturevalue("flower")
    environment(**settings, FLOWER_URL=flower)
    processes.start("serve", [*COMMAND, "serve", "--port", str(port)], lambda: listens(port))
    lms.faults(Fault(status=503))
    worker(app="support.fast_app")
    beat()
    with chromium() as browser:
        page = operators_page(browser)
        start_the_night(page, flower)
        eventually(lambda: len(runs(engine)) == 3 and all(run.waits_for for run in runs(engine)), what="the outage")
        an_outage_is_seen(page, serve)
        lms.faults()
        eventually(lambda: ended(engine), seconds=90, what="the night, once the LMS is back")
        one_is_approved(page, serve)
        eventually(lambda: all(run.phase == Phase.FINISHED for run in runs(engine)[3:]) and len(runs(engine)) == 4)
        one_is_forced(page, serve)
        eventually(lambda: len(runs(engine, Phase.FINISHED)) == 4, what="the forced run")
        lms.faults(Fault(kind="downgrade", status=503))
        one_is_stopped(page, serve, flower)
        [stopped] = eventually(lambda: runs(engine, Phase.STOPPED), what="the stop")
        lms.faults()
        page.goto(f"{serve}/runs/{stopped.id}")
        expect(page.get_by_text("Stopped by operator in Flower: the wrong customer").first).to_be_visible()
        screenshot(page, "operator-8-stopped")
    forced, approved = runs(engine)[-2], runs(engine)[3]
    assert (approved.approve_unlinks, approved.learners_unlinked, approved.reason) == (5, 5, "contract ended")
    assert (forced.force, forced.enterprise_customer_uuid) == (True, enterprises["Acme"])
    assert stopped.enterprise_customer_uuid == enterprises["Cordoba"]
    assert len(sent(lms, "unlink", status=200)) == 3


def confirm(page: Page) -> None:
    """Preview the form, and start what it asks for."""
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name="Start it").click()
    expect(page.get_by_role("heading", name=re.compile("^Started: "))).to_be_visible()


def start_the_night(page: Page, flower: str) -> None:
    page.goto(flower)
    page.get_by_role("link", name="Runs", exact=True).click()
    page.get_by_role("link", name="Start the whole night").click()
    confirm(page)


def an_outage_is_seen(page: Page, serve: str) -> None:
    page.goto(serve)
    told = page.get_by_text(
        re.compile(r"LMS unavailable since [-:\d ]+ UTC .*, 3 runs wait, next try [:\d]+ UTC, first run fails")
    )
    expect(told.first).to_be_visible()
    screenshot(page, "operator-1-outage")


def one_is_approved(page: Page, serve: str) -> None:
    page.goto(serve)
    expect(page.get_by_text("1 enterprise needs approval")).to_be_visible()
    expect(page.get_by_text("LMS unavailable")).to_have_count(0)
    screenshot(page, "operator-2-needs-approval")
    page.get_by_role("link", name="its run failed").click()
    page.get_by_role("link", name="Start it again in Flower").click()
    expect(page.get_by_text("Bulk").first).to_be_visible()
    page.get_by_label("Approve this many unlinks").fill("5")
    page.get_by_label("Why; kept in the ledger").fill("contract ended")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_text("You approve 5.")).to_be_visible()
    screenshot(page, "operator-3-approval")
    page.get_by_role("button", name="Start it").click()
    expect(page.get_by_text("unlink: ended at")).to_be_visible(timeout=30_000)
    page.goto(serve)
    expect(page.get_by_text("No problems now")).to_be_visible()
    screenshot(page, "operator-4-no-trouble")


def one_is_forced(page: Page, serve: str) -> None:
    page.goto(serve)
    page.get_by_role("link", name="Enterprises").click()
    page.get_by_label("Find an enterprise").fill("acm")
    page.get_by_role("button", name="Show").click()
    screenshot(page, "operator-5-grid")
    page.get_by_role("link", name="Acme").click()
    page.get_by_role("row", name=re.compile("finished")).first.get_by_role("link").first.click()
    page.get_by_role("link", name="Start it again in Flower").click()
    page.get_by_label("Force: send").check()
    page.get_by_label("Why; kept in the ledger").fill("the LMS was restored")
    page.get_by_role("button", name="Preview").click()
    screenshot(page, "operator-6-forced")
    page.get_by_role("button", name="Start it").click()
    expect(page.get_by_text("unlink: ended at")).to_be_visible(timeout=30_000)


def one_is_stopped(page: Page, serve: str, flower: str) -> None:
    page.goto(f"{flower}/license-expiry?find=cord")
    page.get_by_label("Force: send").check()
    page.get_by_label("Why; kept in the ledger").fill("a trial")
    confirm(page)
    page.get_by_role("link", name="Stop it").click(timeout=20_000)
    page.get_by_label("Why; kept in the ledger").fill("the wrong customer")
    screenshot(page, "operator-7-stop")
    page.get_by_role("button", name="Stop it").click()
