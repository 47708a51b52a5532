"""One night on real processes, and what it has used."""

import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, func, select

from bench import license_manager_loop
from bench.data import Layout
from bench.figures import Counted, figures_of, in_short, not_done
from bench.profile import profiled
from bench.stand import ROOT, Pace, license_manager, stand
from worker.db.ledger_tables import LmsCall, Run
from worker.ledger.order import ENDED

BARE_CALLS = 400


@dataclass(frozen=True)
class Asked:
    """A night: on what kind of database and on which server, how large, and how fast the LMS is."""

    kind: str
    server: str
    layout: Layout
    pace: Pace
    profile: bool = False
    loop: bool = True


def measure(asked: Asked, folder: Path) -> dict[str, Any]:
    """Carry a night through and give its figures and ratios, the plain loop's beside them; logs are in this folder."""
    with license_manager(asked.server, folder) as (engine, _):
        customers = asked.layout.lay_down(engine)
        with stand(asked.kind, engine, customers, asked.pace, folder) as made:
            worker = made.start_worker("worker", asked.pace.processes)
            before = Counted.now(made)
            with profiled(worker.pid, folder / "stacks.txt") if asked.profile else nullcontext():
                made.call("run_nightly")
                wall = until_all_have_ended(engine, asked.layout.enterprises, made.workers)
            counted = Counted.now(made).since(before)
            figures = figures_of(asked.layout, asked.pace, made, wall, counted, answered(engine))
            if asked.layout.large:
                small = [seconds for seconds, is_large in ends(engine, asked.layout) if not is_large]
                figures["small_ones_ended_after"] = in_short(small[-1])
            made.take(0)
            figures["bare_ms_per_call"] = _bare()
    return figures | (_plain_loop(asked, folder / "loop", wall) if asked.loop else {})


def until_all_have_ended(engine: Engine, enterprises: int, workers: list[subprocess.Popen[bytes]]) -> float:
    """Seconds from the moment that the night is judged by, before its runs are opened, to the end of the last one."""
    while True:
        seconds = wall_seconds(engine, enterprises)
        if seconds is not None:
            return seconds
        if any(worker.poll() is not None for worker in workers):
            raise SystemExit("A worker has ended: see its log")
        time.sleep(0.2)


def wall_seconds(engine: Engine, enterprises: int) -> float | None:
    """Seconds that the night took; None while not all of its runs have ended."""
    ended = select(func.count(), func.min(Run.triggered_at), func.max(Run.ended_at)).where(Run.phase.in_(ENDED))
    with engine.connect() as connection:
        count, triggered_at, ended_at = connection.execute(ended).one()
    return float((ended_at - triggered_at).total_seconds()) if ended_at and count == enterprises else None


def answered(engine: Engine) -> float:
    """Milliseconds that a call took on average, as the workers saw it."""
    took = select(func.sum(LmsCall.seconds) / func.sum(LmsCall.calls)).where(LmsCall.step != "token")
    with engine.connect() as connection:
        return round(1000 * float(connection.execute(took).scalar_one()), 1)


def ends(engine: Engine, layout: Layout) -> list[tuple[float, bool]]:
    """When each enterprise ended, in seconds from the trigger, the first one first; and whether it is the large one."""
    with engine.connect() as connection:
        rows = connection.execute(select(Run.ended_at, Run.triggered_at, Run.licenses_downgraded)).all()
    return sorted(((at - began).total_seconds(), done > layout.licenses // 2) for at, began, done in rows if at)


def _bare() -> float:
    command = [sys.executable, "-m", "bench.bare", str(BARE_CALLS)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return in_short(1000 * float(done.stdout) / BARE_CALLS)


def _plain_loop(asked: Asked, folder: Path, wall: float) -> dict[str, Any]:
    """The same night by license-manager's two jobs, on a database and an LMS of their own."""
    with license_manager(asked.server, folder) as (engine, _):
        customers = asked.layout.lay_down(engine)
        with stand(asked.kind, engine, customers, Pace(0, 1, 1), folder) as made:
            loop = license_manager_loop.run(asked.pace.latency)
            left = not_done(asked.layout, made.ask("counts"))
    if left:
        raise SystemExit("license_manager_loop did not do all that is due, so its time means nothing")
    return loop | {"loop_takes_times_as_long": in_short(loop["loop_wall_seconds"] / wall)}
