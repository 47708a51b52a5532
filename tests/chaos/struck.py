"""What struck, told from the log of points and from the LMS's side; and the thawing of what was frozen."""

import os
import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Self

from chaos.counter import Line
from chaos.faults import Fault, Struck, lms_fault
from simulator.lms.faults import Fault as LmsFault
from simulator.lms.journal import Entry


class Noted(LmsFault):
    """A fault at the LMS that notes whom it strikes; what it does to several requests counts as one fault."""

    def __init__(self, kind: str, fault: LmsFault) -> None:
        super().__init__(**fault.to_json())
        self.name = kind
        self._last: Entry | None = None
        self._struck: list[Struck] = []

    @classmethod
    def of(cls, fault: Fault) -> Self:
        """The simulator's fault for one of a plan."""
        return cls(fault.kind, lms_fault(fault))

    def meets(self, entry: Entry, body: bytes = b"") -> bool:
        """As every fault does; remember the request, for `strikes` is asked right after."""
        self._last = entry
        return super().meets(entry, body)

    def strikes(self) -> bool:
        """As every fault does; note the first time."""
        strikes = super().strikes()
        if strikes and not self.fired:
            self._struck.append(Struck(self.name, datetime.now(UTC), self._last.enterprise if self._last else None))
        return strikes

    def news(self) -> list[Struck]:
        """What it has struck since this was asked last."""
        news, self._struck = self._struck, []
        return news


def what_struck(line: Line) -> Struck:
    """What a line of the log tells: what is ordered for a child but reached by the main process strikes the worker."""
    kind = line.order["kind"]
    if line.main:
        kind = kind.replace("_child", "_worker")
    return Struck(kind, datetime.fromtimestamp(line.time, UTC), line.enterprise, line.point)


def thaw(line: Line) -> None:
    """Wake what was frozen at a point."""
    with suppress(ProcessLookupError):
        if what_struck(line).kind == "freeze_worker":
            os.killpg(line.group, signal.SIGCONT)
        else:
            os.kill(line.pid, signal.SIGCONT)


def killed_by_celery(texts: Iterable[str], last: Mapping[int, Line], known: Iterable[int]) -> Iterator[Struck]:
    """The processes that Celery killed at the time limit, as it does those that were frozen or starved for long.

    `last` has what each process did last; those `known` were killed by a fault, and are told by it.
    """
    for pid in map(int, re.findall(r"pid:(\d+) exited with 'signal 9", "".join(texts))):
        line = last.get(pid)
        if line is not None and line.enterprise and pid not in known:
            yield Struck("kill_child", datetime.fromtimestamp(line.time, UTC), line.enterprise, "time limit")
