"""A night that nothing disturbed, to be forged by the tests of the judge."""

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Engine
from support.runs import rows

from chaos.data import LaidData
from chaos.evidence import Step, named
from chaos.faults import Struck
from chaos.judge import judge
from chaos.snapshot import Snapshot
from chaos.timeline import Timeline
from simulator.lms.journal import Entry
from simulator.lms.server import Simulator
from simulator.lms.state import State
from worker.db.license_manager_tables import UNLINKED_EVENT

AT = datetime(2026, 1, 1, tzinfo=UTC)
SPREAD = 100  # between two numbers of the journal, so that forged ones find room


@dataclass
class Done:
    """A night that was done once, to be copied for each test."""

    laid_data: LaidData
    path: Path
    entries: list[Entry]
    state: State
    snapshot: Snapshot
    timeline: Timeline


@dataclass
class Night:
    """A copy of it, to be forged: the database, and an LMS that is not served."""

    laid_data: LaidData
    engine: Engine
    lms: Simulator
    snapshot: Snapshot
    timeline: Timeline
    struck: list[Struck] = field(default_factory=list)

    def verdict(self) -> list[str]:
        return judge(self.laid_data, self.engine, self.lms, self.snapshot, self.struck, self.timeline)

    def enterprise(self, name: str) -> UUID:
        return self.laid_data.by_name[name]

    def calls(self, name: str, step: Step) -> list[Entry]:
        return self.lms.calls(step, self.enterprise(name))

    def add(self, name: str, step: Step, names: list[Any], start: int | None = None, **fields: Any) -> Entry:
        """Enter one more request, by default a confirmed one after all others."""
        journal = self.lms.journal
        start = start or max(mark or 0 for each in journal.entries for mark in (each.start, each.end)) + SPREAD
        about = {"licenses" if step == "downgrade" else "emails": names, "enterprises": [str(self.enterprise(name))]}
        entry = Entry(step, "/", start, datetime.now(UTC), **about)  # type: ignore[arg-type]
        answered = {"status": 200, "worked": True, "end": start + 1, "ended_at": datetime.now(UTC)}
        for key, value in (answered | fields).items():
            setattr(entry, key, value)
        journal._entries = sorted([*journal.entries, entry], key=lambda each: each.start)
        return entry

    def execute(self, statement: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(statement)

    def strike(self, kind: str, name: str | None, at: datetime = AT) -> None:
        self.struck.append(Struck(kind, at, str(self.enterprise(name)) if name else None))


def unlink_events(night: Night, name: str) -> list[dict[str, Any]]:
    names = {email for call in night.calls(name, "unlink") for email in named(call)}
    own = {row["uuid"] for row in rows(night.engine, "license") if row["user_email"] in names}
    events = [row for row in rows(night.engine, "licenseevent") if row["event_name"] == UNLINKED_EVENT]
    return [row for row in events if row["license_id"] in own and row["license_id"] not in night.laid_data.unlinked]


def assert_found(night: Night, sentence: str) -> str:
    """Assert that the judge says this, a pattern in which UUID is any, and no address; give all that it says."""
    verdict = night.verdict()
    wanted = re.compile(sentence.replace("UUID", "[0-9a-f]{8}-[0-9a-f-]{27}"))
    assert any(wanted.match(each) for each in verdict), verdict
    assert "@" not in "".join(verdict)
    return "".join(verdict)
