"""`make run` with nothing set: everything embedded, everything ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.eventually import eventually

DEMO = [sys.executable, "-m", "simulator.demo"]
SET = ("DATABASE_URL", "CELERY_BROKER_URL", "LMS_URL", "CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED")


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment with none of our settings, and a mark by which its processes are known."""
    return {name: value for name, value in os.environ.items() if name not in SET} | {"DEMO_MARK": str(tmp_path)}


def left_behind(mark: Path) -> list[str]:
    """The commands of the processes that carry the mark in their environment."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"DEMO_MARK={mark}".encode() in (process / "environ").read_bytes():
                left.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return left


def test_once_twice(tmp_path: Path, bare: dict[str, str]) -> None:
    nights = [
        subprocess.run([*DEMO, "--once"], cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=120)
        for _ in range(2)
    ]
    assert [night.returncode for night in nights] == [0, 0], nights[0].stdout + nights[0].stderr
    first, second = (night.stdout for night in nights)
    for shown in ("Juniper Thousand", "1000", "Katsura Large", "450", "Held: license", "http_400"):
        assert shown in first
    assert "Nothing is due" in second
    assert left_behind(tmp_path) == []


def test_it_stays_until_ctrl_c_and_leaves_nothing_behind(tmp_path: Path, bare: dict[str, str]) -> None:
    with (tmp_path / "out").open("w+") as out:
        demo = subprocess.Popen(DEMO, cwd=tmp_path, env=bare, stdout=out, stderr=out, start_new_session=True)
        eventually(lambda: "async-apply/license_expiry.run_enterprise" in (tmp_path / "out").read_text(), seconds=120)
        assert len(left_behind(tmp_path)) >= 6, "broker, LMS, Flower, worker, beat and the demo itself"
        demo.send_signal(signal.SIGINT)
        demo.wait(60)
    eventually(lambda: left_behind(tmp_path) == [], what="every process ended")


def test_a_simulated_lms_never_confirms_for_data_that_is_not_the_demos(tmp_path: Path, bare: dict[str, str]) -> None:
    url = f"sqlite:///{tmp_path}/other.db"
    make = [sys.executable, "-m", "simulator", "make-data", "--enterprises", "1", "--licenses", "4", "--database", url]
    subprocess.run(make, cwd=tmp_path, env=bare, check=True, capture_output=True, timeout=60)
    demo = subprocess.run(
        [*DEMO, "--once"], cwd=tmp_path, env=bare | {"DATABASE_URL": url}, capture_output=True, text=True, timeout=60
    )
    assert demo.returncode == 2
    assert "Set LMS_URL too" in demo.stderr
