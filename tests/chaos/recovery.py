"""How long it took until those whom a fault had struck went on: by the LMS's journal and the ledger alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from chaos.faults import Struck
from simulator.lms.server import Simulator

MEASURED = (
    "kill_child",
    "kill_worker",
    "freeze_child",
    "freeze_worker",
    "queue_long",
    "queue_slow",
    "broker_flush",
    "broker_restart",
    "broker_freeze",
    "database_restart",
    "beat_kill",
    "outage",
    "pause",
    "stop",
)


@dataclass(frozen=True)
class Blow:
    """A fault that struck, and the enterprises that had a live run at that moment."""

    struck: Struck
    live: frozenset[str]

    @property
    def concerned(self) -> frozenset[str]:
        """The one whose task was struck when that is known, else all that had a live run."""
        return frozenset({self.struck.enterprise}) if self.struck.enterprise else self.live


def recovery(blow: Blow, runs: Sequence[Any], lms: Simulator) -> float | None:
    """Seconds until the last of those concerned went on; None when it concerned nobody's live run."""
    if blow.struck.kind not in MEASURED:
        return None
    seconds = [_of_one(blow.struck.at, enterprise, runs, lms) for enterprise in blow.concerned]
    return max((each for each in seconds if each is not None), default=None)


def _of_one(at: datetime, enterprise: str, runs: Sequence[Any], lms: Simulator) -> float | None:
    """Until its next request or the end of its run, whichever came first."""
    theirs = [run for run in runs if str(run.enterprise_customer_uuid) == enterprise and run.opened_at <= at]
    ends = [run.ended_at for run in theirs if run.ended_at and run.ended_at > at]
    if not ends:
        return None
    starts = [call.started_at for call in lms.calls(enterprise=enterprise) if call.started_at > at]
    return float((min([*starts, *ends]) - at).total_seconds())
