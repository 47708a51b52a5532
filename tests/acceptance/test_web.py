"""`license-expiry serve` as a process, seen with a real Chromium: without JavaScript, and live pages with it."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import requests
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import text, update
from support.browser import chromium, screenshot, violations
from support.past_nights import lay_past
from support.processes import COMMAND, ROOT, seconds_to_end

from simulator.data.schema import create_tables
from simulator.processes import Processes, free_port, listens
from worker.db.engine import make_engine
from worker.db.ledger_tables import Run
from worker.db.license_manager_tables import CustomerAgreement
from worker.ledger import migrations
from worker.web import history

PHONE = {"width": 390, "height": 844}
TABLET = {"width": 768, "height": 1024}
A4 = {"width": 718, "height": 1000}  # what a printer's margins leave of it
LONG = ("Wonderfully Long University Of The Northern Provinces " * 5)[:230]


@dataclass(frozen=True)
class Served:
    """A process that serves a ledger: its address, the key of its last night, and its database."""

    address: str
    key: str
    url: str
    process: Any


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with Processes(tmp_path_factory.mktemp("serve"), ROOT) as started:
        yield started


@pytest.fixture(scope="module")
def serve(processes: Processes) -> Any:
    """Starts `license-expiry serve` on a ledger of so many enterprises and nights."""

    def start(name: str, enterprises: int, **past: Any) -> Served:
        url = f"sqlite:///{processes.folder}/{name}.sqlite3"
        engine = make_engine(url)
        create_tables(engine, "char32")
        migrations.upgrade(engine)
        last = lay_past(engine, enterprises, **past).last
        with engine.begin() as connection:
            named = update(CustomerAgreement).where(CustomerAgreement.enterprise_customer_name.endswith(" 7"))
            connection.execute(named.values(enterprise_customer_name=LONG))
        engine.dispose()
        port = free_port()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DATABASE_URL", url)
            process = processes.start(name, [*COMMAND, "serve", "--port", str(port)], lambda: listens(port))
        return Served(f"http://127.0.0.1:{port}", history.night_key(last), url, process)

    return start


@pytest.fixture(scope="module")
def small(serve: Any) -> Served:
    return serve("small", 24, nights=3, trouble=0.12, live=2)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def large(serve: Any) -> Served:
    return serve("large", 1_000, trouble=0)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def look(browser: Browser) -> Iterator[Any]:
    """Opens an address in a page without JavaScript; whatever the console complains of fails the test."""
    complaints: list[str] = []
    contexts = []

    def at(address: str, **how: Any) -> Page:
        context = browser.new_context(java_script_enabled=False, viewport=how.pop("viewport", None), **how)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        answer = page.goto(address)
        assert answer is not None
        assert answer.status == 200
        return page

    yield at
    for context in contexts:
        context.close()
    assert complaints == []


def widths(page: Page) -> tuple[float, float]:
    """How wide the page is, and how wide what is shown of it."""
    session = page.context.new_cdp_session(page)
    measured = session.send("Page.getLayoutMetrics")
    return measured["cssContentSize"]["width"], measured["cssLayoutViewport"]["clientWidth"]


def height(page: Page) -> float:
    """How high the page is."""
    session = page.context.new_cdp_session(page)
    return session.send("Page.getLayoutMetrics")["cssContentSize"]["height"]  # type: ignore[no-any-return]


def test_an_operator_goes_by_keyboard_from_the_nights_to_a_run(small: Served, look: Any) -> None:
    page = look(f"{small.address}/", viewport={"width": 1280, "height": 900})
    screenshot(page, "web-nights")
    page.click("table.passes tbody tr:first-child a")
    assert page.url == f"{small.address}/nights/{small.key}"
    screenshot(page, "web-night")
    first = page.get_attribute("table.night tbody a", "href")
    assert first is not None
    for _ in range(7):  # to the content, now, the enterprises, find, sort, show, the first enterprise
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{small.address}/runs/*")
    assert page.url.endswith(first.rpartition("/")[2])
    screenshot(page, "web-run")
    assert "license-expiry run --enterprise" in page.inner_text("main")
    page.click("h1 a")
    page.wait_for_url(f"{small.address}/enterprises/*")
    assert page.locator("table.passes tbody tr:not(.more)").count() == 3
    screenshot(page, "web-enterprise")


@pytest.mark.long
def test_the_pages_fit_a_phone_a_tablet_paper_and_the_dark(small: Served, look: Any) -> None:
    paths = {"web-night": f"/nights/{small.key}", "web-nights": "/", "web-grid": "/grid?every=1"}
    for viewport, kind in ((PHONE, "phone"), (TABLET, "tablet"), (A4, "paper")):
        for name, path in paths.items():
            page = look(small.address + path, viewport=viewport)
            screenshot(page, f"{name}-{kind}")
            content, shown = widths(page)
            assert content <= shown == viewport["width"], (name, kind)
            if name == "web-night":
                plot = page.locator("table.night tbody td.plot").first.bounding_box()
                assert plot is not None
                assert plot["width"] > viewport["width"] * 0.8
    dark = look(f"{small.address}/nights/{small.key}", viewport={"width": 1280, "height": 900}, color_scheme="dark")
    screenshot(dark, "web-night-dark")
    dark.emulate_media(media="print", color_scheme="dark")
    ink, ground = dark.evaluate(
        "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
    )
    assert (ink, ground) == ("rgb(29, 32, 36)", "rgb(252, 252, 251)"), "printed in the dark, it is black on white"
    assert dark.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.long
def test_a_night_of_a_thousand_enterprises_is_a_short_page(large: Served, look: Any) -> None:
    for viewport in (PHONE, TABLET, {"width": 1280, "height": 900}):
        page = look(f"{large.address}/nights/{large.key}", viewport=viewport)
        assert height(page) < 4_000
    assert page.locator("table.night tbody tr").count() == 1_000
    assert not page.locator("table.night").is_visible()
    page.click("summary")
    page.locator("table.night tbody tr").last.scroll_into_view_if_needed()
    axis = page.locator("table.night thead svg").bounding_box()
    assert axis is not None
    assert 0 <= axis["y"] < 40
    file = Path(os.environ.get("SCREENSHOTS") or ROOT / ".screenshots") / "web-night-1000.png"
    page.screenshot(path=file)  # what is in sight: all of it, unfolded, is 40,000 pixels high


def test_enterprises_are_searched_for_and_sorted_without_javascript(large: Served, look: Any) -> None:
    page = look(f"{large.address}/nights/{large.key}", viewport={"width": 1280, "height": 900})
    page.fill("input[name=find]", "harbour UNIVERSITY")
    page.select_option("select[name=sort]", "downgraded")
    page.click("button")
    page.wait_for_url("**/nights/*?find=harbour+UNIVERSITY&sort=downgraded")
    names = page.locator("table.night tbody th a").all_inner_texts()
    assert names
    assert all(name.startswith("Harbour University") for name in names)
    downgraded = page.locator("table.night tbody td:nth-child(3)").all_inner_texts()
    numbers = [int(number) for number in downgraded]
    assert numbers == sorted(numbers, reverse=True)
    page.click("form a")
    assert page.locator("details").count() == 1
    page.goto(f"{large.address}/grid?find=harbour")
    assert page.locator("table.grid tbody tr").count() == 100
    assert height(look(f"{large.address}/grid", viewport=PHONE)) < 4_000


def test_a_live_page_is_read_again_and_keeps_focus_and_folds(serve: Any, browser: Browser) -> None:
    live = serve("live", 40, nights=1, trouble=0, live=30)
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.clock.install()
    page.goto(f"{live.address}/nights/{live.key}")
    page.click("summary")
    link = page.locator("details table.night tbody a").last
    link.focus()
    href = link.get_attribute("href")
    assert href is not None
    assert page.locator("#foot a").inner_text() == "Reload now"  # without JavaScript
    engine = make_engine(live.url)
    with engine.begin() as connection:
        ended = {"phase": "finished", "live": None, "ended_at": datetime.now(UTC)}
        connection.execute(update(Run).where(Run.id != UUID(href.rpartition("/")[2])).values(ended))
    page.clock.fast_forward(11_000)
    expect(page.locator("h2")).to_have_count(1)
    assert page.evaluate("document.activeElement.getAttribute('href')") == href
    with engine.begin() as connection:
        connection.execute(update(Run).values(ended))
    page.locator("summary").evaluate("summary => summary.click()")
    page.clock.fast_forward(11_000)
    page.wait_for_selector("#main:not([data-again])")
    assert page.evaluate("document.activeElement.getAttribute('href')") == href
    assert page.locator("details[open]").count() == 1, "what was unfolded stays so"
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE license_expiry_run RENAME TO gone"))
    page.goto(f"{live.address}/nights/{live.key}")
    assert page.inner_text("h1") == "Unavailable"
    assert violations(page) == []
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO license_expiry_run"))
    engine.dispose()
    page.clock.fast_forward(11_000)
    page.wait_for_selector("h1:has-text('Night of')")
    context.close()
    assert [each for each in complaints if "503" not in each] == []


@pytest.mark.long
@pytest.mark.parametrize("kind", ["phone", "dark"])
def test_axe_finds_nothing_wrong_with_any_page(small: Served, large: Served, browser: Browser, kind: str) -> None:
    width = 360 if kind == "phone" else 1280
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if kind == "dark" else "light"
    )
    page = context.new_page()
    page.goto(f"{small.address}/nights/{small.key}")
    run = page.get_attribute("table.night tbody a", "href")
    assert run is not None
    page.goto(f"{small.address}/nights/{run}")
    enterprise = page.get_attribute("h1 a", "href")
    paths = ["/", f"/nights/{small.key}", f"/nights/{small.key}?sort=worked", "/grid", "/grid?every=1", "/nothing"]
    paths += [f"/nights/{run}", f"/nights/{run}/downgraded", f"/runs/{enterprise}"]
    wrong = {}
    for address in [*(small.address + path for path in paths), f"{large.address}/nights/{large.key}"]:
        page.goto(address)
        wrong[address] = violations(page)
    context.close()
    assert {address: found for address, found in wrong.items() if found} == {}


def test_what_it_answers_besides_pages_and_when_it_cannot(serve: Any, processes: Processes) -> None:
    doomed = serve("doomed", 3)
    health = requests.get(f"{doomed.address}/healthz", timeout=10)
    assert (health.status_code, health.text) == (200, "ok\n")
    metrics = requests.get(f"{doomed.address}/metrics", timeout=10)
    assert metrics.headers["Content-Type"].startswith("text/plain")
    assert "license_expiry" in metrics.text
    page = requests.get(f"{doomed.address}/", timeout=10)
    assert "default-src 'none'; style-src 'sha256-" in page.headers["Content-Security-Policy"]
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/nights/yesterday", "/runs/1", "/nothing", "/runs/%3Cscript%3E", "/grid?find=%FF"):
        answer = requests.get(doomed.address + path, timeout=10)
        assert (answer.status_code, "<script" in answer.text) == (404, False)

    engine = make_engine(doomed.url)
    with ThreadPoolExecutor(1) as pool:
        with engine.begin():  # SQLite's lock: the page waits for it, and nobody else for the page
            waiting = pool.submit(requests.get, f"{doomed.address}/", timeout=60)
            for _ in range(20):
                assert requests.get(f"{doomed.address}/nothing", timeout=2).status_code == 404
            assert not waiting.done()
        assert waiting.result().status_code == 200
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE license_expiry_run RENAME TO gone"))
        connection.execute(text("UPDATE license_expiry_alembic_version SET version_num = '0001'"))
    for path in ("/", f"/nights/{doomed.key}", "/healthz"):
        answer = requests.get(doomed.address + path, timeout=10)
        assert (answer.status_code, "license-expiry init-db" in answer.text) == (503, True)
        assert "Traceback" not in answer.text
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO license_expiry_run"))
    engine.dispose()
    Path(doomed.url.removeprefix("sqlite:///")).write_bytes(b"this is no database" * 100)
    for path in ("/", "/healthz"):
        answer = requests.get(doomed.address + path, timeout=10)
        assert (answer.status_code, "cannot be read now" in answer.text) == (503, True)
        assert "sqlite" not in answer.text
    assert seconds_to_end(doomed.process, signal.SIGTERM) < 5
    assert doomed.process.returncode == 0
    assert "internal error" not in processes.log("doomed")
