"""Runs started, previewed, stopped and started again from our pages in a real Flower, in a real Chromium."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from typing import Any
from uuid import UUID, uuid4

import pytest
import requests
from playwright.sync_api import Page, expect
from sqlalchemy import Engine
from support.browser import chromium, operators_page, screenshot, violations
from support.eventually import eventually
from support.processes import CELERY, OPERATOR, WORKER_SQLITE, ended, listed, read, runs
from support.runs import rows, sent, times_sent
from tornado.web import create_signed_value

from simulator.data.rows import DAY, Agreement, Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port, listens
from worker.db.ledger_tables import Wait
from worker.ledger.order import Phase

pytestmark = WORKER_SQLITE


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of a browser that knows the operator's password."""
    with chromium() as browser:
        yield operators_page(browser)


def seen(page: Page, name: str, within: str = ".runs") -> None:
    """Keep what the page looks like; nothing of ours keeps anybody from using it, also where the screen is narrow."""
    screenshot(page, name)
    wide = page.viewport_size
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360, f"{name} is wider than a telephone"
    assert violations(page, within) == [], name
    assert wide
    page.set_viewport_size(wide)


def lay_two(data: Data, lms: Simulator) -> tuple[UUID, UUID]:
    """Two customers with a name; the first has an old plan and a newer one."""
    made = []
    for name, titles in (("Acme & Söhne", ("Old", "Newer")), ("Bolt", ("Only",))):
        agreement = data.agreement(name=name)
        for number, title in enumerate(titles):
            plan = data.plan(agreement, expires=data.now - (100 - 60 * number) * DAY, title=f"{title} <plan>")
            for _ in range(4):
                data.license(plan)
        made.append(agreement.enterprise_customer_uuid)
    data.flush()
    lms.seed()
    return made[0], made[1]


@pytest.mark.long
def test_a_run_is_chosen_previewed_started_and_started_again(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, request: Any, page: Page
) -> None:
    acme, bolt = lay_two(data, lms)
    environment(SERVE_URL="http://127.0.0.1:8001/", **listed(acme, bolt))
    flower = request.getfixturevalue("flower")
    worker(app="support.fast_app")

    page.goto(f"{flower}/")
    page.get_by_role("link", name="Runs", exact=True).click()
    seen(page, "runs-choose")
    page.get_by_label("Enterprise: its name").fill("söh")
    page.get_by_role("button", name="Find").click()
    expect(page.get_by_text("Due now: 2 plans, 8 licenses to downgrade, 4 learners to unlink.")).to_be_visible()
    page.get_by_label("Only plans that expired at or after (UTC)").fill("yesterday")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_text("expired_after: must be a date-time such as")).to_be_visible()
    seen(page, "runs-wrong")

    page.get_by_label("Only plans that expired at or after (UTC)").fill("")
    page.get_by_label("Old <plan>").check()
    page.get_by_label("Why; kept in the ledger").fill("asked for by <b>support</b>")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_role("row", name=re.compile("^Old <plan>"))).to_contain_text("due")
    expect(page.get_by_role("row", name=re.compile("^Newer <plan>"))).to_have_count(0)
    seen(page, "runs-preview")
    assert runs(engine) == [], "a preview starts nothing"
    page.get_by_role("button", name="Start it").click()
    expect(page.get_by_text("unlink: ended at")).to_be_visible(timeout=20_000)  # by itself, the page not being reloaded
    seen(page, "runs-started")
    [run] = runs(engine, Phase.FINISHED)
    assert (run.enterprise_customer_uuid, run.licenses_downgraded, run.learners_unlinked) == (acme, 4, 4)
    assert page.get_by_role("link", name=str(run.id)).get_attribute("href") == f"http://127.0.0.1:8001/runs/{run.id}"
    assert (run.triggered_by, run.reason) == ("operator in Flower", "asked for by <b>support</b>")

    page.get_by_role("link", name="Start it again").click()
    expect(page.get_by_label("Old <plan>")).to_be_checked()
    expect(page.get_by_label("Why; kept in the ledger")).to_have_value("asked for by <b>support</b>")
    page.get_by_label("Force: send").check()
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name="Start it").click()
    eventually(lambda: len(runs(engine, Phase.FINISHED)) == 2, what="the forced run")
    assert set(times_sent(lms, "downgrade").values()) == {2}
    again = runs(engine)[1]
    assert (again.force, again.plan_uuids, again.reason) == (True, run.plan_uuids, run.reason)


@pytest.mark.long
def test_a_failed_run_is_found_from_its_task_and_started_again_as_it_was(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, request: Any, page: Page
) -> None:
    acme, _ = lay_two(data, lms)
    environment(TASK_MAX_RETRIES=0, **listed(acme))
    flower = request.getfixturevalue("flower")
    worker(app="support.fast_app")
    lms.faults(Fault(kind="downgrade", status=401))
    page.goto(f"{flower}/license-expiry/start?enterprise={acme}")
    page.get_by_label("Newer <plan>").check()
    page.get_by_label("Only plans that expired at or before (UTC)").fill("2026-11-30T10:00:00.123456+01:00")
    page.get_by_label("Force: send").check()
    page.get_by_label("Why; kept in the ledger").fill("a trial")
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name="Start it").click()
    [failed] = eventually(lambda: runs(engine, Phase.FAILED), what="the run's failure")
    task = eventually(lambda: of_state(flower, "FAILURE"), what="Flower's having heard of it")
    page.goto(f"{flower}/task/{task}")
    seen(page, "runs-task", ".alert")
    page.get_by_role("link", name="Start this run again").click()
    expect(page.get_by_label("Only plans that expired at or before (UTC)")).to_have_value(
        "2026-11-30T09:00:00.123456+00:00"
    )
    lms.faults()
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name="Start it").click()
    [again] = eventually(lambda: runs(engine, Phase.FINISHED), what="the run, again")
    asked = ("force", "reason", "plan_uuids", "expired_after", "expired_before", "dry_run", "approve_unlinks")
    assert {name: getattr(again, name) for name in asked} == {name: getattr(failed, name) for name in asked}
    assert {len(batch) for batch in sent(lms, "downgrade")} == {4}, "of one plan of the two"


def of_state(flower: str, state: str) -> str | None:
    """The id of a step in this state, as Flower has heard of it."""
    found = read(f"{flower}/api/tasks?state={state}")
    return next((task for task, known in found.items() if "run_id" in str(known.get("kwargs"))), None)


@pytest.mark.long
def test_it_is_sent_twice_and_starts_one_run(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, request: Any
) -> None:
    acme, _ = lay_two(data, lms)
    environment(**listed(acme))
    flower = request.getfixturevalue("flower")
    given = previewed(flower, enterprise=str(acme), force="yes", reason="again")
    with ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda _: post_form(flower, "start", given), range(4)))
    assert {answer.status_code for answer in told} == {303}
    worker(app="support.fast_app")
    eventually(lambda: runs(engine, Phase.FINISHED), what="the run")
    to, before = (
        address.partition("&again")[0]
        for address in (post_form(flower, "start", given).headers["Location"], told[0].headers["Location"])
    )
    assert to == before
    eventually(lambda: len(read(f"{flower}/api/tasks?state=SUCCESS")) >= 3, what="all that was sent")
    assert len(runs(engine)) == 1
    assert set(times_sent(lms, "downgrade").values()) == {1}


@pytest.mark.parametrize("whole_night", [False, True], ids=["an enterprise", "the night"])
def test_what_has_changed_since_its_preview_is_shown_again_and_not_started(
    whole_night: bool, engine: Engine, data: Data, lms: Simulator, environment: Any, request: Any
) -> None:
    acme, _ = lay_two(data, lms)
    environment(**listed(acme))
    flower = request.getfixturevalue("flower")
    given = previewed(flower, enterprise="" if whole_night else str(acme))
    other = Data(engine, seed=9)
    agreement = other.agreement(name="New") if whole_night else Agreement(agreement_of(engine, acme), acme, "x.example")
    other.license(other.plan(agreement, expires=other.now - 3 * DAY))
    other.flush()
    told = post_form(flower, "start", given)
    assert told.status_code == 200
    assert "the due work changed since the last preview" in told.text
    assert post_form(flower, "start", fields_of(told.text)).status_code == 303, "what is shown now can be started"


def test_what_cannot_be_started_is_said(
    engine: Engine, data: Data, lms: Simulator, environment: Any, request: Any
) -> None:
    acme, _ = lay_two(data, lms)
    environment(**listed(acme))
    flower = request.getfixturevalue("flower")
    for given, complaint in (
        ({"force": "yes"}, "force needs a reason"),
        ({"approve_unlinks": "-3"}, "approve_unlinks: "),
        ({"approve_unlinks": "some", "reason": "x"}, "approve_unlinks: "),
        ({"approve_unlinks": "3"}, "approve_unlinks needs a reason"),
        ({"expired_before": "2999-01-01"}, "is in the future"),
        ({"plan": str(acme)}, f"plan {acme} is not a plan of enterprise"),
        ({"reason": "two\nlines"}, "must be one line of text"),
        ({"enterprise": str(uuid4())}, "has no customer agreement"),
        ({"enterprise": "acme"}, "enterprise is not a UUID"),
        ({"trigger": "mine"}, "trigger is not a UUID"),
    ):
        told = post_form(flower, "start", {"enterprise": str(acme), **given})
        assert (told.status_code, complaint in unescape(told.text)) == (400, True), (given, told.text)
    for path, said in (
        (f"start?again={uuid4()}", "The ledger has no run"),
        (f"stop?run={uuid4()}", "The ledger has no run"),
        ("started/0-0", "trigger is not a UUID"),
    ):
        told = requests.get(f"{flower}/license-expiry/{path}", auth=OPERATOR, timeout=10)
        assert (told.status_code, said in told.text) == (400, True), path
    assert runs(engine) == []


@pytest.mark.long
def test_a_run_is_stopped_and_everything_paused_and_resumed(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, request: Any, page: Page
) -> None:
    acme, bolt = lay_two(data, lms)
    environment(**listed(acme, bolt))
    flower = request.getfixturevalue("flower")
    worker(app="support.fast_app")
    lms.faults(Fault(status=503))
    page.goto(f"{flower}/license-expiry/start")
    page.get_by_role("button", name="Preview").click()
    expect(page.get_by_text("Enterprises with work due: 2.")).to_be_visible()
    page.get_by_role("button", name="Start it").click()
    eventually(lambda: all(run.waits_for for run in runs(engine)) and len(runs(engine)) == 2, what="both runs' waiting")
    page.goto(f"{flower}/license-expiry")
    expect(page.get_by_text("All runs wait for the LMS since")).to_be_visible()
    seen(page, "runs-outage")
    page.get_by_role("link", name="Stop the run of Bolt").click()
    page.get_by_role("button", name="Stop it").click()
    expect(page.get_by_text("reason must have 1 to 255 characters")).to_be_visible()
    page.get_by_label("Why; kept in the ledger").fill("a mistake")
    page.get_by_role("button", name="Stop it").click()
    [stopped] = eventually(lambda: runs(engine, Phase.STOPPED), what="the stop")
    assert (stopped.enterprise_customer_uuid, stopped.stopped_by, stopped.stop_reason) == (
        bolt,
        "operator in Flower",
        "a mistake",
    )
    page.get_by_role("link", name="Runs", exact=True).first.click()
    page.get_by_label("Why; kept in the ledger").fill("the LMS is upgraded")
    page.get_by_role("button", name="Pause everything").click()
    expect(page.get_by_text("Everything is paused since")).to_contain_text("operator in Flower: the LMS is upgraded")
    seen(page, "runs-paused")
    another = post_form(flower, "pause", {"resume": "2026-01-31T00:00:00+00:00"})
    assert (another.status_code, "nothing was resumed: everything is paused" in another.text) == (400, True)
    assert rows(engine, Wait), "an old page ends no pause that it did not show"
    lms.faults()
    page.get_by_role("button", name="End the pause of operator in Flower: the LMS is upgraded").click()
    expect(page.get_by_text("Everything is paused")).to_have_count(0)
    eventually(lambda: ended(engine), seconds=150, what="the other run")
    assert {run.phase for run in runs(engine)} == {Phase.STOPPED, Phase.FINISHED}


# How it is served


@pytest.mark.parametrize("option", ["", "--read_only=True"])
def test_no_other_page_of_a_browser_can_start_or_stop_anything(
    option: str, engine: Engine, data: Data, lms: Simulator, environment: Any, processes: Processes
) -> None:
    acme, _ = lay_two(data, lms)
    environment(**listed(acme))
    flower = start_flower(processes, *filter(None, [option]))
    if option:
        assert "read-only" in requests.get(f"{flower}/license-expiry", auth=OPERATOR, timeout=10).text
        refused: list[dict[str, str]] = [{}]
    else:
        foreign = [
            {"Origin": origin} for origin in ("http://elsewhere.example", "null", flower.replace("127.", "128."))
        ]
        refused = [*foreign, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}]
    given = {"enterprise": str(acme), "reason": "x", "run": str(acme)}
    for headers in refused:
        for path in ("start", "stop", "pause"):
            told = requests.post(
                f"{flower}/license-expiry/{path}", data=given, headers=headers, auth=OPERATOR, timeout=10
            )
            assert told.status_code == 403, (path, headers)
    answer = requests.get(f"{flower}/license-expiry", auth=OPERATOR, timeout=10)
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
    assert (rows(engine, Wait), runs(engine)) == ([], [])


def test_with_an_oauth_login_the_cookie_alone_starts_nothing_and_no_address_is_kept(
    engine: Engine, data: Data, lms: Simulator, environment: Any, processes: Processes, monkeypatch: Any
) -> None:
    acme, _ = lay_two(data, lms)
    environment(**listed(acme))
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "")
    login = ["--auth=.*@example.com", "--auth_provider=flower.views.auth.GithubLoginHandler", "--cookie_secret=ours"]
    flower = start_flower(processes, *login, "--oauth2_key=k", "--oauth2_secret=s", "--oauth2_redirect_uri=http://x")
    session = requests.Session()
    told = session.get(f"{flower}/license-expiry", allow_redirects=False, timeout=10)
    assert (told.status_code, told.headers["Location"].partition("?")[0]) == (302, "/login")
    session.cookies.set("user", create_signed_value("ours", "user", "ada.lovelace@example.com").decode())
    given = {"reason": "the LMS is upgraded"}
    assert session.post(f"{flower}/license-expiry/pause", data=given, timeout=10).status_code == 403
    assert rows(engine, Wait) == []
    with_token = given | fields_of(session.get(f"{flower}/license-expiry", timeout=10).text)
    assert session.post(f"{flower}/license-expiry/pause", data=with_token, timeout=10).status_code == 200
    assert [(wait["set_by"], wait["reason"]) for wait in rows(engine, Wait)] == [
        ("ada.lovelace in Flower", "the LMS is upgraded")
    ]


@pytest.mark.long
def test_it_works_under_a_prefix_without_javascript_on_a_telephone_and_by_keyboard(
    engine: Engine, data: Data, lms: Simulator, environment: Any, worker: Any, processes: Processes
) -> None:
    acme, _ = lay_two(data, lms)
    environment(**listed(acme))
    flower = start_flower(processes, "--url_prefix=tools/flower") + "/tools/flower"
    worker(app="support.fast_app")
    with chromium() as browser:
        page = operators_page(browser, 360, 740, java_script_enabled=False)
        page.goto(f"{flower}/license-expiry?find={acme.hex[:9]}")
        assert page.url == f"{flower}/license-expiry/start?enterprise={acme}", "only one matches"
        page.get_by_label("Dry run").focus()
        for key in ("Space", "Tab", "Tab", "Tab", "Tab", "Tab", "Tab", "Tab", "Enter"):
            page.keyboard.press(key)
        page.get_by_role("button", name="Start the dry run").press("Enter")
        assert "/tools/flower/license-expiry/started/" in page.url
        [run] = eventually(lambda: runs(engine, Phase.FINISHED), what="the dry run")
        page.get_by_role("link", name="Show it as it is now").press("Enter")
        expect(page.get_by_text("unlink: ended at")).to_be_visible()
        screenshot(page, "runs-telephone")  # axe needs JavaScript
    assert (run.dry_run, run.licenses_downgraded, sent(lms, "downgrade")) == (True, 8, [])


def agreement_of(engine: Engine, enterprise: UUID) -> UUID:
    """The id of this customer's agreement."""
    found = rows(engine, "customeragreement")
    return UUID(str(next(row["uuid"] for row in found if row["enterprise_customer_uuid"] == enterprise)))


def start_flower(processes: Processes, *options: str) -> str:
    """A Flower with these options besides; its address."""
    port = free_port()
    start = [*CELERY, "worker", "flower", f"--port={port}", *options]
    processes.start("flower", start, lambda: listens(port))
    return f"http://127.0.0.1:{port}"


def previewed(flower: str, **given: str) -> dict[str, Any]:
    """The fields of the form that a preview of this ends with."""
    return fields_of(post_form(flower, "start", given).text)


def post_form(flower: str, path: str, given: dict[str, Any]) -> requests.Response:
    """Send a form as the operator's browser does."""
    address = f"{flower}/license-expiry/{path}"
    return requests.post(
        address, data=given, auth=OPERATOR, headers={"Origin": flower}, timeout=20, allow_redirects=False
    )


def fields_of(page: str) -> dict[str, Any]:
    """The hidden fields of a page's last form."""
    form = page[page.rindex("<form") :]
    return {name: unescape(value) for name, value in re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', form)}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"DATABASE_URL": ""}, "DATABASE_URL: is not set"),
        ({"DATABASE_URL": "postgresql://nobody:secret@127.0.0.1:1/license_manager"}, "127.0.0.1:1"),
    ],
    ids=["no setting", "no database"],
)
def test_without_the_database_flower_itself_works_and_its_pages_of_runs_say_what_is_missing(
    settings: dict[str, str], said: str, environment: Any, processes: Processes
) -> None:
    environment(**settings)
    flower = start_flower(processes)
    for path in ("", "/start", f"/start?enterprise={uuid4()}", f"/started/{uuid4()}", f"/stop?run={uuid4()}"):
        told = requests.get(f"{flower}/license-expiry{path}", auth=OPERATOR, timeout=60)
        assert (told.status_code, said in unescape(told.text)) == (503, True), (path, told.text)
        assert "nobody:secret" not in told.text
    for path in ("tasks", "workers"):
        assert requests.get(f"{flower}/{path}", auth=OPERATOR, timeout=10).status_code == 200
