"""A real Chromium for the tests of pages, axe-core to look at them with, and where their screenshots go."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from support.processes import OPERATOR
from support.services import missing

_QUIET = "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
# A page that wants anything from another machine is to fail here as it does behind a firewall.
_LOOPBACK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Debian's Chromium, and end it. While it is there, this thread can run no asyncio loop of its own."""
    program = shutil.which("chromium")
    if program is None:
        missing("chromium", "install chromium")
    arguments = [*(f"--{each}" for each in [*_QUIET.split(), "disable-sync"]), _LOOPBACK]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


def violations(page: Page, within: str = "html") -> list[str]:
    """What axe-core finds wrong with a page, or a part of it: the rule, and the first element that breaks it."""
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text("utf-8"))
    found = page.evaluate("within => axe.run(within)", within)["violations"]
    return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]


def operators_page(browser: Browser, width: int = 1280, height: int = 900, **options: Any) -> Page:
    """A page of a browser of this size that knows the operator's password for Flower."""
    login: Any = dict(zip(("username", "password"), OPERATOR, strict=True))
    return browser.new_context(
        http_credentials=login, viewport={"width": width, "height": height}, **options
    ).new_page()


def screenshot(page: Page, name: str) -> Path:
    """Keep what the page looks like, all of it, as NAME.png under SCREENSHOTS (.screenshots/); give the file."""
    folder = Path(os.environ.get("SCREENSHOTS") or Path(__file__).parents[2] / ".screenshots")
    file = folder / f"{name}.png"
    page.screenshot(path=file, full_page=True)
    return file
