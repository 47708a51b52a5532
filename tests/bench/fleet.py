"""A night shared by the workers of several machines, and one of whose machines is lost."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from sqlalchemy import Engine, func, make_url, select

from bench.data import Layout
from bench.figures import Counted, figures_of, in_short
from bench.machines import Machines, machines
from bench.night import answered, ends, until_all_have_ended, wall_seconds
from bench.stand import Pace, Stand, license_manager, reachable, stand
from simulator.processes import free_port
from worker.db.ledger_tables import Run

# A lease must be more than 10 s longer than a call may take; this one lets the bench wait less for a lost machine.
CALLS = ("BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS", "BULK_UNLINK_REQUEST_TIMEOUT_SECONDS")
LEASE = dict.fromkeys(CALLS, "9") | {"LEASE_SECONDS": "20"}
PACE = Pace(1.0, 16, 8)


@dataclass(frozen=True)
class Fleet:
    """A night on this many machines; with `lost`, one of them is killed when half of the work is done."""

    kind: str
    server: str
    layout: Layout
    machines: int
    lost: bool = False


def measure_fleet(asked: Fleet, folder: Path) -> dict[str, Any]:
    """Carry the night through; give its figures, when enterprises ended, and what became of a lost machine's runs."""
    with (
        license_manager(asked.server, folder) as (engine, _),
        machines(asked.machines) as made,
        stand(asked.kind, engine, asked.layout.lay_down(engine), PACE, folder, made.host, **LEASE) as at,
    ):
        _start_workers(at, made)
        before = Counted.now(at)
        at.call("run_nightly")
        lost = _lose_one(at, asked.layout) if asked.lost else {}
        wall = until_all_have_ended(engine, asked.layout.enterprises, at.workers)
        figures = figures_of(asked.layout, PACE, at, wall, Counted.now(at).since(before), answered(engine))
        if asked.lost:  # what its processes had used went with them
            del figures["worker_ms_per_call"]
        return {"machines": asked.machines, **figures, **_ends(engine, asked.layout), **lost}


def _start_workers(at: Stand, made: Machines) -> None:
    """Start a worker on each machine; they reach the database, which listens on loopback, by a forwarded port."""
    url, port = make_url(os.environ["DATABASE_URL"]), free_port()
    listen = f"TCP-LISTEN:{port},bind={made.host},fork,reuseaddr,backlog=128"
    at.processes.start("forward", ["socat", listen, f"TCP:{url.host}:{url.port}"], lambda: reachable(made.host, port))
    os.environ["DATABASE_URL"] = url.set(host=made.host, port=port).render_as_string(hide_password=False)
    for machine, words in enumerate(made.words):
        at.start_worker(f"machine-{machine}", PACE.processes, words)


def _lose_one(at: Stand, layout: Layout) -> dict[str, Any]:
    """Kill the last machine's worker half way; `reconcile`, as beat sends it, brings its runs back."""
    while at.ask("counts")["licenses_downgraded"] < layout.due // 2:
        time.sleep(0.1)
    os.killpg(at.workers[-1].pid, signal.SIGKILL)
    killed = time.monotonic()
    at.workers.pop().wait()
    theirs = Run.owner.contains(f"machine-{len(at.workers)}")
    left = _count(at.engine, theirs)
    if not left:
        raise SystemExit("The lost machine had no run: nothing is shown")
    while _count(at.engine, theirs) and wall_seconds(at.engine, layout.enterprises) is None:
        at.call("reconcile")
    resumed = in_short(time.monotonic() - killed)
    return {"runs_of_the_lost": left, "resumed_after": resumed, "lease": LEASE["LEASE_SECONDS"]}


def _count(engine: Engine, which: Any) -> int:
    with engine.connect() as connection:
        return connection.execute(select(func.count()).where(which)).scalar_one()


def _ends(engine: Engine, layout: Layout) -> dict[str, Any]:
    """When the small enterprises ended (first, median, last), and the large one: seconds from the trigger."""
    took = ends(engine, layout)
    small = [seconds for seconds, is_large in took if not is_large]
    large = [in_short(seconds) for seconds, is_large in took if is_large]
    return {
        "small_ones_ended_after": " / ".join(f"{each:.1f}" for each in (small[0], median(small), small[-1])),
        **({"large_one_ended_after": large[0]} if large else {}),
    }
