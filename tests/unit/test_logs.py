"""One line for each event, in either form, from our own code and from every library."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from worker import logs


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers, root.level = handlers, level
    for name in logs.TALKATIVE:
        logging.getLogger(name).setLevel(logging.NOTSET)
    structlog.contextvars.clear_contextvars()


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines()


def test_key_value_lines_begin_with_what_is_looked_for(tmp_path: Path) -> None:
    logs.configure("keyvalue", file=tmp_path / "log")
    with structlog.contextvars.bound_contextvars(task="t1", step="unlink", run="r1", enterprise="e1"):
        structlog.stdlib.get_logger("worker.runs.steps").info("step ends", learners_unlinked=3, dry_run=False)
    (line,) = lines(tmp_path / "log")
    stamp, rest = line.split(" ", 1)
    assert stamp.startswith("timestamp=20")
    assert stamp.endswith("Z")
    expected = 'level=info event="step ends" enterprise=e1 run=r1 step=unlink '
    assert rest.startswith(expected)
    assert set(rest.removeprefix(expected).split()) == {"learners_unlinked=3", "dry_run=false", "task=t1"}


def test_json_lines_have_the_same_names(tmp_path: Path) -> None:
    logs.configure("json", file=tmp_path / "log")
    with structlog.contextvars.bound_contextvars(task="t1", enterprise="e1"):
        structlog.stdlib.get_logger("worker.runs.steps").warning("step comes again", seconds=60)
        logging.getLogger("celery.beat").info("Scheduler: Sending due task %s", "nightly")
    ours, theirs = map(json.loads, lines(tmp_path / "log"))
    assert ours.pop("timestamp") <= theirs.pop("timestamp")
    common = {"enterprise": "e1", "task": "t1"}
    assert ours == {"level": "warning", "event": "step comes again", "seconds": 60, **common}
    assert theirs == {"level": "info", "event": "Scheduler: Sending due task nightly", **common}


@pytest.mark.parametrize("log_format", ["keyvalue", "json"])
def test_a_traceback_stays_on_its_line(tmp_path: Path, log_format: str) -> None:
    logs.configure(log_format, file=tmp_path / "log")
    for logger in (structlog.stdlib.get_logger("worker"), logging.getLogger("a.library")):
        try:
            raise ValueError("two\nlines")
        except ValueError:
            logger.exception("an error of our own")
    assert len(lines(tmp_path / "log")) == 2
    assert all("Traceback" in line for line in lines(tmp_path / "log"))


def test_celerys_line_for_each_message_is_left_out_but_for_debug(tmp_path: Path) -> None:
    for level in (logging.INFO, logging.DEBUG):
        logs.configure("keyvalue", level, tmp_path / str(level))
        logging.getLogger("celery.worker.strategy").info("Task received")
        logging.getLogger("celery.worker.strategy").error("Received unregistered task")
    assert ["Task received" in (tmp_path / str(level)).read_text() for level in (20, 10)] == [False, True]
    assert "unregistered" in (tmp_path / "20").read_text()
