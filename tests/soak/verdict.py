"""The verdict: is every figure flat from the fifth night on?"""

from statistics import mean

from soak.meters import Figures

FIRST, SPAN = 4, 5  # the nights 5 to 9, and as many at the end
# How much more the last nights may have, by a word in the figure's name, and how much that is at the least.
MEMORY, TIME, COUNT = (0.10, 10.0), (0.50, 50.0), (0.05, 3.0)
# What grows by its nature, up to a limit: a series for each label.
BOUNDED = ("rows pruned",)


def growing(nights: list[Figures]) -> list[str]:
    """The figures whose mean over the last nights is higher than over the nights 5 to 9, in words; none: all are flat.

    Raises ValueError when there are too few nights to tell.
    """
    if len(nights) < FIRST + 2 * SPAN:
        raise ValueError(f"{FIRST + 2 * SPAN} nights are needed for a verdict")
    found = []
    for name in nights[0]:
        early, late = (mean(night[name] for night in part) for part in (nights[FIRST:][:SPAN], nights[-SPAN:]))
        share, least = MEMORY if "MiB" in name else TIME if name.endswith(("ms", "seconds")) else COUNT
        if name not in (*BOUNDED, "night") and late > early + max(early * share, least):
            found.append(f"{name} grows: {early:.1f} in the nights 5 to 9, {late:.1f} in the last {SPAN}")
    return found


def as_markdown(nights: list[Figures]) -> str:
    """A table, a line for each night."""
    names = list(nights[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return "\n".join([*lines, *("| " + " | ".join(f"{night[name]:g}" for name in names) + " |" for night in nights)])
