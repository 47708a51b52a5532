"""Processes that are stopped by signals at random moments leave none of them behind."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulator.processes import StartError, lock

STARTS = """
from pathlib import Path
from simulator.processes import Interrupts, Processes
processes = Processes(Path({folder!r}), None, Interrupts())
try:
    with processes:
        print("begun", flush=True)
        for number in range(1000):
            processes.start(f"sleep{{number % 5}}", ["sleep", "298.{mark}"])
except KeyboardInterrupt:
    processes.stop_all()
"""


def alive(mark: str) -> list[str]:
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(path.read_text().replace("\0", " "))
        except OSError:
            continue
    return [command for command in commands if command.strip() == f"sleep 298.{mark}"]


@pytest.mark.parametrize("seed", range(5))
def test_signals_at_random_moments_leave_no_process(seed: int, tmp_path: Path) -> None:
    chance, mark = random.Random(seed), f"{os.getpid()}{seed}"
    script = STARTS.format(folder=str(tmp_path), mark=mark)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "begun\n"
        time.sleep(chance.random() / 4)
        for _ in range(4):
            if started.poll() is None:
                started.send_signal(chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
            time.sleep(chance.random() / 20)
        printed, _ = started.communicate(timeout=60)
    assert started.returncode in (0, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)  # one may meet Python's own end
    assert printed.count("\nStopping ...\n") == 1
    assert alive(mark) == []


def test_a_lock_is_refused_with_the_pid_of_its_process_and_free_again_after_it(tmp_path: Path) -> None:
    with lock(tmp_path / "lock"), pytest.raises(StartError, match=rf"process {os.getpid()}.*kill {os.getpid()}"):
        lock(tmp_path / "lock")
    lock(tmp_path / "lock").close()
