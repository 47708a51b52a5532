"""The bench's arithmetic: the sizes of a night, what of it is not done, and how a shape grows."""

from collections.abc import Mapping

import click
import pytest

from bench.__main__ import Night
from bench.data import Layout
from bench.figures import growth, in_short, not_done
from bench.shapes import SHAPES, smaller
from bench.stand import REALISTIC, Pace


@pytest.mark.parametrize(
    ("layout", "licenses", "people"),
    [
        (Layout(3, 10), 30, 30),
        (Layout(3, 10, large=100), 120, 120),
        (Layout(1, 100, plans=20), 100, 100),
        (Layout(2, 10, one_person=True), 20, 4),  # one in each plan, or those of current plans would be protected
        (Layout(2, 5), 8, 8),  # what cannot be halved is left out
    ],
)
def test_half_of_the_licenses_and_of_the_learners_are_due(layout: Layout, licenses: int, people: int) -> None:
    assert (layout.all_licenses, layout.due, layout.people) == (licenses, licenses // 2, people)
    assert not_done(layout, {"licenses_downgraded": layout.due, "linked": people // 2}) == 0


@pytest.mark.parametrize(("downgraded", "linked"), [(14, 15), (16, 15), (15, 16), (15, 14)])
def test_too_little_and_too_much_are_both_reported(downgraded: int, linked: int) -> None:
    assert not_done(Layout(3, 10), {"licenses_downgraded": downgraded, "linked": linked}) == 1


@pytest.mark.parametrize("name", SHAPES)
def test_a_tenth_of_a_shape_has_a_tenth_of_its_licenses_and_the_same_plans(name: str) -> None:
    whole, tenth = SHAPES[name], smaller(SHAPES[name], 10)
    assert tenth.all_licenses * 10 == whole.all_licenses
    if whole.plans > 2 or whole.enterprises > 1:
        assert next(tenth.sizes()) == next(whole.sizes())


def figures(due: int, wall: float, statements: float, peak: int) -> Mapping[str, float]:
    ratios = {"statements_per_call": statements, "worker_peak_mib": peak}
    return {"due": due, "wall_seconds": wall, "ideal_seconds": 1, **ratios}


def test_what_grows_with_the_work_has_the_ratio_1() -> None:
    assert growth(figures(1000, 21, 4, 100), figures(100, 3, 4, 100)) == {
        "seconds_beside_the_lms_per_license": 1.0,
        "statements_per_call": 1.0,
        "worker_peak_mib": 1.0,
    }


def test_what_grows_faster_than_the_work_has_a_greater_ratio() -> None:
    grown = growth(figures(1000, 201, 12, 300), figures(100, 3, 4, 100))
    assert list(grown.values()) == [10.0, 3.0, 3.0]


def test_a_night_is_realistic_unless_its_pace_is_given() -> None:
    read = Night().convert
    assert read("20x1000", None, None) == (20, 1000, REALISTIC)
    assert read("20x1000@0.05/8/4", None, None) == (20, 1000, Pace(0.05, 8, 4))
    for wrong in ("20", "20x1000@1", "20x1000@1/x/3"):
        with pytest.raises(click.BadParameter, match="is not like"):
            read(wrong, None, None)


def test_figures_below_1_keep_three_digits() -> None:
    assert (in_short(12.345), in_short(0.0123)) == (12.3, 0.012)
