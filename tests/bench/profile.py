"""The worker's own time, sampled by py-spy: stacks for a flame graph, and the entries that took most."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PY_SPY = shutil.which("py-spy", path=str(Path(sys.executable).parent))
OURS = re.compile(r"\((worker|tasks)/")


@contextmanager
def profiled(pid: int, stacks: Path) -> Iterator[None]:
    """Sample a process and its children while they hold the interpreter's lock; write folded stacks."""
    if PY_SPY is None:
        raise SystemExit("--profile needs py-spy, which make setup installs")
    command = [
        PY_SPY,
        "record",
        "--gil",
        "--subprocesses",
        "--format",
        "raw",
        "--output",
        str(stacks),
        "--pid",
        str(pid),
    ]
    spy = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    time.sleep(2)  # it has no way to tell that it has begun
    try:
        yield
    finally:
        spy.send_signal(signal.SIGINT)
        spy.wait()


def top(stacks: Path, count: int = 15) -> dict[str, list[tuple[str, float]]]:
    """The packages whose code ran, and our functions for which it ran, with their shares in per cent."""
    packages: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for line in stacks.read_text().splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = [re.sub(r":\d+\)$", ")", frame) for frame in stack.split(";")]
        packages[re.sub(r".*\(([^/)]*).*", r"\1", frames[-1])] += int(samples)
        functions[next((frame for frame in reversed(frames) if OURS.search(frame)), "Celery")] += int(samples)
    total = max(1, packages.total())
    return {
        name: [(each, round(100 * samples / total, 1)) for each, samples in counted.most_common(count)]
        for name, counted in (("packages", packages), ("functions", functions))
    }
