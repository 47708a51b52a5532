"""The worker's and beat's processes, and the supervisor that starts anew what has ended."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from support.processes import BOTH_QUEUES

from chaos.faults import FAKETIME
from chaos.servers import WITH_US

ROOT = Path(__file__).parents[2]
APP = ["-A", "chaos.app"]
SUPERVISORS_DELAY = 1.0
WARM_SHUTDOWN_SECONDS = 30.0


class Member:
    """One process with its children, in a group of its own; it is started anew a second after it ended."""

    def __init__(self, name: str, command: list[str], ready: bytes, folder: Path, env: dict[str, str]) -> None:
        self.name, self.log = name, folder / f"{name}.log"
        self._command, self._ready, self._env = command, ready, env
        self._process: subprocess.Popen[bytes] | None = None
        self._from = 0
        self._start_at: float | None = None
        self._end_by: float | None = None
        self._said_ready = False
        self.hours = 0
        self.complaint = ""

    @property
    def up(self) -> bool:
        """Has it said that it is ready, and not ended since, or been told to?"""
        if self._process is None or self._process.poll() is not None or self._end_by is not None:
            return False
        if not self._said_ready:
            with self.log.open("rb") as log:
                log.seek(self._from)
                self._said_ready = self._ready in log.read()
        return self._said_ready

    def start(self) -> None:
        """Start it, by a clock that is wrong by `hours`."""
        self._start_at = self._end_by = None
        self._said_ready = False
        env, module = self._env, "celery"
        if self.hours:
            module = "chaos.wrong_clock"
            env = env | {"LD_PRELOAD": str(FAKETIME), "FAKETIME": f"{self.hours:+d}h", "DONT_FAKE_MONOTONIC": "1"}
        self.log.touch()
        self._from = self.log.stat().st_size
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*WITH_US, sys.executable, "-m", module, *self._command],
                stdout=log,
                stderr=log,
                start_new_session=True,
                cwd=ROOT,
                env=env,
            )

    def end(self) -> None:
        """SIGTERM: it ends in its own time, and is then started anew."""
        if self._process is not None and self._end_by is None:
            self._process.send_signal(signal.SIGTERM)
            self._end_by = time.monotonic() + WARM_SHUTDOWN_SECONDS

    def kill(self, down: float | None = SUPERVISORS_DELAY) -> None:
        """SIGKILL to all of it; it is started anew so many seconds later, or by hand."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        self._end_by = None
        self._start_at = None if down is None else time.monotonic() + down

    def tend(self) -> None:
        """Do what a supervisor does: see whether it has ended, and start it anew when it is time."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self.kill(SUPERVISORS_DELAY if self._end_by is None else 0.0)
        elif self._process is not None and self._end_by is not None and now > self._end_by:
            self._process.send_signal(signal.SIGUSR2)  # its log then has where it stands
            time.sleep(0.2)
            self.complaint = f"Shutdown: {self.name} did not end within {WARM_SHUTDOWN_SECONDS:.0f} s of SIGTERM"
            self.kill()
        if self._start_at is not None and now >= self._start_at:
            self.start()


class Processes:
    """Two workers of two processes each, and one beat, or two."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self._folder, self._env = folder, env
        self.workers = [self._worker(f"worker{number}") for number in (1, 2)]
        self.beat = self._beat("beat")
        self.second_beat = self._beat("second-beat")
        self._second = False

    @property
    def members(self) -> list[Member]:
        """All that are to run."""
        return [*self.workers, self.beat, *([self.second_beat] if self._second else [])]

    @property
    def up(self) -> bool:
        """Are all of them?"""
        return all(member.up for member in self.members)

    def start(self) -> None:
        """Start all."""
        for member in self.members:
            member.start()

    def stop(self) -> None:
        """End all at once."""
        for member in (*self.workers, self.beat, self.second_beat):
            member.kill(None)

    def tend(self) -> list[str]:
        """Start anew what has ended; give the complaints about what would not end."""
        complaints = []
        for member in self.members:
            member.tend()
            complaints += [member.complaint] if member.complaint else []
            member.complaint = ""
        return complaints

    def two_beats(self) -> None:
        """Start a second beat, as if somebody had started one too many."""
        self._second = True
        self.forget_schedule(self.second_beat)
        self.second_beat.start()

    def back_to_normal(self) -> None:
        """End the second beat, and a wrong clock."""
        self.second_beat.kill(None)
        self._second = False
        self.set_clocks()

    def set_clocks(self) -> None:
        """End the worker whose clock is wrong, whose runs are refused; it comes back with the right one."""
        for worker in self.workers:
            if worker.hours:
                worker.hours = 0
                worker.end()

    def forget_schedule(self, beat: Member) -> None:
        """Remove the file in which a beat keeps when it last sent what."""
        for file in self._folder.glob(f"{beat.name}-schedule*"):
            file.unlink()

    def _worker(self, name: str) -> Member:
        command = [*APP, "worker", "--loglevel=INFO", "--concurrency=2", f"--hostname={name}@chaos"]
        return Member(name, [*command, "--without-mingle", *BOTH_QUEUES], b" ready.", self._folder, self._env)

    def _beat(self, name: str) -> Member:
        command = [*APP, "beat", "--loglevel=INFO", f"--schedule={self._folder}/{name}-schedule"]
        return Member(name, [*command, "--pidfile="], b"beat: Starting", self._folder, self._env)
