"""`license-expiry serve` as a process, seen with a real Chromium that runs no script."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import Browser, Page
from sqlalchemy import text
from support.browser import chromium, screenshot
from support.past_nights import lay_past
from support.processes import COMMAND, ROOT, seconds_to_end

from simulator.data.schema import create_tables
from simulator.processes import Processes, free_port, listens
from worker.db.engine import make_engine
from worker.ledger import migrations
from worker.web import history

PHONE = {"width": 390, "height": 844}


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


def test_an_operator_goes_by_keyboard_from_the_nights_to_a_run(small: Served, look: Any) -> None:
    page = look(f"{small.address}/", viewport={"width": 1280, "height": 900})
    screenshot(page, "web-nights")
    page.click("table.passes tbody tr:first-child a")
    assert page.url == f"{small.address}/nights/{small.key}"
    screenshot(page, "web-night")
    first = page.get_attribute("table.night tbody a", "href")
    assert first is not None
    for _ in range(3):  # to the enterprises, all nights, the first enterprise
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{small.address}/runs/*")
    assert page.url.endswith(first.rpartition("/")[2])
    screenshot(page, "web-run")
    assert "license-expiry run --enterprise" in page.inner_text("main")


def test_the_page_fits_a_phone_and_the_dark(small: Served, look: Any) -> None:
    for path, name in ((f"/nights/{small.key}", "web-night-phone"), ("/", "web-nights-phone")):
        page = look(small.address + path, viewport=PHONE)
        screenshot(page, name)
        content, shown = widths(page)
        assert content <= shown == PHONE["width"]
    dark = look(f"{small.address}/nights/{small.key}", viewport={"width": 1280, "height": 900}, color_scheme="dark")
    screenshot(dark, "web-night-dark")


def test_a_thousand_enterprises_are_one_page_with_the_axis_in_sight(serve: Any, look: Any) -> None:
    large = serve("large", 1_000)
    page = look(f"{large.address}/nights/{large.key}", viewport={"width": 1280, "height": 900})
    assert page.locator("table.night tbody tr:not(.group)").count() == 1_000
    page.locator("table.night tbody tr").last.scroll_into_view_if_needed()
    axis = page.locator("table.night thead svg").bounding_box()
    assert axis is not None
    assert 0 <= axis["y"] < 40
    file = Path(os.environ.get("SCREENSHOTS") or ROOT / ".screenshots") / "web-night-1000.png"
    page.screenshot(path=file)  # what is in sight: all of it is 40,000 pixels high


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
    for path in ("/nights/yesterday", "/runs/1", "/nothing", "/runs/%3Cscript%3E"):
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
        assert (answer.status_code, "cannot be read just now" in answer.text) == (503, True)
        assert "sqlite" not in answer.text
    assert seconds_to_end(doomed.process, signal.SIGTERM) < 5
    assert doomed.process.returncode == 0
    assert "an error of our own" not in processes.log("doomed")
