"""The sums over nights: faults by kind, recoveries by kind; as JSON and as a table."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from chaos.faults import KINDS, NIGHT_MISSED, PEOPLE

if TYPE_CHECKING:
    from chaos.night import Report


@dataclass
class Totals:
    """What so many nights came to."""

    nights: int = 0
    extra: int = 0
    points: int = 0
    seconds: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    deeds: dict[str, int] = field(default_factory=dict)
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @property
    def struck(self) -> int:
        """How many faults have struck in all."""
        return sum(self.faults.values())

    def add(self, report: "Report") -> None:
        """Count a night."""
        self.nights += 1
        self.extra += report.extra
        self.points += report.points
        self.seconds += report.seconds
        self.faults = dict(Counter(self.faults) + Counter(each.kind for each in report.struck))
        self.deeds = dict(Counter(self.deeds) + Counter(each.kind for each in report.deeds))
        for kind, seconds in report.recoveries:
            self.recoveries.setdefault(kind, []).append(round(seconds, 2))

    def write(self, path: Path) -> None:
        """Keep it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def sum(cls, paths: Iterable[Path]) -> "Totals":
        """Several of them, as they were kept, in one."""
        whole = cls()
        for path in paths:
            part = cls(**json.loads(path.read_text()))
            whole.nights += part.nights
            whole.extra += part.extra
            whole.points += part.points
            whole.seconds += part.seconds
            whole.faults = dict(Counter(whole.faults) + Counter(part.faults))
            whole.deeds = dict(Counter(whole.deeds) + Counter(part.deeds))
            whole.failed += part.failed
            for kind, seconds in part.recoveries.items():
                whole.recoveries.setdefault(kind, []).extend(seconds)
        return whole

    def table(self) -> str:
        """Faults and recoveries by kind, one kind on a line."""
        lines = [f"{'fault':<20}{'struck':>8}{'recoveries':>12}{'median s':>10}{'longest s':>11}"]
        for kind in (*KINDS, NIGHT_MISSED):
            line = f"{kind:<20}{self.faults.get(kind, 0):>8}"
            if seconds := self.recoveries.get(kind):
                line += f"{len(seconds):>12}{median(seconds):>10.1f}{max(seconds):>11.1f}"
            lines.append(line)
        whole = f"{self.nights} nights, {self.extra} further ones, {self.seconds / max(1, self.nights):.1f} s a night"
        lines.append(f"{'all':<20}{self.struck:>8}   in {whole}")
        lines.append(f"\n{'people at work':<20}{'done':>8}")
        lines += [f"{kind:<20}{self.deeds.get(kind, 0):>8}" for kind in PEOPLE]
        return "\n".join(lines)
