"""One night: faults struck while it goes on, until all is settled; then one more night with none; then the judge."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from sqlalchemy.exc import DBAPIError

from chaos import data, judge, missed
from chaos.broker import AWAY
from chaos.counter import Line
from chaos.faults import AT_THE_LMS, BY_THE_DRIVER, IN_A_PROCESS, NIGHT_MISSED, PEOPLE, Fault, Scale, Struck, order
from chaos.hands import HANDS
from chaos.inflict import Agenda, Inflict
from chaos.keep_logs import Logs
from chaos.people import People
from chaos.recovery import Blow, recovery
from chaos.session import ChaosSession
from chaos.struck import Noted, killed_by_celery, thaw, what_struck
from chaos.timeline import Deed, Timeline

GIVE_UP_SECONDS = 150
QUIET_SECONDS = 1.0
TAKEN_SECONDS = 3.0
STARVED_SECONDS = 1.5
MOST_EXTRA_NIGHTS = 6
MOST_TRIES = 10


@dataclass
class Report:
    """What came of a night."""

    number: int
    plan: list[Fault]
    started: float = field(default_factory=time.time)
    struck: list[Struck] = field(default_factory=list)
    points: int = 0
    seconds: float = 0.0
    extra: int = 0
    starved: int = 0
    recoveries: list[tuple[str, float]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    deeds: list[Deed] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)


class NotSettled(Exception):
    """The night did not come to rest in time; the message has the state of things."""


class Night:
    """Plays one night on a session, by a plan."""

    def __init__(self, session: ChaosSession, number: int, plan: list[Fault]) -> None:
        self.session = session
        self.report = Report(number, plan)
        self.logs = Logs(session.folder / "logs")
        self._agenda = Agenda()
        self._hands = Inflict(session, self._agenda.later)
        self._timeline = Timeline()
        self._people = People(session.database.url, session.lms, self._timeline, HANDS)
        self._deeds: list[tuple[Fault, int]] = []
        self._pending: list[Fault] = []
        self._noted = [Noted.of(fault) for fault in plan if fault.kind in AT_THE_LMS]
        self._blows: list[Blow] = []
        self._last: dict[int, Line] = {}
        self._succeeded: set[str] = set()
        self._asleep: list[tuple[Line, int]] = []
        self._live: frozenset[str] = frozenset()
        self._restless = time.monotonic()
        self._taken_since = time.monotonic()

    def play(self) -> Report:
        """Play it from the laying of the data to the judge's verdict."""
        try:
            self._begin()
            self._go_on()
            self._once_more()
            self._judge()
        except NotSettled as error:
            self.report.broken.append(f"Not settled: {error}")
        finally:
            self.session.counter.disarm()
            self.report.seconds = time.time() - self.report.started
            self.report.deeds = self._timeline.deeds
            self.report.runs = [dict(run._mapping) for run in self._trying(self.session.runs) or []]
        return self.report

    def _begin(self) -> None:
        self._wait(
            lambda: self.session.processes.up and 2 < time.time() % 60 < 50, 70, "everybody up"
        )  # no minute's night now
        self.report.started = time.time()
        self.session.engine.dispose()
        self._wait(self._restored, 30, "the data laid anew")
        orders = [order(fault) for fault in self.report.plan if fault.kind in IN_A_PROCESS]
        self.session.counter.news()
        self.session.counter.arm(self.report.number + 1, orders)
        self.session.lms.faults(*self._noted)
        self._pending = [fault for fault in self.report.plan if fault.kind in BY_THE_DRIVER]
        self._deeds = [(fault, MOST_TRIES) for fault in self.report.plan if fault.kind in PEOPLE]
        if any(fault.kind == NIGHT_MISSED for fault in self.report.plan):
            self._strike(Struck(NIGHT_MISSED, datetime.now(UTC)))
            self._wait(lambda: self.session.messages.queued == 0, 30, "an empty queue")
            back = missed.miss_a_night(self.session, self._wait)
            self.report.recoveries.append((NIGHT_MISSED, back))
        else:
            self._tick()  # what strikes first
            self._post_night()
        self._restless = self._taken_since = time.monotonic()

    def _restored(self) -> bool:
        try:
            self.session.laid_data.restore(self.session.engine, self.session.lms)
            self._timeline.begin(self.session.engine, self.session.laid_data)
        except DBAPIError:  # a worker that looked for work meanwhile
            return False
        return True

    def _go_on(self) -> None:
        """Let the night come to rest, and then a further one for as long as that leaves something to do."""
        while True:
            self._wait(self._quiet, GIVE_UP_SECONDS - (time.time() - self.report.started), "the night to settle")
            self.report.points = self.report.points or self.session.counter.value()
            self.session.engine.dispose()
            if not data.due(self.session.laid_data, self.session.engine):
                return
            if self.report.extra == MOST_EXTRA_NIGHTS + len(self._timeline.deeds):
                raise NotSettled(f"still due after {self.report.extra} further nights: {self._state()}")
            self.report.extra += 1
            self.session.processes.set_clocks()
            self._post_night()

    def _once_more(self) -> None:
        """A last night with no faults, which has nothing to do and sends nothing."""
        self.session.counter.disarm()
        self._pending.clear()
        self._deeds.clear()
        self.session.lms.faults()
        self.session.processes.back_to_normal()
        self._wait(self._quiet, 60, "everybody back to normal")
        number = max((entry.start for entry in self.session.lms.calls()), default=0)
        task_id = self._post_night()
        self._wait(lambda: task_id in self._succeeded, 30, "the last night's end")
        self._wait(self._quiet, 60, "the last night to settle")
        self.report.broken += judge.requests_since(self.session.lms, number)

    def _judge(self) -> None:
        session, report = self.session, self.report
        session.engine.dispose()
        logs = self.logs.since()
        known = {line.pid for line in self._last.values() if line.order}
        struck = [*report.struck, *killed_by_celery(logs.values(), self._last, known)]
        if report.starved:  # a machine that stands still for so long is as a freeze of all
            struck.append(Struck("freeze_worker", datetime.now(UTC), None, "starved"))
        evidence = (session.laid_data, session.engine, session.lms, session.undisturbed)
        report.broken += judge.judge(*evidence, struck, self._timeline)
        texts = logs | {session.broker.name: session.messages.text()}
        report.broken += [f"Privacy: an e-mail address in {place}" for place in judge.scan(texts, session.engine)]
        runs = session.runs()
        for blow in self._blows:
            if (seconds := recovery(blow, runs, session.lms)) is not None:
                report.recoveries.append((blow.struck.kind, seconds))

    def _post_night(self) -> str:
        posted: list[str] = []

        def post() -> bool:
            up = self.session.broker.up
            task_id = self._trying(lambda: self.session.messages.post(("run_nightly", {}))) if up else None
            posted.extend([task_id] if task_id else [])
            return bool(posted)

        self._wait(post, 30, "a broker to post to")
        self._restless = self._taken_since = time.monotonic()
        return posted[0]

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Go on with everything until a condition holds."""
        deadline = time.monotonic() + seconds
        while True:
            self._tick()
            if condition():
                return
            if time.monotonic() > deadline:
                raise NotSettled(f"waited for {what}, {seconds:.0f} s: {self._state()}")
            before = time.monotonic()
            with self.session.lms.journal.changed:
                self.session.lms.journal.changed.wait(0.05)
            self.report.starved += time.monotonic() - before > STARVED_SECONDS

    def _tick(self) -> None:
        session = self.session
        self._agenda.run()
        self.report.broken += session.processes.tend()
        if session.broker.up:
            self._trying(session.messages.look)
        if session.database.up:
            live = self._trying(session.live)
            self._live = self._live if live is None else frozenset(map(str, live))
        for line in session.counter.news():
            self._last[line.pid] = line
            self._succeeded |= {line.succeeded} if line.succeeded else set()
            if line.order and line.night == self.report.number + 1:
                self._strike(what_struck(line))
                if line.order["kind"].startswith("freeze"):
                    self._freeze(line)
        for line, fence in tuple(self._asleep):
            self._wake(line, fence)
        for struck in (each for noted in self._noted for each in noted.news()):
            self._strike(struck)
        reached = session.counter.value()
        for fault in [fault for fault in self._pending if fault.at <= reached]:
            struck = Struck(fault.kind, datetime.now(UTC))
            if self._hands.do(fault):
                self._pending.remove(fault)
                self._strike(struck)
        if session.database.up:
            self._work(reached)

    def _work(self, reached: int) -> None:
        """Let people do what is due by this count of points."""
        for fault, tries in [(fault, tries) for fault, tries in self._deeds if fault.at <= reached]:
            self._deeds.remove((fault, tries))
            if not self._done(fault) and tries:
                self._deeds.append((fault, tries - 1))

    def _done(self, fault: Fault) -> bool:
        """Do what people do; True also when there is nothing for them to do. What is locked or away is tried again."""
        return self._trying(lambda: self._people.do(fault.kind, **fault.detail)) is not None

    def _freeze(self, line: Line) -> None:
        self._agenda.later(line.order["seconds"] - (time.time() - line.time), partial(thaw, line))
        run = line.run if line.order["early"] and self.session.database.up else None
        if run and (taken := self._trying(lambda: self.session.taken(run))):
            self._asleep.append((line, taken[0]))

    def _wake(self, line: Line, fence: int) -> None:
        taken = self._trying(lambda: self.session.taken(line.run or "")) if self.session.database.up else None
        if taken and taken[0] > fence and taken[1]:
            thaw(line)
            self._asleep.remove((line, fence))

    def _strike(self, struck: Struck) -> None:
        self.report.struck.append(struck)
        self._blows.append(Blow(struck, self._live))

    def _quiet(self) -> bool:
        """Has nothing been going on for a moment? Messages that nobody acknowledges any more are not waited for."""
        session, now = self.session, time.monotonic()
        up = session.processes.up and session.broker.up and session.database.up and self._agenda.empty
        if not up or self._live or session.messages.queued or session.lms.journal.in_flight:
            self._restless = now
        if not session.messages.taken or not up or self._live:
            self._taken_since = now
        idle = not session.messages.taken or now - self._taken_since > TAKEN_SECONDS
        return idle and now - self._restless > QUIET_SECONDS

    def _state(self) -> str:
        session = self.session
        runs = [run for run in self._trying(session.runs) or [] if run.live]
        told = "; ".join(
            f"run {run.id} of {run.enterprise_customer_uuid} is {run.phase}, owner {run.owner}, lease {run.lease_until}"
            f", publications {run.publications}, error {run.error}"
            for run in runs
        )
        away = [member.name for member in session.processes.members if not member.up]
        messages = f"{session.messages.queued} messages queued, {session.messages.taken} taken"
        return (
            f"{messages}; not up: {', '.join(away) or 'none'}; in flight {session.lms.journal.in_flight}; live: {told}"
        )

    @staticmethod
    def _trying(ask: Callable[[], Any]) -> Any:
        """Ask what may be away just now; None when it is."""
        try:
            return ask()
        except (*AWAY, DBAPIError):
            return None


def calibrate(session: ChaosSession) -> tuple[Report, Scale]:
    """An undisturbed night, and the scale on which the others are drawn."""
    report = Night(session, 0, []).play()
    calls = {kind: len(session.lms.calls(kind)) for kind in ("downgrade", "unlink")}
    due = tuple(sorted(map(str, session.laid_data.due)))
    return report, Scale(report.points, calls["downgrade"], calls["unlink"], due)
