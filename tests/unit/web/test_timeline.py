"""Where the pieces and marks of a run lie, and what the axis and the words say."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from worker.db.ledger_tables import Retry, Run
from worker.errors import BadArgument
from worker.ledger.order import DOWNGRADE, UNLINK, Phase
from worker.web import history, timeline, words
from worker.web.timeline import Axis, Mark, Piece

BEGIN = datetime(2026, 11, 24, 2, 0, tzinfo=UTC)
D, U = DOWNGRADE.name, UNLINK.name


def at(minutes: float) -> datetime:
    return BEGIN + timedelta(minutes=minutes)


def run(phase: Phase, *minutes: float | None, held: int = 0) -> Run:
    """A run with the moments of its five times, as far as it got."""
    names = ("opened_at", "downgrade_began_at", "downgraded_at", "unlink_began_at", "ended_at")
    times: dict[str, Any] = dict.fromkeys(names)
    times |= {name: None if each is None else at(each) for name, each in zip(names, minutes, strict=False)}
    return Run(id=uuid4(), phase=phase, licenses_held=held, **times)


def retry(begin: float, again: float, step: str = D) -> Retry:
    return Retry(step=step, reason="http_503", at=at(begin), again_at=at(again))


def told(pieces: list[Piece]) -> list[tuple[str, bool, float, float]]:
    """The pieces, with minutes since the begin."""
    minute = timedelta(minutes=1)
    return [(p.step, p.work, (p.begin - BEGIN) / minute, (p.end - BEGIN) / minute) for p in pieces]


def test_a_run_whose_worker_was_lost_is_at_work_only_to_the_end_of_its_lease() -> None:
    lost = run(Phase.UNLINKING, 0, 0, 1, 2)
    lost.owner, lost.lease_until = "a worker, process 7", at(5)
    assert timeline.lost_worker(lost, at(4)) == ""
    assert told(timeline.pieces(lost, [], at(4)))[-1] == (U, True, 2, 4)
    said = "its worker was lost (a worker, process 7): its lease ended at 02:05:00 UTC; reconcile"
    assert timeline.lost_worker(lost, at(9)).startswith(said)
    assert told(timeline.pieces(lost, [], at(9)))[-2:] == [(U, True, 2, 5), (U, False, 5, 9)]
    lost.stopped_by = "ops on host"
    assert timeline.lost_worker(lost, at(9)).endswith("ends the run, which was stopped")
    lost.owner = None
    assert timeline.lost_worker(lost, at(9)) == ""
    assert told(timeline.pieces(lost, [], at(9)))[-1] == (U, True, 2, 9)


@pytest.mark.parametrize(
    ("made", "retries", "pieces"),
    [
        pytest.param(run(Phase.QUEUED, 0), [], [(D, False, 0, 9)], id="queued"),
        pytest.param(
            run(Phase.FINISHED, 0, 1, 4, 5, 7),
            [retry(2, 3)],
            [(D, False, 0, 1), (D, True, 1, 2), (D, False, 2, 3), (D, True, 3, 4), (U, False, 4, 5), (U, True, 5, 7)],
            id="a retry between",
        ),
        pytest.param(
            run(Phase.UNLINKING, 0, 0, 1, 1),
            [retry(2, 30, U)],
            [(D, True, 0, 1), (U, True, 1, 2), (U, False, 2, 9)],
            id="waits now",
        ),
        pytest.param(
            run(Phase.DOWNGRADING, 0, 1),
            [retry(2, 30), retry(5, 40)],
            [(D, False, 0, 1), (D, True, 1, 2), (D, False, 2, 5), (D, True, 5, 5), (D, False, 5, 9)],
            id="resumed by hand before its retry",
        ),
        pytest.param(run(Phase.FAILED, 0, 1, None, None, 1), [], [(D, False, 0, 1), (D, True, 1, 1)], id="at once"),
        pytest.param(
            run(Phase.DOWNGRADED, 0, 1, 2), [], [(D, False, 0, 1), (D, True, 1, 2), (U, False, 2, 9)], id="between"
        ),
        pytest.param(run(Phase.FAILED, 3, None, None, None, 3), [], [], id="refused"),
        pytest.param(run(Phase.FINISHED, 0, None, None, None, 8), [], [], id="of before"),
    ],
)
def test_the_pieces_of_a_run(made: Run, retries: list[Retry], pieces: list[tuple[Any, ...]]) -> None:
    assert told(timeline.pieces(made, retries, at(9))) == pieces


def test_the_marks_of_a_run() -> None:
    again = retry(2, 3)
    made = run(Phase.FAILED, 0, 1, 4, 5, 7, held=2)
    failed, held = Mark("failed", U, at(7)), Mark("held", U, at(7), count=2)
    assert timeline.marks(made, [again], at(9)) == [Mark("retry", D, at(2), retry=again), failed, held]


@pytest.mark.parametrize(
    ("minutes", "first", "count"),
    [
        (0, "02:00:00", 1),
        (0.05, "02:00:00", 4),
        (9, "02:00", 5),
        (100, "02:00", 4),
        (60 * 30, "06:00", 5),
        (60 * 24 * 20, "27 Nov", 5),
    ],
)
def test_the_axis_has_a_few_labels_within_it(minutes: float, first: str, count: int) -> None:
    ticks = Axis(BEGIN, at(minutes)).ticks()
    assert (ticks[0][1], len(ticks)) == (first, count)
    places = [x for x, _ in ticks]
    assert places == sorted(set(places))
    assert 0 <= places[0] <= places[-1] <= 92


def test_the_axis_goes_from_the_first_opening_to_the_last_end_or_now() -> None:
    axis = timeline.axis_of([run(Phase.FINISHED, 2, 2, 3, 3, 4), run(Phase.QUEUED, 1)], at(9))
    assert (axis.begin, axis.end) == (at(1), at(9))
    assert axis.x(at(0)) == axis.x(at(1)) < axis.x(at(5)) < axis.x(at(9)) == axis.x(at(99)) == 92


@pytest.mark.parametrize("moment", [BEGIN, BEGIN.replace(microsecond=1), BEGIN.replace(second=7, microsecond=120_000)])
def test_a_key_leads_back_to_its_moment(moment: datetime) -> None:
    assert history.night_of(history.night_key(moment)) == moment
    assert history.night_key(BEGIN) == "2026-11-24T020000Z"


@pytest.mark.parametrize(
    "key", ["", "2026-11-24", "2026-11-24T020000", "2026-11-24T020000Z+0100", "0000-00-00T000000Z"]
)
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(BadArgument):
        history.night_of(key)


def test_words_for_lengths_and_reasons() -> None:
    lengths = (0.42, 59.6, 67, 7980, 273_600)
    said = [words.span(timedelta(seconds=each)) for each in lengths]
    assert said == ["0.4 s", "1 min", "1 min 7 s", "2 h 13 min", "3 d 4 h"]
    codes = ("http_503", "token_http_401", "timeout", "some_new_code")
    assert [words.in_words(code) for code in codes] == [
        "the LMS answered 503",
        "the LMS gave no token: it answered 401",
        "the LMS did not answer in time",
        "some_new_code",
    ]
