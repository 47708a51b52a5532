"""The figures of a night: what was counted, as ratios of one run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from bench.data import Layout
from bench.meters import Used
from bench.stand import Pace, Stand


@dataclass(frozen=True)
class Counted:
    """What had been used and counted at one moment, or since another."""

    used: Mapping[str, Used]
    statements: int
    messages: int
    commands: int

    @classmethod
    def now(cls, stand: Stand) -> Self:
        """Count what a stand's processes have used so far."""
        messages, commands = stand.commands()
        return cls(stand.used(), stand.statements(), messages, commands)

    def since(self, before: Self) -> Self:
        """What was used between two moments; peaks of memory are of the whole time."""
        used = {name: each.since(before.used[name]) for name, each in self.used.items()}
        return type(self)(
            used,
            self.statements - before.statements,
            self.messages - before.messages,
            self.commands - before.commands,
        )


def figures_of(
    layout: Layout, pace: Pace, stand: Stand, wall: float, counted: Counted, ms_of_a_call: float
) -> dict[str, Any]:
    """The figures of a night that took `wall` seconds, from what was counted meanwhile and by the simulated LMS."""
    counts = stand.ask("counts")
    calls = sum(counts["requests"][kind] for kind in ("downgrade", "learners", "unlink"))
    ideal = calls * pace.latency / pace.in_flight
    return {
        "database": stand.kind,
        "night": str(layout),
        "pace": str(pace),
        "licenses": layout.all_licenses,
        "due": layout.due,
        "not_done": not_done(layout, counts),
        "wall_seconds": in_short(wall),
        "ideal_seconds": in_short(ideal),
        "efficiency": round(ideal / wall, 2),
        "lms_calls": calls,
        "most_in_flight": counts["most_in_flight"],
        "ms_of_a_call": ms_of_a_call,
        "statements_per_call": in_short(counted.statements / calls),
        "messages_per_run": in_short(counted.messages / layout.enterprises),
        "broker_commands_per_call": in_short(counted.commands / calls),
        **{f"{name}_ms_per_call": in_short(1000 * each.seconds / calls) for name, each in counted.used.items()},
        **{f"{name}_peak_mib": round(each.mebibytes) for name, each in counted.used.items()},
    }


def not_done(layout: Layout, counts: Mapping[str, int]) -> int:
    """Licenses and learners that are due and were not downgraded or unlinked, by what the simulated LMS holds."""
    return abs(layout.due - counts["licenses_downgraded"]) + abs(layout.people // 2 - counts["linked"])


def growth(figures: Mapping[str, Any], of_a_tenth: Mapping[str, Any]) -> dict[str, Any]:
    """How a shape's figures compare with those of a tenth of it: 1 is as much for each license or call."""
    more = figures["due"] / of_a_tenth["due"]
    own = [max(0.1, each["wall_seconds"] - each["ideal_seconds"]) for each in (figures, of_a_tenth)]
    ratios = {"seconds_beside_the_lms_per_license": own[0] / own[1] / more}
    for name, value in figures.items():
        if name.endswith(("_per_call", "_per_run")) and not name.startswith(("bare", "loop")):
            ratios[name] = value / max(0.01, of_a_tenth[name])
    ratios["worker_peak_mib"] = figures["worker_peak_mib"] / of_a_tenth["worker_peak_mib"]
    return {name: round(ratio, 2) for name, ratio in ratios.items()}


def in_short(value: float) -> float:
    """A figure with one digit behind the point, or three below 1."""
    return round(value, 1 if value >= 1 else 3)
