"""A night as an operator has it in Flower: started over its HTTP API, looked at in a real Chromium."""

import re
from typing import Any
from uuid import UUID

import pytest
import redis
import requests
from playwright.sync_api import Error, Page, expect
from sqlalchemy import Engine
from support.browser import chromium, operators_page, screenshot
from support.eventually import eventually
from support.processes import OPERATOR, WORKER_SQLITE, lay, listed, read, runs
from support.runs import rows as read_rows, scan, sent

from simulator.data.rows import Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.ledger.order import Phase


@WORKER_SQLITE
def test_a_night_is_started_from_flower_and_seen_in_a_browser(
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    worker: Any,
    redis_server: redis.Redis,
    flower: str,
) -> None:
    *well, away = lay(data, lms, enterprises=3)
    environment(TASK_RETRY_SECONDS=600, **listed(*well, away))
    lms.faults(Fault(enterprise=str(away), status=503, headers={"Retry-After": "5"}))  # so long do all wait
    worker(app="support.fast_app")

    assert trigger(flower, "run_nightly", dry_run=True)["state"] == "SUCCESS"
    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 3, what="the dry run")
    assert lms.calls("downgrade") == lms.calls("unlink") == []

    assert trigger(flower, "run_nightly")["state"] == "SUCCESS"
    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 5, what="the night, but for one enterprise")
    before = len(sent(lms, "downgrade"))
    forced = {"enterprise_customer_uuid": str(well[0]), "force": True, "reason": "the LMS lost its answers"}
    assert trigger(flower, "run_enterprise", **forced)["state"] == "SUCCESS"
    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 6, what="the forced run")
    assert len(sent(lms, "downgrade")) > before

    assert {run.triggered_by for run in runs(engine)} == {"operator in Flower"}

    bad = trigger(flower, "run_enterprise", enterprise_customer_uuid=str(well[0]), expired_after="yesterday")
    assert bad["state"] == "FAILURE"
    [retried] = eventually(lambda: read(f"{flower}/api/tasks?state=RETRY"), what="the step that is to come again")
    eventually(lambda: len(read(f"{flower}/api/tasks?state=SUCCESS")) == 15, what="Flower's having heard of all")

    shown = {}
    with chromium() as browser:
        with pytest.raises(Error, match="ERR_INVALID_AUTH_CREDENTIALS"):
            browser.new_page().goto(f"{flower}/tasks")
        page = operators_page(browser)
        page.goto(f"{flower}/tasks")
        shown["tasks"] = chains_in_order(page, engine)
        shown["retry"] = a_retried_task(page, flower, retried, name_of(engine, away))
        shown["bad argument"] = a_bad_argument(page, flower, bad["uuid"])
    for task in read(f"{flower}/api/tasks"):
        for what in ("info", "result"):
            shown[f"{what} {task}"] = requests.get(f"{flower}/api/task/{what}/{task}", auth=OPERATOR, timeout=10).text
    assert "learners_unlinked" in "".join(shown.values())
    left = redis_server.keys("*")
    assert left
    assert scan({**shown, "Redis": str([held_in(redis_server, key) for key in left])}, engine) == []


def trigger(flower: str, task: str, **names: Any) -> dict[str, Any]:
    """Start a task over Flower's HTTP API; give what Flower knows of it once it has ended."""
    address = f"{flower}/api/task/async-apply/license_expiry.{task}"
    answer = requests.post(address, json={"kwargs": names}, auth=OPERATOR, timeout=10)
    answer.raise_for_status()
    info = f"{flower}/api/task/info/{answer.json()['task-id']}"
    eventually(lambda: read(info).get("state") in ("SUCCESS", "FAILURE"), what=task)
    known: dict[str, Any] = read(info)
    return known


def chains_in_order(page: Page, engine: Engine) -> str:
    """The list of tasks, which says of each run that its downgrade came before its unlink."""
    names = [name_of(engine, run.enterprise_customer_uuid) for run in runs(engine)]

    def named() -> bool:
        page.reload()
        expect(page.locator("#tasks-table tbody tr")).to_have_count(15)  # of its first page
        return any(f"{name}/" in page.locator("#tasks-table tbody").inner_text() for name in names)

    eventually(named, what="the names, which are read in a thread")
    page.get_by_role("columnheader", name="Received").first.click()  # of two: the table scrolls under a copy
    page.locator("#tasks-table_length select").select_option("50")
    expect(page.locator("#tasks-table tbody tr")).to_have_count(17)
    rows = page.locator("#tasks-table tbody tr").all_inner_texts()
    for run in runs(engine, Phase.FINISHED):
        chain = [row for row in rows if f"{name_of(engine, run.enterprise_customer_uuid)}/{run.id}" in row]
        assert [re.findall(r"license_expiry\.(\w+)", row) for row in chain] == [
            ["downgrade_enrollments"],
            ["unlink_learners"],
        ]
    screenshot(page, "flower-tasks")
    return page.content()


def name_of(engine: Engine, enterprise: UUID) -> str:
    """The name of this customer, as license-manager has it."""
    found = read_rows(engine, "customeragreement")
    return next(str(row["enterprise_customer_name"]) for row in found if row["enterprise_customer_uuid"] == enterprise)


def a_retried_task(page: Page, flower: str, task: str, enterprise: str) -> str:
    """The one task among those retried: its enterprise, its reason and when it comes again, in the list and alone."""
    page.get_by_role("button", name="Retried").click()
    row = page.locator("#tasks-table tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text(re.compile(rf"{re.escape(enterprise)}/.*http_503, next try \d\d:\d\d:\d\d UTC: "))
    told = row.get_by_text("http_503, next try").bounding_box()
    assert told, "the reason and the next try"
    assert told["x"] + 250 < 1280, "are seen without scrolling"
    screenshot(page, "flower-retried")
    row.get_by_role("link", name=task).click()
    details = page.locator("#task-page")
    expect(details).to_contain_text(enterprise)
    expect(details).to_contain_text(
        re.compile(
            r"the LMS answered 503: look at the LMS; retried at \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC; .* \[http_503\]"
        )
    )
    screenshot(page, "flower-retry")
    return page.content()


def a_bad_argument(page: Page, flower: str, task: str) -> str:
    """The one failed task, whose exception is a sentence."""
    page.goto(f"{flower}/tasks?state=FAILURE")
    expect(page.locator("#tasks-table tbody tr")).to_have_count(1)
    page.get_by_role("link", name=task).click()
    expect(page.locator("#task-page")).to_contain_text("expired_after: must be a date-time such as 2026-")
    screenshot(page, "flower-bad-argument")
    return page.content()


def held_in(server: redis.Redis, key: Any) -> Any:
    """What Redis has under a key, whatever its type."""
    by_type: dict[bytes, Any] = {b"string": server.get, b"hash": server.hgetall, b"set": server.smembers}
    ranges: dict[bytes, Any] = {b"list": server.lrange, b"zset": server.zrange}
    kind: Any = server.type(key)
    return ranges[kind](key, 0, -1) if kind in ranges else by_type[kind](key)
