"""Some 20 faults on each push, drawn from a fixed seed; `make chaos` plays as many as one likes."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import played

from chaos import counter, servers
from chaos.brokers import pairs
from chaos.faults import (
    AT_THE_LMS,
    IN_A_PROCESS,
    KINDS,
    MOST_TOUCHED,
    NIGHT_MISSED,
    PEOPLE,
    STALE_POINTS,
    Fault,
    Scale,
    draw,
    lms_fault,
    order,
)
from chaos.hands import HANDS

SEED = int(os.environ.get("CHAOS_SEED", "1"))
SCALE = Scale(points=1700, downgrades=70, unlinks=50, enterprises=("a", "b", "c"))
FAULTS_EACH = 10


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the databases, which run as other users, can get to; pytest's own are nobody else's."""
    with tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True) as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("engine", "broker"), [("postgresql", "redis"), ("mariadb", "rabbitmq")])
def test_every_promise_holds_under_faults_drawn_at_random(engine: str, broker: str, folder: Path) -> None:
    servers.require(engine, broker)
    print(f"CHAOS_SEED={SEED}")  # noqa: T201, shown when it fails
    drawn = ("--seed", str(SEED), "--faults", str(FAULTS_EACH))
    ended = played("chaos", *drawn, "--engine", engine, "--broker", broker, "--folder", str(folder))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert (
        sum(json.loads((folder / f"{engine}-{broker}" / "totals.json").read_text())["faults"].values()) >= FAULTS_EACH
    )


def plans(scale: Scale = SCALE) -> list[list[Fault]]:
    return [draw(SEED, "postgresql", "redis", night, scale) for night in range(1, 200)]


def test_a_plan_is_drawn_from_the_seed_the_engine_the_broker_and_the_night_alone() -> None:
    assert plans() == plans()
    one = draw(1, "postgresql", "redis", 1, SCALE)
    assert one != draw(2, "postgresql", "redis", 1, SCALE)
    assert one != draw(1, "mariadb", "redis", 1, SCALE)
    assert one != draw(1, "postgresql", "rabbitmq", 1, SCALE)
    assert one != draw(1, "postgresql", "redis", 2, SCALE)


@pytest.mark.parametrize("seed", [1, 2])
def test_each_engine_and_each_broker_gets_half_of_the_faults(seed: int) -> None:
    both = pairs(seed)
    assert {engine for engine, _ in both} == {"postgresql", "mariadb"}
    assert {broker for _, broker in both} == {"redis", "rabbitmq"}
    assert both != pairs(seed + 1)
    assert [pairs(seed, engine) for engine, _ in both] == [[pair] for pair in both], "alone, an engine has the same"
    assert pairs(seed, "mariadb", "redis") == [("mariadb", "redis")]
    assert pairs(seed, broker="redis") == [("postgresql", "redis"), ("mariadb", "redis")]


def test_a_night_of_another_length_has_the_same_faults_at_other_numbers() -> None:
    longer = Scale(points=3000, downgrades=75, unlinks=52, enterprises=SCALE.enterprises)
    for plan, other in zip(plans(), plans(longer), strict=True):
        assert Counter(fault.kind for fault in plan) == Counter(fault.kind for fault in other)


def test_every_kind_gets_its_share_and_none_more_than_a_night_may_have() -> None:
    drawn = Counter(fault.kind for plan in plans() for fault in plan)
    assert PEOPLE.keys() == HANDS.keys()
    may_be_missing = {kind for kind, each in KINDS.items() if each.most == 0}
    assert drawn.keys() | may_be_missing == {*KINDS, *PEOPLE, NIGHT_MISSED}
    assert min(drawn.values()) > 15
    for plan in plans():
        counts = Counter(fault.kind for fault in plan)
        assert all(counts[kind] <= KINDS[kind].most for kind in KINDS)
        assert len({fault.detail["enterprise"] for fault in plan if fault.kind in PEOPLE}) <= MOST_TOUCHED
        longer = STALE_POINTS * sum(fault.detail["times"] for fault in plan if fault.kind == "queue_long")
        assert all(fault.at <= SCALE.points + longer for fault in plan)
        assert {fault.kind for fault in plan if fault.at < 1} <= {NIGHT_MISSED, "queue_long"}


def test_each_fault_is_one_that_the_simulator_or_a_process_takes() -> None:
    for fault in (fault for plan in plans() for fault in plan):
        if fault.kind in AT_THE_LMS:
            assert lms_fault(fault).times
        if fault.kind in IN_A_PROCESS:
            assert order(fault).at == fault.at


def test_what_is_ordered_at_a_point_is_done_once_and_in_its_own_night(tmp_path: Path) -> None:
    driver, process = counter.Counter(tmp_path), counter.Counter(tmp_path)
    third = counter.Order(3, "kill_child")
    first_commit = counter.Order(2, "commit_lost", where="after commit")
    driver.arm(1, [third, first_commit])

    def reach(point: str) -> counter.Order | None:
        with process.reach(point=point, pid=1, group=1, main=False, time=0.0) as ordered:
            return ordered

    points = ["after commit", "sending", "answered", "after commit", "after commit", "sending"]
    assert [reach(point) for point in points] == [None, None, third, first_commit, None, None]
    assert driver.value() == len(points)
    assert [line.order.get("kind") for line in driver.news()] == [None, None, "kill_child", "commit_lost", None, None]
    driver.arm(2, [])
    assert [reach("sending"), reach("after commit"), reach("sending")] == [None, None, None]
    assert [line.number for line in driver.news()] == [1, 2, 3]
