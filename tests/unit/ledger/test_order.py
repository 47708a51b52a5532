"""The table of the steps is whole: each starts where the one before ended, and everything it names is there."""

from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest

import tasks
from worker.db.ledger_tables import Run
from worker.ledger.order import DOWNGRADE, ENDED, STEPS, UNLINK, Phase, Step, step_after
from worker.runs.steps import WORK

ROWS = pytest.mark.parametrize("step", STEPS, ids=str)


def test_the_order_of_this_project() -> None:
    assert [step.name for step in STEPS] == ["downgrade", "unlink"]
    assert (step_after(DOWNGRADE), step_after(UNLINK)) == (UNLINK, None)


def test_a_step_starts_from_the_phase_that_the_one_before_ends_in() -> None:
    assert STEPS[0].starts_from == Phase.QUEUED
    for before, after in pairwise(STEPS):
        assert after.starts_from == before.ends_as
    assert [step.ends_as in ENDED for step in STEPS] == [False] * (len(STEPS) - 1) + [True]


def test_no_two_steps_share_a_phase() -> None:
    phases = [phase for step in STEPS for phase in (step.starts_from, step.runs_as)]
    assert sorted(set(phases)) == sorted(phases)


@ROWS
def test_the_columns_that_a_step_fills_are_columns_of_a_run(step: Step) -> None:
    assert {step.began_at, step.ended_at, step.counts} <= set(Run.__table__.columns.keys())


@ROWS
def test_a_step_has_its_work_and_its_task(step: Step) -> None:
    assert step.name in WORK
    assert step.task in {task.name for task in (tasks.downgrade_enrollments, tasks.unlink_learners)}


def test_the_chain_is_the_table() -> None:
    built: Any = tasks.build_chain(UUID(int=1), UUID(int=2), 3, UUID(int=4))
    assert [task["task"] for task in built.tasks] == [step.task for step in STEPS]
    assert all(task["immutable"] for task in built.tasks)
    assert {(task["kwargs"]["message_number"], task["kwargs"]["ledger"]) for task in built.tasks} == {
        (3, str(UUID(int=4)))
    }
