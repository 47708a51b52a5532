"""What processes have used: processor time and peak memory, of a process group or of a server."""

import os
from dataclasses import dataclass
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Used:
    """Seconds of processor time of all processes together, and the largest peak memory of one, in MiB."""

    seconds: float
    mebibytes: float

    def since(self, before: "Used") -> "Used":
        """What was used since; the peak is that of the whole time."""
        return Used(self.seconds - before.seconds, self.mebibytes)


def of_group(leader: int) -> Used:
    """Of the processes that a leader has started, those that have ended included, and of itself."""
    return _sum(group(leader))


def group(leader: int) -> list[int]:
    """The processes that a leader has started, and itself."""
    return [pid for pid in _pids() if (stat := _stat(pid)) and int(stat[2]) == leader]


def of_server(name: str, port: int) -> Used:
    """Of all processes of a server's program (mariadbd, mysqld, postgres): MySQL's is started by a loader.

    Of several servers, the one whose command line has this port; else those that have none there.
    """
    of_loader = f"/{name}\0"
    lines = {pid: _read(pid, "cmdline") for pid in _pids()}
    found = [pid for pid, line in lines.items() if of_loader in line or _read(pid, "comm").strip() == name]
    own = [pid for pid in found if f"--port={port}\0" in lines[pid]]
    return _sum(own or [pid for pid in found if "--port=" not in lines[pid]])


def _sum(pids: list[int]) -> Used:
    ticks = sum(sum(map(int, _stat(pid)[11:15])) for pid in pids if _stat(pid))
    peaks = [int(line.split()[1]) for pid in pids for line in _read(pid, "status").splitlines() if "VmHWM" in line]
    return Used(ticks / TICKS, max(peaks, default=0) / 1024)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on: the name before may hold anything."""
    return _read(pid, "stat").rpartition(")")[2].split()


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:  # it has ended meanwhile
        return ""
