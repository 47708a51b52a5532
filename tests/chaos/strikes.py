"""Which faults struck whom, as far as the judge must know."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

# They strike all processes of a worker, whatever enterprise the one was at that reached the point.
OF_A_WHOLE_WORKER = ("kill_worker", "freeze_worker")


class Strike(Protocol):
    """What the judge is to know of a fault that struck."""

    @property
    def kind(self) -> str:
        """What it was."""

    @property
    def at(self) -> datetime:
        """When it struck."""

    @property
    def enterprise(self) -> str | None:
        """Whose task it struck; None when it may have struck anybody's."""

    @property
    def point(self) -> str | None:
        """At which point of a process, if at one."""


def strikes_on(struck: Iterable[Strike], enterprise: UUID, kinds: Sequence[str] | None = None) -> list[Strike]:
    """The faults, of these kinds if any are named, that struck an enterprise or may have."""
    return [
        each
        for each in struck
        if (each.enterprise in (None, str(enterprise)) or each.kind in OF_A_WHOLE_WORKER)
        and (kinds is None or each.kind in kinds)
    ]
