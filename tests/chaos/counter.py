"""The one count of points that all processes of the chaos worker share, the plan beside it, and the log of both.

Three files in one folder. The count is changed under flock, so each number is given once; a plan says what is to
happen at which number, and belongs to one night, so that nothing of an earlier one is left armed.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "CHAOS_FOLDER"
# What is to be added to the steady clock, which all processes of the machine share, to tell the time of day. A worker
# whose clock is wrong on purpose would have what is frozen thawed an hour too early or too late.
EPOCH_VARIABLE = "CHAOS_EPOCH"


@dataclass(frozen=True)
class Order:
    """What a process is to do to itself: from point number `at` on, at the first point with the name `where`.

    A frozen one wakes after so many `seconds`; `early`, as soon as another has its run.
    """

    at: int
    kind: str
    where: str | None = None
    seconds: float = 0.0
    early: bool = False


@dataclass(frozen=True)
class Line:
    """One line of the log: a point that was reached, by whom and at what, and what the plan did there.

    `succeeded` is the id of a task that has just ended well.
    """

    number: int
    night: int
    time: float
    point: str
    pid: int
    main: bool
    group: int
    task: str | None = None
    enterprise: str | None = None
    run: str | None = None
    succeeded: str | None = None
    order: dict[str, Any] = field(default_factory=dict)


class Counter:
    """The files of the count, in a folder that all processes know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count, self._plan, self._log = (folder / name for name in ("count", "plan.json", "points.log"))
        self._night, self._orders = 0, list[Order]()
        self._read = 0

    def arm(self, night: int, orders: list[Order]) -> None:
        """Begin to count anew, for a night with this plan; 0 for no night at all."""
        with self._locked() as count:
            if night:
                self._log.write_bytes(b"")
                self._read = 0
            self._plan.write_text(json.dumps([asdict(order) for order in orders]))
            for done in self.folder.glob("done-*"):
                done.unlink()
            self._set(count, night, 0)

    def disarm(self) -> None:
        """Let nothing more happen at points; the count goes on."""
        self.arm(0, [])

    def value(self) -> int:
        """The number of the point that was reached last."""
        return self._get(self._count.read_bytes())[1]

    @contextmanager
    def reach(self, **about: Any) -> Iterator[Order | None]:
        """Count and log a point; give what is to be done at it, once. The lock is held until the block ends."""
        with self._locked() as count:
            night, number = self._get(os.pread(count, 64, 0))
            self._set(count, night, number + 1)
            order = self._due(night, number + 1, about["point"])
            self._write(Line(number + 1, night, order=asdict(order) if order else {}, **about))
            yield order

    def news(self) -> list[Line]:
        """The lines that were logged since this was asked last."""
        if not self._log.exists():
            return []
        with self._log.open("rb") as log:
            log.seek(self._read)
            whole = log.read().rpartition(b"\n")
        self._read += len(whole[0] + whole[1])
        return [Line(**json.loads(line)) for line in whole[0].splitlines()]

    def _due(self, night: int, number: int, point: str) -> Order | None:
        if night == 0:
            return None
        if night != self._night:
            orders = [Order(**each) for each in json.loads(self._plan.read_text())]
            self._night, self._orders = night, sorted(orders, key=lambda order: order.at)
        for place, order in enumerate(self._orders):
            if order.at > number:
                return None
            if order.where in (None, point):
                try:
                    (self.folder / f"done-{place}").touch(exist_ok=False)
                except FileExistsError:
                    continue
                return order
        return None

    def _write(self, line: Line) -> None:
        log = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(log, (json.dumps(asdict(line)) + "\n").encode())
        finally:
            os.close(log)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        count = os.open(self._count, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(count, fcntl.LOCK_EX)
            try:
                yield count
            finally:
                fcntl.flock(count, fcntl.LOCK_UN)  # and not by closing alone: a process forked meanwhile has it too
        finally:
            os.close(count)

    @staticmethod
    def _get(content: bytes) -> tuple[int, int]:
        night, _, number = content.partition(b" ")
        return int(night or 0), int(number or 0)

    @staticmethod
    def _set(count: int, night: int, number: int) -> None:
        os.pwrite(count, f"{night:010d} {number:010d}".encode(), 0)
