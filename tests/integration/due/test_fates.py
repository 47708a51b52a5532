"""What becomes of the candidates to be unlinked, as Python counts it: the same as by the rules, on each engine."""

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st
from sqlalchemy import Engine, select
from support.drawn import EXAMPLES, Drawn, DrawnScope, databases, drawn, laid_down, scopes
from support.oracle import Reading, World, counts_of, lay_down
from support.runs import ON_ALL

from simulator.data.rows import DAY, Data
from worker.db.license_manager_tables import License
from worker.db.sql import Mailbox, ReadMailbox, folded
from worker.db.transactions import Database
from worker.due import fates
from worker.due.forecast import plan_rows
from worker.due.scope import Scope

pytestmark = pytest.mark.timeout(180 + 3 * EXAMPLES)

ODD = [
    "\u212aELVIN@x.org",
    "\u0130@X.org",
    "\xa0\xc9va@X.org\u3000",
    "Stra\xdfe@X.org",
    "\u2003",
    "\xa0a@X.org",
    "\U0001f600 ",
]


@ON_ALL
@drawn(max_examples=EXAMPLES // 3)
@given(database=databases(), asked=scopes, at_once=st.sampled_from([1, 4, 100]))
def test_the_counts_of_each_plan_are_the_readings(
    engine: Engine, database: Drawn, asked: DrawnScope, at_once: int
) -> None:
    with pytest.MonkeyPatch.context() as patch, laid_down(engine, database) as laid:
        patch.setattr(fates, "LICENSES_AT_ONCE", at_once)
        for each in (DrawnScope(), asked, replace(asked, force=not asked.force)):
            scope = laid.scope(each)
            assert counts_of(engine, scope) == Reading(laid.world, scope).counts()


@ON_ALL
def test_an_address_that_is_folded_in_python_is_the_databases(engine: Engine) -> None:
    data = Data(engine)
    plan = data.plan(data.agreement())
    first = 1 if engine.dialect.name == "postgresql" else 0  # which holds no NUL
    for odd in (*ODD, *map(chr, range(first, 128)), "", None):
        for address in [None] if odd is None else [odd, f"{odd}Ann{odd}@X.org{odd}", f" {odd}", f"{odd}\n"]:
            data.license(plan, address)
    data.flush()
    with engine.connect() as connection:
        read = connection.execute(select(Mailbox(License.user_email), ReadMailbox(License.user_email))).all()

    assert len(read) > 4 * 128
    assert [folded(address) for _, address in read] == [mailbox or "" for mailbox, _ in read]


def test_it_tells_how_many_enterprises_are_done(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Data(engine)
    world = World(data, data.now)
    for size in (2, 3, 1, 1):
        plan = world.plan(world.customer())
        for number in range(size):
            world.license(plan, f"{number}@x.org")
    idle = world.customer()
    world.license(world.plan(idle, ago=-DAY))
    lay_down(engine, world)
    monkeypatch.setattr(fates, "LICENSES_AT_ONCE", 2)
    seen: list[tuple[int, int]] = []
    scope = Scope(data.now, 90 * DAY, frozenset(world.agreements), now=data.now)
    plan_rows(Database(engine), scope, progress=lambda done, of: seen.append((done, of)))

    assert [of for _, of in seen] == [4] * len(seen)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len(seen) in (3, 4)  # the one that is too large alone; the small ones together if next to each other
    assert seen[-1] == (4, 4)
