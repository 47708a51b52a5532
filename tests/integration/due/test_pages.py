"""Pages of licenses, read by key."""

from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, update
from support.due_cases import (
    HOUR,
    WHOLE_SECOND,
    scope_of,
)
from support.oracle import (
    Page,
    Plan,
    Reading,
    World,
    lay_down,
    pages_of,
    rows,
    uuids,
)

from simulator.data.rows import DAY, Data
from worker.db import license_manager_tables
from worker.due import downgrades, unlinks as conditions_unlinks

# Pages


@dataclass(frozen=True)
class Paged:
    """A customer with two plans of many licenses, and how their pages are asked for."""

    world: World
    plan: Plan
    kind: str

    def page(self, limit: int) -> Page:
        scope = scope_of(self.world)
        if self.kind == "unlink":
            return partial(conditions_unlinks.unlink_page, scope, limit)
        return partial(downgrades.downgrade_page, scope, self.plan.uuid, self.kind == "one by one", limit)

    def due(self) -> list[tuple[Any, ...]]:
        """All that is due, as rows of a page, in no order."""
        reading, held = Reading(self.world, scope_of(self.world)), self.world.holds
        if self.kind == "unlink":
            return [(each.uuid, each.uuid in held, each.email, each.lms_user_id) for each in reading.due_unlinks()]
        due = reading.waiting_downgrades() if self.kind == "one by one" else reading.due_downgrades()
        return [(each.uuid, each.uuid in held, self.plan.expires) for each in due if each.plan == self.plan]


@pytest.fixture(params=["downgrade", "one by one", "unlink"])
def paged(engine: Engine, request: pytest.FixtureRequest) -> Paged:
    world = World(Data(engine, now=WHOLE_SECOND), WHOLE_SECOND)
    customer = world.customer()
    plans = [world.plan(customer, processed=request.param == "unlink") for _ in range(2)]
    for plan in plans:
        if request.param == "one by one":
            world.renew(plan)
        learners = [world.license(plan, f"Learner-{number}@{plan.uuid.hex}.example") for number in range(8)]
        world.license(plan, "revoked@example.org", status="revoked")
        world.hold(learners[0], 13 * HOUR)  # may be tried again, and is still on the list
        world.hold(learners[1])
    lay_down(engine, world)
    return Paged(world, plans[0], request.param)


def test_pages_hold_all_that_is_due_once(engine: Engine, paged: Paged, subtests: pytest.Subtests) -> None:
    due = sorted(paged.due())
    assert len(due) == (14 if paged.kind == "unlink" else 7)
    assert {row[1] for row in due} == {True, False}  # some are on the held list, and come off it when done
    for limit in (1, 2, 5, 6, 7, 8, 14, 100):  # some divide the whole, so that the last page is empty
        with subtests.test(limit=limit), engine.connect() as connection:
            pages = list(pages_of(connection, paged.page(limit), limit))
            assert sorted(row for page in pages for row in page) == due
            assert {len(page) for page in pages[:-1]} <= {limit}
            assert len(pages[-1]) < limit


def test_a_page_begins_where_the_one_before_ended_though_that_is_done(engine: Engine, paged: Paged) -> None:
    """By key, not by offset: what has been done is due no longer, and must not shift what follows."""
    read: list[UUID] = []
    with engine.begin() as connection:
        while page := rows(connection, paged.page(2)(read[-1] if read else None)):
            read += [row[0] for row in page]
            connection.execute(
                update(license_manager_tables.License)
                .where(license_manager_tables.License.uuid.in_(read))
                .values(status="revoked")
            )

    assert sorted(read) == sorted(uuids(paged.due()))


def test_protection_is_asked_again_for_each_page(engine: Engine, paged: Paged) -> None:
    """A learner who is given a license while a step goes on is neither unlinked nor downgraded for it."""
    with engine.connect() as connection:
        first, second, *_ = pages_of(connection, paged.page(2), 2)
    lucky = paged.world.licenses[second[0][0]]
    world = World(paged.world.data, WHOLE_SECOND, paged.world.agreements)
    world.license(world.plan(lucky.plan.customer, -DAY), lucky.email and lucky.email.upper())
    lay_down(engine, world)

    with engine.connect() as connection:
        again = uuids(rows(connection, paged.page(2)(first[-1][0])))

    assert (lucky.uuid in again) == (paged.kind == "downgrade")  # a plan that has ended is downgraded all the same
    assert second[1][0] in again
