"""Shapes of nights, each measured at its size and at a tenth of it: nothing may grow faster than the work."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.data import Layout
from bench.figures import growth
from bench.night import Asked, measure
from bench.stand import STRESS

Figures = dict[str, Any]
SHAPES = {
    "one-large": Layout(1, 1_000_000),
    "many-small": Layout(10_000, 100),
    "many-plans": Layout(1, 100_000, plans=20_000),
    "two-licenses": Layout(1_000, 2),
    "one-learner": Layout(1, 100_000, one_person=True),
}


def smaller(layout: Layout, by: int) -> Layout:
    """The same shape with a `by`th of the licenses: of its enterprises, its plans, or the licenses of its one plan."""
    if layout.enterprises > 1:
        return replace(layout, enterprises=max(1, layout.enterprises // by))
    plans = max(2, layout.plans // by) if layout.plans > 2 else 2
    return replace(layout, licenses=layout.licenses // by, plans=plans)


def measure_shape(kind: str, server: str, name: str, by: int, folder: Path) -> tuple[list[Figures], Figures]:
    """Measure a shape, made smaller by this factor, and a tenth of that; give both figures, and how they grow."""
    layout = smaller(SHAPES[name], by)
    both = [
        {"shape": name} | measure(Asked(kind, server, each, STRESS, loop=False), folder / f"{name}-{each.all_licenses}")
        for each in (smaller(layout, 10), layout)
    ]
    return both, {"database": kind, "shape": name, "night": str(layout)} | growth(both[1], both[0])
