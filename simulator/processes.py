"""Starts processes that belong together, waits until each is up, and stops all of them."""

import fcntl
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self


class StartError(Exception):
    """A process cannot be started; the message says why, with the end of its log if it has one."""


class Interrupts:
    """Handles SIGINT, SIGTERM and SIGHUP: the first raises KeyboardInterrupt, later ones are ignored.

    In a `with` block the KeyboardInterrupt waits until the end of the block.
    """

    def __init__(self) -> None:
        """Handle the signals from now on, except those that this process was started to ignore (nohup)."""
        self._came = self._held = self._due = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._interrupt)

    def _interrupt(self, *_: object) -> None:
        with suppress(OSError):  # the terminal may be gone
            os.write(1, b"\nStill stopping ...\n" if self._came else b"\nStopping ...\n")
        if self._came:
            return
        self._came, self._due = True, self._held
        if not self._held:
            raise KeyboardInterrupt

    def __enter__(self) -> Self:
        """Hold the KeyboardInterrupt back."""
        self._held = True
        return self

    def __exit__(self, *_: object) -> None:
        """Raise it now, if a signal came."""
        self._held = False
        if self._due:
            self._due = False
            raise KeyboardInterrupt


def lock(path: Path) -> IO[str]:
    """Lock a file for as long as this process lives, and return it. Raises StartError if another process has it."""
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        pid = file.read().strip() or "?"
        file.close()
        raise StartError(
            f"A demo already runs in this folder (process {pid}). Stop it first: press Ctrl-C in its terminal, "
            f"or run: kill {pid}"
        ) from None
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def free_port(wanted: int = 0) -> int:
    """Return this port of 127.0.0.1 if it is free, otherwise any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Return whether a process listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Processes:
    """Starts processes, each in its own process group; on leaving, stops all of them and their children."""

    def __init__(
        self, folder: Path, cwd: Path | None = None, held: AbstractContextManager[object] | None = None
    ) -> None:
        """`folder` gets the logs, `cwd` is where they run, `held` keeps interrupts back while a process is started."""
        self.folder = folder
        self.cwd = cwd
        self.running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._held = held or nullcontext()

    def __enter__(self) -> Self:
        """Start nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all of them."""
        self.stop_all()

    def stop_all(self) -> None:
        """Stop all of them, the last started first; call it again if it was interrupted."""
        for _, process in reversed(self.running):
            self.stop(process)

    def log(self, name: str) -> str:
        """Return what a process has printed so far."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def start(
        self, name: str, command: Sequence[str], up: Callable[[], object] | None = None, seconds: float = 60
    ) -> subprocess.Popen[bytes]:
        """Start a command with a log file, and wait until `up` holds. Raises StartError if it ends or takes longer."""
        path = self.folder / f"{name}.log"
        with path.open("wb") as log:
            process = self._popen(name, command, log, subprocess.STDOUT)
        deadline = time.monotonic() + seconds
        while up is not None and not up():
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log(name).splitlines()[-15:])
                raise StartError(f"{name} did not start; the end of {path}:\n{tail}")
            time.sleep(0.1)
        return process

    def run(self, name: str, command: Sequence[str]) -> tuple[int, bytes]:
        """Run a command to its end; return its exit status and what it printed. Its errors go to the terminal."""
        process = self._popen(name, command, subprocess.PIPE, None)
        printed, _ = process.communicate()
        return process.returncode, printed

    def _popen(
        self, name: str, command: Sequence[str], stdout: int | IO[bytes], stderr: int | None
    ) -> subprocess.Popen[bytes]:
        with self._held:  # an interrupt in Popen would leave a process that nobody knows of
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, start_new_session=True, cwd=self.cwd)
            self.running.append((name, process))
        return process

    @staticmethod
    def stop(process: subprocess.Popen[bytes], seconds: float = 10) -> None:
        """Send a process SIGTERM; after `seconds`, or once it has ended, kill its whole group."""
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the children that it left behind
        process.wait()
