"""One step of a run at a time, and faults of its licenses."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal, TypeVar
from uuid import UUID

from sqlalchemy import Engine, update

from simulator.data.rows import DAY, Agreement, Data
from simulator.data.schema import table
from simulator.lms.server import Simulator
from simulator.lms.state import Enrollment, EnrollmentFault
from support.runs import (
    Laid,
    attempt,
    open_one,
    rows,
)
from worker.deps import Deps
from worker.ledger.order import DOWNGRADE

Kind = Literal["downgrade", "unlink"]


T = TypeVar("T")


KINDS: list[Kind] = ["downgrade", "unlink"]


def break_enrollment(lms: Simulator, laid: Laid, license: UUID, fault: EnrollmentFault = "locked") -> None:
    lms.state.add_license(license, laid.enterprise, [Enrollment(fault=fault)])


def mend_enrollment(lms: Simulator, license: UUID) -> None:
    lms.state.special[license.int][0].fault = None


def reach(deps: Deps, laid: Laid, kind: Kind, **request: Any) -> UUID:
    """Open a run, and do what comes before this kind of call; give its id."""
    run_id = open_one(deps, laid.enterprise, **request)
    if kind == "unlink":
        attempt(deps, laid.enterprise, run_id, DOWNGRADE)
    return run_id


def change(engine: Engine, name: str, uuid: UUID, **values: Any) -> None:
    """What license-manager does to one of its rows meanwhile."""
    changed = table(engine, name)
    with engine.begin() as connection:
        connection.execute(update(changed).where(changed.c.uuid == uuid).values(**values))


@contextmanager
def in_background(lms: Simulator, work: Callable[[], T]) -> Iterator[Future[T]]:
    """Do it in a thread; whatever the LMS delays goes on at the end."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(work)
        try:
            yield running
        finally:
            lms.faults()
            lms.release()


def meet(lms: Simulator, running: Future[Any], condition: Callable[[], Any]) -> None:
    """Wait until a condition holds while something is running."""
    lms.wait_for(lambda: condition() or running.done())
    assert not running.done(), running.result()


def add_plan(data: Data, laid: Laid, **columns: Any) -> UUID:
    """Another plan of the enterprise, by default expired as long as the first."""
    [agreement] = [
        Agreement(row["uuid"], laid.enterprise, "x.example")
        for row in rows(data.engine, "customeragreement")
        if row["enterprise_customer_uuid"] == laid.enterprise
    ]
    return data.plan(agreement, **{"expires": data.now - 100 * DAY, **columns})
