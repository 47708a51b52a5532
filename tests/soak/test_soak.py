"""The soak itself: two nights of a few enterprises, and what it says of figures that grow."""

from pathlib import Path

import pytest
from support.processes import played
from support.services import REMEDIES, missing

from soak.meters import Figures
from soak.verdict import as_markdown, growing


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["postgresql"])  # make soak plays on both
def test_two_nights_are_played_and_measured(engine: str, tmp_path: Path) -> None:
    started = played("soak", "--nights=2", "--enterprises=4", f"--engine={engine}", f"--folder={tmp_path}")
    if "OperationalError" in started.stderr and "CREATE DATABASE" in started.stderr:
        missing(engine, REMEDIES[engine])
    assert started.returncode == 0, started.stdout + started.stderr
    assert f"{engine}: every promise was kept" in started.stdout
    [second] = [line for line in started.stdout.splitlines() if line.startswith("| 2 |")]
    assert second.count("|") > 20
    assert (tmp_path / "soak.json").stat().st_size > 1000


def nights(**last: float) -> list[Figures]:
    """Twenty equal nights, but for what the last five have."""
    usual = {"night": 1.0, "worker MiB": 200.0, "worker files": 50.0, "seconds": 10.0, "rows run": 800.0}
    usual["rows pruned"] = 10.0
    return [usual] * 15 + [usual | {name.replace("_", " "): value for name, value in last.items()}] * 5


@pytest.mark.parametrize(
    ("last", "found"),
    [
        pytest.param({}, [], id="all is flat"),
        pytest.param({"worker_MiB": 215.0}, [], id="a little more memory"),
        pytest.param({"worker_MiB": 225.0}, ["worker MiB"], id="a leak"),
        pytest.param({"worker_files": 54.0}, ["worker files"], id="files that stay open"),
        pytest.param({"rows_run": 880.0, "worker_MiB": 300.0}, ["worker MiB", "rows run"], id="a ledger that grows"),
        pytest.param({"rows_pruned": 500.0, "worker_files": 10.0}, [], id="what may grow, and what falls"),
    ],
)
def test_what_grows_is_named(last: dict[str, float], found: list[str]) -> None:
    told = growing(nights(**last))
    assert [each.partition(" grows")[0] for each in told] == found


def test_too_few_nights_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="14 nights are needed"):
        growing(nights()[:13])


def test_the_table_has_a_line_for_each_night() -> None:
    assert as_markdown(nights()[:2]).splitlines()[2:] == ["| 1 | 200 | 50 | 10 | 800 | 10 |"] * 2
