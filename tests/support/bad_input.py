"""The ways in which something wrong comes in, and what must be as it was after it."""

import re
from dataclasses import dataclass, field

import pytest
from click.testing import Result
from sqlalchemy import Engine

from simulator.lms.server import Simulator
from support.runs import Laid
from worker.settings import Settings
from worker.settings.sources import CONFIG_FILE_VARIABLE

REQUIRED = ("DATABASE_URL", "LMS_URL", "BACKEND_SERVICE_EDX_OAUTH2_KEY", "BACKEND_SERVICE_EDX_OAUTH2_SECRET")
SETTINGS = (*Settings.model_fields, CONFIG_FILE_VARIABLE)
PASSWORD = "hunter2"
RUN = ("run", "--here")


@dataclass(frozen=True)
class Bad:
    """What is wrong; the command; settings that are not the usual; patterns that one line must match, all of them.

    {plan}, {other_plan} and {enterprise} stand for what is in the database, {nowhere} for a port where nobody listens.
    """

    why: str
    command: tuple[str, ...]
    words: tuple[str, ...]
    settings: dict[str, str] = field(default_factory=dict)
    status: int = 2


def cases(*table: Bad) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("bad", [pytest.param(bad, id=bad.why) for bad in table])


@dataclass(frozen=True)
class Standing:
    """A database with work due and its LMS, for all that is refused before anything is done."""

    url: str
    engine: Engine
    lms: Simulator
    laid: Laid
    other: Laid


def settings_for(url: str, lms: Simulator) -> dict[str, str]:
    return dict(zip(REQUIRED, (url, lms.url, lms.client_id, lms.client_secret), strict=True))


def assert_told(stderr: str, *words: str) -> None:
    """One line has all of these patterns; nobody is shown a traceback or a password."""
    assert "Traceback" not in stderr
    assert PASSWORD not in stderr
    lines = stderr.splitlines() or [""]
    assert any(all(re.search(word, line) for word in words) for line in lines), f"no line has {words}:\n{stderr}"


def assert_refused(bad: Bad, result: Result, names: dict[str, object]) -> None:
    assert (result.exit_code, result.stdout) == (bad.status, "")
    assert_told(result.stderr, *(word.format(**names) for word in bad.words))
