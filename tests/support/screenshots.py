"""Takes the pictures of the docs: plays the demo, breaks its LMS, and photographs its pages with a real Chromium.

`make screenshots` writes them to docs/images/. The demo's data is invented, and no address is on these pages.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests
from playwright.sync_api import Browser, Page

from support.browser import chromium

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs/images"
LOGIN = ("demo", "demo")


def main() -> None:
    """Play the demo's night in an empty folder, take the pictures, and end it."""
    with tempfile.TemporaryDirectory() as folder, Path(folder, "told").open("w+") as told:
        command = [sys.executable, "-m", "simulator.demo"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        demo = subprocess.Popen(command, cwd=folder, env=environment, stdout=told, stderr=subprocess.STDOUT)
        try:
            with chromium() as browser:
                _pictures(browser, **_addresses(demo, Path(told.name)))
        finally:
            demo.send_signal(signal.SIGINT)
            demo.wait(60)


def _addresses(demo: subprocess.Popen[bytes], told: Path) -> dict[str, str]:
    """Where the pages, Flower and the LMS are, as the demo prints it once its night is over."""
    for _ in range(180):
        said = told.read_text()
        pages, flower = (re.search(rf"{name}.* is at (http://\S+)", said) for name in ("as a page", "Flower"))
        lms = re.search(r"(http://\S+)/_simulator/faults", said)
        if pages and flower and lms:
            return {"pages": pages[1], "flower": flower[1], "lms": lms[1]}
        if demo.poll() is not None:
            break
        time.sleep(1)
    raise SystemExit(f"The demo did not come up:\n{told.read_text()}")


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
    for _ in range(60):
        page.goto(f"{flower}/tasks")
        if page.get_by_text("RETRY").count():
            break
        time.sleep(1)
    _save(page, "flower-retry")


def _save(page: Page, name: str) -> None:
    page.wait_for_load_state("networkidle")
    page.screenshot(path=IMAGES / f"{name}.png")


if __name__ == "__main__":
    main()
