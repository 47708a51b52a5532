"""Processes that belong together: started one by one, watched while they come up, ended together."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self


class StartError(Exception):
    """A process did not come up; the message has the end of its log."""


def free_port(wanted: int = 0) -> int:
    """Give the wanted port of 127.0.0.1 when it is free, else one that is."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Tell whether anybody listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Processes:
    """Starts processes, each with a log file in `folder` and in a group of its own; ends all of them on leaving."""

    def __init__(self, folder: Path, cwd: Path | None = None) -> None:
        """Take the folder of the logs, and the folder to run in."""
        self.folder = folder
        self.cwd = cwd
        self.running: list[tuple[str, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> Self:
        """Start with none."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End all of them, the last started first."""
        for _, process in reversed(self.running):
            self.stop(process)

    def log(self, name: str) -> str:
        """Give what a process has printed so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start(
        self, name: str, command: Sequence[str], up: Callable[[], object] | None = None, seconds: float = 60
    ) -> subprocess.Popen[bytes]:
        """Start a command, and come back when `up` holds. Raises StartError when it ends first, or time runs out."""
        path = self.folder / f"{name}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=self.cwd
            )
        self.running.append((name, process))
        deadline = time.monotonic() + seconds
        while up is not None and not up():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log(name).splitlines()[-15:])
                raise StartError(f"{name} did not start; the end of {path}:\n{tail}")
            time.sleep(0.1)
        return process

    @staticmethod
    def stop(process: subprocess.Popen[bytes], seconds: float = 10) -> None:
        """Ask a process to end, and after `seconds` end all of its group."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it left behind, too
        process.wait()
