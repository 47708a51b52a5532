"""What is kept of a night: the logs since it began, and for one that failed a folder with all that tells why."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chaos.faults import to_json
from chaos.session import ChaosSession

if TYPE_CHECKING:
    from chaos.night import Report


class Logs:
    """The logs of the processes, from where they stood when this was made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._from = {log.name: log.stat().st_size for log in folder.glob("*.log")}

    def since(self) -> dict[str, str]:
        """What each has written since then, by the name of its file."""
        return {log.name: self._rest(log) for log in sorted(self._folder.glob("*.log"))}

    def _rest(self, log: Path) -> str:
        with log.open("rb") as content:
            content.seek(self._from.get(log.name, 0))
            return content.read().decode(errors="replace")


def keep(session: ChaosSession, report: "Report", logs: Logs) -> Path:
    """Write down all that tells why a night failed; give the folder."""
    folder = session.folder / f"night-{report.number:04}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in logs.since().items():
        (folder / name).write_text(content)
    shutil.copy(session.counter.folder / "points.log", folder)
    _write(folder / "plan.json", to_json(report.plan))
    _write(folder / "struck.json", [asdict(each) for each in report.struck])
    _write(folder / "deeds.json", [asdict(each) for each in report.deeds])
    _write(folder / "runs.json", report.runs)
    _write(folder / "journal.json", [entry.to_json() for entry in session.lms.calls()])
    (folder / "verdict.txt").write_text("\n".join(report.broken) + "\n")
    return folder


def _write(path: Path, content: list[Any]) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(each, default=str) for each in content) + "\n]\n")
