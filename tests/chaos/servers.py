"""Servers of this suite's own, each in a folder of its own, to be killed and frozen at will.

What they write goes to the machine's page cache and no further (no fsync): a killed server has kept what it confirmed,
a machine that loses its power would not have.
"""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import IO

from support.mysql_server import installed
from support.services import missing

from simulator.processes import StartError, free_port

PACKAGES = {
    "redis": ("redis-server",),
    "rabbitmq": ("rabbitmq-server", "epmd", "erl_call"),
    "postgresql": ("initdb", "postgres"),
    "mariadb": ("mariadb-install-db", "mariadbd"),
    "mysql": (),  # make mysql fetches it
}


# A process that is started through this ends when we do, however that comes about.
WITH_US = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def require(*packages: str) -> None:
    """Skip, or fail in CI, when a server of these packages is not installed."""
    for package in packages:
        if package == "mysql" and not installed():
            missing(package, "make mysql")
        for name in PACKAGES[package]:
            if not binary(name):
                missing(package, f"install it ({name} is not found)")


def binary(name: str) -> str:
    """Where a server's program is, or "" when it is not installed: of PostgreSQL the newest; of RabbitMQ not the script
    of Debian in the PATH, which starts the machine's own node.
    """
    newest = sorted(glob(f"/usr/lib/postgresql/*/bin/{name}"))[-1:] + glob(f"/usr/lib/rabbitmq/bin/{name}")
    return next(iter([*newest, *filter(None, [shutil.which(name)]), *glob(f"/usr/sbin/{name}")]), "")


class Server:
    """One server process, which comes back on the same port with the same data after a kill."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / self.name
        self.folder.mkdir()
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.frozen = self._ready = False

    def command(self) -> list[str]:
        """The command line of the server."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Does it take a connection and answer?"""
        raise NotImplementedError

    def reset(self) -> None:
        """Break all connections to it."""
        raise NotImplementedError

    def start(self, seconds: float = 60) -> None:
        """Start it, and come back when it answers."""
        self.launch()
        deadline = time.monotonic() + seconds
        while not self.ready():
            if time.monotonic() > deadline:
                raise StartError(f"{self.name} did not start: {self.folder}/server.log")
            time.sleep(0.05)  # the condition is another process's, and gives no notice

    def launch(self) -> None:
        """Start it, and do not wait until it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = self._spawn(log)

    def ready(self) -> bool:
        """Does it answer since it was started? Raises StartError when it has ended."""
        if self.process is None or self.process.poll() is not None:
            raise StartError(f"{self.name} did not start: {self.folder}/server.log")
        self._ready = self._ready or self.answers()
        return self._ready

    def close(self) -> None:
        """End it for good."""
        self.kill()

    def environment(self) -> dict[str, str]:
        """What its process finds in the environment."""
        return dict(os.environ)

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(), stdout=log, stderr=log, start_new_session=True, cwd=self.folder, env=self.environment()
        )

    def kill(self) -> None:
        """SIGKILL, to it and its children, the parent first so that it starts none anew."""
        if self.process is not None:
            for pid in self._family():
                _signal(pid, signal.SIGKILL)
            self.process.wait()
            while any(map(_runs, self._children)):  # they hold on to what a new one needs
                time.sleep(0.01)
        self.process, self.frozen, self._ready = None, False, False

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        self.frozen = True
        for pid in self._family():
            _signal(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        for pid in self._family() if self.frozen else []:
            _signal(pid, signal.SIGCONT)
        self.frozen = False

    @property
    def up(self) -> bool:
        """Has it answered since it was started, and was it neither killed nor frozen since?"""
        return self._ready and not self.frozen

    def _family(self) -> list[int]:
        if self.process is None:
            return []
        parent = self.process.pid
        found = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True, check=False).stdout
        self._children = [int(pid) for pid in found.split()]
        return [parent, *self._children]

    _children: list[int] = []  # noqa: RUF012, replaced and never changed


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False
