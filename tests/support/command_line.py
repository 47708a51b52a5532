"""The command license-expiry in this process, and what it prints."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from click.testing import CliRunner, Result
from sqlalchemy import Engine

from simulator.data.rows import Data
from simulator.data.showcase import CASES
from simulator.lms.server import Simulator
from support.runs import ready
from worker.cli import main
from worker.settings import Settings
from worker.settings.sources import CONFIG_FILE_VARIABLE

COMMAND = Path(sys.executable).with_name("license-expiry")
LIST = "CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"
SETTINGS = (*Settings.model_fields, CONFIG_FILE_VARIABLE, "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE")
LARGE = ("Juniper Thousand", "Katsura Large")
HOLDS_ONE = "Hazel Malformed"
Use = Callable[..., None]


def license_expiry(*arguments: object) -> Result:
    """The command in this process; any exception but its exit, which would print a traceback, fails the test."""
    return CliRunner().invoke(main.main, [str(each) for each in arguments], catch_exceptions=False)


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, with its output piped."""
    command = [str(COMMAND), *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=90, env=environment
    )


def json_of(result: Result) -> Any:
    """What --json printed: one object, and nothing beside it."""
    return json.loads(result.stdout)


def runs_of(result: Result) -> dict[UUID, dict[str, Any]]:
    """The runs that --json printed, by their enterprises."""
    return {UUID(run["enterprise_customer_uuid"]): run for run in json_of(result)["runs"]}


def lay_demo(engine: Engine, lms: Simulator, *only: str) -> tuple[dict[str, str], str]:
    """Lay down these of the demo's enterprises, or all but the large; give their names by UUID, and the unlink list."""
    data = Data(engine)
    cases = [case for case in CASES if case.name in only or (not only and case.name not in LARGE)]
    for case in cases:
        case.lay(data, data.agreement(case.uuid, name=case.name, slug=case.slug))
    ready(data, lms)
    return {str(case.uuid): case.name for case in cases}, ",".join(str(case.uuid) for case in cases if case.unlinks)


class Clock:
    """Stands in for the module `time` in the report: sleeping takes no time, and something may happen meanwhile."""

    def __init__(self, meanwhile: Callable[[float], object]) -> None:
        self.now = 0.0
        self.meanwhile = meanwhile

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        assert self.now < 1200, "it waits and waits"
        self.meanwhile(self.now)


JANUARY, FEBRUARY, MARCH = (datetime.fromisoformat(f"2025-0{month}-15T12:00:00+00:00") for month in (1, 2, 3))


def command(lms: Simulator, deps: Any, *arguments: str, **settings: Any) -> Any:
    """Run the command in this process, as an operator does."""
    environment = {
        "DATABASE_URL": deps.settings.DATABASE_URL,
        "LMS_URL": lms.url,
        "BACKEND_SERVICE_EDX_OAUTH2_KEY": lms.client_id,
        "BACKEND_SERVICE_EDX_OAUTH2_SECRET": lms.client_secret,
    }
    return CliRunner().invoke(main.main, arguments, env=environment | settings)
