"""Takes the pictures of the docs: plays the demo, breaks its LMS, and photographs its pages with a real Chromium.

`make screenshots` writes them to docs/images/. The demo's data is invented, and no address is on these pages.
"""

import re
import sys
import tempfile
from pathlib import Path

import requests
from playwright.sync_api import Browser, Page

from simulator.processes import Processes
from support.browser import chromium
from support.eventually import eventually

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs/images"
LOGIN = ("demo", "demo")


def main() -> None:
    """Play the demo's night in an empty folder, take the pictures, and end it."""
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder), Path(folder)) as processes:
        command = ["env", f"PYTHONPATH={ROOT}", "COLUMNS=200", sys.executable, "-m", "simulator.demo"]
        demo = processes.start("demo", command, lambda: _addresses(processes.log("demo")), seconds=180)
        try:
            with chromium() as browser:
                _pictures(browser, **_addresses(processes.log("demo")))
        finally:
            processes.stop(demo, seconds=60)  # it stops its own processes first


def _addresses(printed: str) -> dict[str, str]:
    """Where the pages, Flower and the LMS are, as the demo prints it once its night is over; before that, nothing."""
    pages, flower = (re.search(rf"{name}.* is at (http://\S+)", printed) for name in ("as a page", "Flower"))
    lms = re.search(r"(http://\S+)/_simulator/faults", printed)
    return {"pages": pages[1], "flower": flower[1], "lms": lms[1]} if pages and flower and lms else {}


def _pictures(browser: Browser, pages: str, flower: str, lms: str) -> None:
    login = {"username": LOGIN[0], "password": LOGIN[1]}
    size = {"width": 1280, "height": 800}
    page = browser.new_context(http_credentials=login, viewport=size, color_scheme="light").new_page()  # type: ignore[arg-type]
    page.goto(pages)
    page.locator('a[href*="nights/"]').first.click()
    _save(page, "night")
    page.get_by_role("link", name="Hazel Malformed").first.click()
    _save(page, "run")
    page.get_by_role("link", name="in Flower").first.click()
    page.locator("#force").check()
    page.locator("#reason").fill("the address was corrected")
    page.get_by_role("button", name="Preview").click()
    page.get_by_role("button", name="Start it").wait_for()
    _save(page, "flower-start")
    requests.post(f"{lms}/_simulator/faults", json=[{"status": 503}], timeout=10).raise_for_status()
    page.get_by_role("button", name="Start it").click()

    def retried() -> int:
        page.goto(f"{flower}/tasks")
        return page.get_by_text("RETRY").count()

    eventually(retried, what="the step in RETRY")
    _save(page, "flower-retry")


def _save(page: Page, name: str) -> None:
    page.wait_for_load_state("networkidle")
    page.screenshot(path=IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
