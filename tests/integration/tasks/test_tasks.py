"""The bodies of the tasks, in this process: messages through Celery's own encoding, requests and tracing; no worker.

Nobody waits for a message's time: it is read from the message.
"""

import re
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID, uuid4

import pytest
from kombu import Message
from support.runs import (
    ON_SQLITE,
    Laid,
    Make,
    batches_of,
    finish,
    lapse,
    lay,
    let_waits_pass,
    open_one,
    rows,
    run_of,
    sent,
    times_sent,
    unlinking,
)
from support.wired import Queue

import tasks
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.db.ledger_tables import Night, Run
from worker.ledger.order import DOWNGRADE, STEPS, UNLINK, Phase

pytestmark = ON_SQLITE


def seconds_ahead(message: Message) -> float:
    """How many seconds from now a message is to be carried out."""
    return (datetime.fromisoformat(message.headers["eta"]) - datetime.now(UTC)).total_seconds()


def names(laid: Laid, run_id: UUID) -> dict[str, str]:
    return {"enterprise_customer_uuid": str(laid.enterprise), "run_id": str(run_id)}


@pytest.mark.parametrize("arguments", [{"dry_run": True}, {"dry_run": False}, {"triggered_by": "mallory"}, {"x": 5}])
def test_what_is_sent_as_the_scheduled_night_with_arguments_starts_nothing(
    arguments: dict[str, Any], queue: Queue, lms: Simulator, wired: Make
) -> None:
    laid = lay(lms, licenses=2)
    deps = wired(**unlinking(laid.enterprise))
    for args, kwargs in (((), arguments), (list(arguments.values()), {})):
        tasks.run_nightly.apply_async(args, kwargs, headers={"scheduled": True})
        told = queue.next()
        assert (told.state, queue.empty()) == ("FAILURE", True)
        if "x" not in arguments:
            assert "leave out the header, or the arguments" in str(told.result)
    assert rows(deps.database.engine, Night) == rows(deps.database.engine, Run) == []


@pytest.mark.parametrize(("size", "unlinked"), [(100, True), (1, True), (100, False)])
def test_a_run_takes_one_message_for_each_step(
    size: int, unlinked: bool, queue: Queue, lms: Simulator, wired: Make
) -> None:
    """And one for what opens it, however many batches it has and whether its enterprise is on the list."""
    laid = lay(lms, licenses=5)
    deps = wired(**batches_of(size), **(unlinking(laid.enterprise) if unlinked else {}))
    tasks.run_enterprise.apply_async(kwargs={"enterprise_customer_uuid": str(laid.enterprise)})
    messages = 0
    while not queue.empty():
        assert queue.next().state == "SUCCESS"
        messages += 1
    (run,) = rows(deps.database.engine, Run)
    assert (run["phase"], messages) == (Phase.FINISHED, 1 + len(STEPS))


def test_the_waits_before_retries_double_and_are_used_up(queue: Queue, lms: Simulator, wired: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = wired(TASK_RETRY_SECONDS=60, TASK_MAX_RETRIES=3, **unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    lms.faults(Fault(kind="downgrade", enterprise=str(laid.enterprise), status=503))  # of this one alone
    tasks.publish(laid.enterprise, run_id, 1)
    message = queue.take()
    for number, wait in enumerate((60, 120, 240), start=1):
        let_waits_pass(deps.database)
        assert queue.carry_out(message).state == "RETRY"
        message = queue.take()
        assert message.headers["task"] == DOWNGRADE.task
        assert int(message.headers["retries"]) == number
        assert wait - 10 <= seconds_ahead(message) <= wait * 1.2 + 1
        assert run_of(deps.database, run_id).retries == number
    let_waits_pass(deps.database)
    last = queue.carry_out(message)
    assert (last.state, run_of(deps.database, run_id).phase) == ("FAILURE", Phase.FAILED)
    assert "the LMS answered 503" in str(last.result)
    assert queue.empty(), "neither a retry nor the unlink"


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        pytest.param(1, 60, 72, id="sooner than our own wait"),
        pytest.param(300, 300, 360, id="later: that is waited for"),
        pytest.param(90_000, 1200, 1200, id="later than Redis keeps a message for us: capped"),
    ],
)
def test_a_retry_comes_when_the_lms_asks_for_it_up_to_a_cap(
    asked: int, least: int, most: int, queue: Queue, lms: Simulator, wired: Make
) -> None:
    laid = lay(lms, licenses=2)
    limits = {"VISIBILITY_TIMEOUT_SECONDS": 4200, "TASK_TIME_LIMIT_SECONDS": 3000}
    deps = wired(TASK_RETRY_SECONDS=60, TASK_MAX_RETRIES=5, **limits)
    lms.faults(Fault(kind="downgrade", status=503, headers={"Retry-After": str(asked)}))
    tasks.publish(laid.enterprise, open_one(deps, laid.enterprise), 1)
    assert queue.next().state == "RETRY"
    assert least - 10 <= seconds_ahead(queue.take()) <= most + 1


def test_a_retry_says_why_and_when_and_keeps_the_rest_of_its_chain(queue: Queue, lms: Simulator, wired: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = wired(TASK_MAX_RETRIES=5, **unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    lms.faults(Fault(kind="downgrade", status=503, times=3))
    tasks.publish(laid.enterprise, run_id, 1)
    shown = queue.next().result
    assert f"{shown!r}".startswith("the LMS answered 503: look at the LMS; retried at 20")
    assert re.search(r" UTC; tries left: 4, fails at 20\S+ \S+ if nothing changes \[http_503\]$", f"{shown!r}")
    let_waits_pass(deps.database)
    assert [queue.next().state for _ in STEPS] == ["SUCCESS", "SUCCESS"]
    assert run_of(deps.database, run_id).phase == Phase.FINISHED


def test_a_downgrade_that_is_posted_alone_is_followed_by_its_unlink(queue: Queue, lms: Simulator, wired: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = wired(**unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    tasks.downgrade_enrollments.apply_async(kwargs=names(laid, run_id))
    assert queue.next().result["phase"] == Phase.DOWNGRADED
    message = queue.take()
    assert message.headers["task"] == UNLINK.task
    assert queue.carry_out(message).result["phase"] == Phase.FINISHED
    assert queue.empty()


def test_an_unlink_that_is_posted_alone_does_not_begin(queue: Queue, lms: Simulator, wired: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = wired(**unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    tasks.unlink_learners.apply_async(kwargs=names(laid, run_id))
    assert queue.next().result == {
        **names(laid, run_id),
        "skipped": f"run {run_id} is queued: it is not ready for this step",
    }
    assert queue.empty()
    assert lms.journal.entries == []


def test_each_message_of_a_chain_may_come_twice(queue: Queue, lms: Simulator, wired: Make) -> None:
    laid = lay(lms, licenses=4)
    deps = wired(**batches_of(2), **unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    tasks.publish(laid.enterprise, run_id, 1)
    told = []
    while not queue.empty():
        message = queue.take()
        told += [queue.carry_out(message).result for _ in range(2)]
    assert [each.get("phase", "skipped") for each in told[:2]] == [Phase.DOWNGRADED, "skipped"]
    assert [each["phase"] for each in told if "phase" in each] == [Phase.DOWNGRADED, Phase.FINISHED]
    kinds: tuple[Literal["downgrade", "unlink"], ...] = ("downgrade", "unlink")
    for kind in kinds:
        assert set(times_sent(lms, kind).values()) == {1}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"approve_unlinks": 5, "reason": "why"}, "approve_unlinks needs triggered_by"),
        ({"approve_unlinks": 5, "triggered_by": "ada"}, "approve_unlinks needs a reason"),
        ({"approve_unlinks": True, "reason": "why", "triggered_by": "ada"}, "approve_unlinks"),
        ({"approve_unlinks": -1, "reason": "why", "triggered_by": "ada"}, "approve_unlinks"),
    ],
)
def test_leave_to_unlink_from_flower_needs_who_and_why(
    given: dict[str, Any], complaint: str, queue: Queue, lms: Simulator, wired: Make
) -> None:
    laid = lay(lms)
    wired(**unlinking(laid.enterprise))
    tasks.run_enterprise.apply_async(kwargs={"enterprise_customer_uuid": str(laid.enterprise), **given})
    assert complaint in str(queue.next().result)
    assert queue.empty()


def test_leave_to_unlink_from_flower_is_kept(queue: Queue, lms: Simulator, wired: Make) -> None:
    laid = lay(lms, licenses=3)
    deps = wired(**unlinking(laid.enterprise), UNLINK_LIMIT=2)
    given = {"approve_unlinks": 3, "reason": "contract ended", "triggered_by": "ada"}
    tasks.run_enterprise.apply_async(kwargs={"enterprise_customer_uuid": str(laid.enterprise), **given})
    for _ in range(3):
        queue.next()
    [run] = rows(deps.database.engine, Run)
    assert (run["phase"], run["learners_unlinked"]) == (Phase.FINISHED, 3)
    assert {name: run[name] for name in given} == given


@pytest.mark.parametrize("task", [tasks.run_nightly, tasks.run_enterprise], ids=lambda task: task.name)
def test_a_trigger_that_comes_twice_opens_one_run(task: Any, queue: Queue, lms: Simulator, wired: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = wired(**unlinking(laid.enterprise))
    asked = {"enterprise_customer_uuid": str(laid.enterprise)} if task is tasks.run_enterprise else {}
    task.apply_async(kwargs=asked)
    message = queue.take()
    first, second = (queue.carry_out(message).result for _ in range(2))
    assert [run["run_id"] for run in first["runs"]] == [run["run_id"] for run in second["runs"]]
    assert [told["detail"].partition(",")[0] for told in (first, second)] == ["1 published", "0 published"]
    assert second["detail"].endswith("1 opened by this task before")
    [run] = rows(deps.database.engine, Run)
    assert queue.take().headers["task"] == DOWNGRADE.task
    assert queue.empty()
    assert finish(deps, laid.enterprise, run["id"]).phase == Phase.FINISHED


def test_a_forced_trigger_that_comes_again_after_its_run_opens_no_other(
    queue: Queue, lms: Simulator, wired: Make
) -> None:
    """Or the learners would be downgraded again, though they may have paid for a track of their own since."""
    laid = lay(lms, licenses=2)
    deps = wired()
    asked = {"enterprise_customer_uuid": str(laid.enterprise), "force": True, "reason": "restored"}
    tasks.run_enterprise.apply_async(kwargs=asked)
    message = queue.take()
    queue.carry_out(message)
    [run] = rows(deps.database.engine, Run)
    assert finish(deps, laid.enterprise, run["id"]).phase == Phase.FINISHED
    again = queue.carry_out(message).result
    assert again["detail"] == "0 published, 0 live already, 1 opened by this task before"
    assert [(told["run_id"], told["already_live"]) for told in again["runs"]] == [(str(run["id"]), False)]
    assert len(rows(deps.database.engine, Run)) == 1
    assert set(times_sent(lms, "downgrade").values()) == {1}


@pytest.mark.parametrize("given", [{}, {"triggered_by": "ada", "reason": "the contract ended early"}])
@pytest.mark.parametrize("task", [tasks.run_nightly, tasks.run_enterprise], ids=lambda task: task.name)
def test_who_asked_and_why_are_kept(
    task: Any, given: dict[str, str], queue: Queue, lms: Simulator, wired: Make
) -> None:
    laid = lay(lms, licenses=2)
    deps = wired(**unlinking(laid.enterprise, uuid4()))
    asked = {"enterprise_customer_uuid": str(laid.enterprise)} if task is tasks.run_enterprise else {}
    task.apply_async(kwargs=asked | given)
    queue.next()
    opened = [run for run in rows(deps.database.engine, Run) if run["phase"] == Phase.QUEUED]
    assert [(run["triggered_by"], run["reason"]) for run in opened] == [
        (given.get("triggered_by"), given.get("reason"))
    ]
    refused = len(rows(deps.database.engine, Run)) - len(opened)
    assert refused == (task is tasks.run_nightly), (
        "an unknown enterprise of the list is told, whoever asks for the night"
    )


@pytest.mark.parametrize("task", [tasks.run_nightly, tasks.run_enterprise], ids=lambda task: task.name)
def test_what_was_previewed_with_other_settings_is_not_started(
    task: Any, queue: Queue, lms: Simulator, wired: Make
) -> None:
    laid = lay(lms, licenses=2)
    deps = wired(**unlinking(laid.enterprise))
    asked = {"enterprise_customer_uuid": str(laid.enterprise)} if task is tasks.run_enterprise else {}
    task.apply_async(kwargs=asked | {"judged_by": deps.settings.model_copy(update={"UNLINK_AFTER_DAYS": 91}).judged_by})
    told = queue.next()
    assert told.state == "FAILURE"
    assert "the preview was made with other settings than this worker's" in str(told.result)
    assert rows(deps.database.engine, Run) == []
    task.apply_async(kwargs=asked | {"judged_by": deps.settings.judged_by})
    queue.next()
    assert len(rows(deps.database.engine, Run)) == 1


def test_a_scheduled_night_was_triggered_by_beat(queue: Queue, lms: Simulator, wired: Make) -> None:
    lay(lms, licenses=2)
    deps = wired()
    tasks.run_nightly.apply_async(headers={"scheduled": True})
    queue.next()
    assert [run["triggered_by"] for run in rows(deps.database.engine, Run)] == ["beat"]


def test_a_reconcile_that_comes_twice_publishes_nothing_twice(queue: Queue, lms: Simulator, wired: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = wired()
    open_one(deps, laid.enterprise)
    tasks.reconcile.apply_async()
    message = queue.take()
    for _ in range(2):
        told = {"published": 0, "abandoned": 0, "nights": 0, "postponed": 0, "stopped": 0, "pruned": 0}
        assert queue.carry_out(message).result == told
    assert queue.empty()


def test_a_step_whose_time_slice_is_over_is_posted_again_with_its_chain(
    queue: Queue, lms: Simulator, wired: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = lay(lms, licenses=4)
    deps = wired(**batches_of(2), **unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    tasks.publish(laid.enterprise, run_id, 1)
    with monkeypatch.context() as patch:
        patch.setattr("worker.runs.attempt.SLICE_SECONDS", 0)
        queue.next()
    assert sent(lms, "downgrade") == []
    for step in STEPS:
        message = queue.take()
        assert message.headers["task"] == step.task
        assert queue.carry_out(message).state == "SUCCESS"
    assert run_of(deps.database, run_id).phase == Phase.FINISHED


# The number of a message


def number_of(message: Message) -> Any:
    _, given, _ = message.decode()
    return given.get("message_number")


def test_a_message_that_was_replaced_does_nothing(queue: Queue, lms: Simulator, wired: Make) -> None:
    laid = lay(lms, licenses=2)
    deps = wired(**unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    tasks.publish(laid.enterprise, run_id, 1)
    lapse(deps.database.engine, run_id)
    tasks.reconcile.apply_async()
    first, reconcile = queue.take(), queue.take()
    assert queue.carry_out(reconcile).result["published"] == 1
    refused = queue.carry_out(first).result["skipped"]
    assert refused == f"run {run_id} is queued: message 1 was replaced by message 2"
    assert lms.journal.entries == []
    downgrade, unlink_of_first = queue.take(), queue.take()
    assert [number_of(each) for each in (downgrade, unlink_of_first)] == [2, 1]
    assert queue.carry_out(downgrade).result["phase"] == Phase.DOWNGRADED
    assert "was replaced by message 2" in queue.carry_out(unlink_of_first).result["skipped"]
    unlink = queue.take()
    assert number_of(unlink) == 2
    assert queue.carry_out(unlink).result["phase"] == Phase.FINISHED
    assert queue.empty()


@pytest.mark.parametrize("why", ["its slice is over", "the LMS is away"])
def test_a_step_that_comes_again_keeps_the_number_of_its_message(
    why: str, queue: Queue, lms: Simulator, wired: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid = lay(lms, licenses=2)
    deps = wired(TASK_MAX_RETRIES=5, **unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    tasks.publish(laid.enterprise, run_id, 4)
    if why == "the LMS is away":
        lms.faults(Fault(kind="downgrade", status=503))
    else:
        monkeypatch.setattr("worker.runs.attempt.SLICE_SECONDS", 0)
    queue.next()
    assert number_of(queue.take()) == 4


@pytest.mark.parametrize("number", ["1", 0, -3, True, 1.5])
def test_a_number_that_cannot_be_one_fails_at_once(number: Any, queue: Queue, lms: Simulator, wired: Make) -> None:
    laid = lay(lms, licenses=2)
    run_id = open_one(wired(), laid.enterprise)
    tasks.downgrade_enrollments.apply_async(kwargs=names(laid, run_id) | {"message_number": number})
    told = queue.next()
    assert (told.state, "message_number must be a number from 1" in str(told.result)) == ("FAILURE", True)
    assert queue.empty()


# The ledger that a message is of


def test_messages_carry_their_ledger_and_one_of_another_goes_back_to_the_queue_as_often_as_it_comes(
    queue: Queue, lms: Simulator, wired: Make
) -> None:
    laid = lay(lms, licenses=2)
    deps = wired(TASK_MAX_RETRIES=1, **unlinking(laid.enterprise))
    run_id = open_one(deps, laid.enterprise)
    other = uuid4()
    tasks.publish(laid.enterprise, run_id, 1, other)
    for number in range(3):
        message = queue.take()
        assert int(message.headers.get("retries", 0)) == number
        refused = queue.carry_out(message)
        assert refused.state == "RETRY"
        assert f"this task is of the ledger {other}, and this worker of the ledger {deps.ledger}" in str(refused.result)
        assert "set another CELERY_BROKER_URL for each" in str(refused.result)
    assert 25 <= seconds_ahead(queue.take()) <= 91
    assert lms.journal.entries == []
    tasks.publish(laid.enterprise, run_id, 1)
    message = queue.take()
    assert message.decode()[1]["ledger"] == str(deps.ledger)
    assert [queue.carry_out(message).state, queue.next().state] == ["SUCCESS"] * 2
    assert run_of(deps.database, run_id).phase == Phase.FINISHED


def test_a_ledger_that_cannot_be_one_fails_at_once(queue: Queue, lms: Simulator, wired: Make) -> None:
    laid = lay(lms, licenses=2)
    run_id = open_one(wired(), laid.enterprise)
    tasks.downgrade_enrollments.apply_async(kwargs=names(laid, run_id) | {"ledger": "ours"})
    told = queue.next()
    assert (told.state, "ledger" in str(told.result)) == ("FAILURE", True)
