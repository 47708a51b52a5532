"""What the form that starts a run asks for, and what it is refused for before anything is looked up."""

from typing import Any
from uuid import uuid4

import pytest

from worker.errors import BadArgument
from worker.flower.forms import Form, arguments

ONE = uuid4()


def test_what_is_asked_for_becomes_the_arguments_of_the_task_and_no_more() -> None:
    form = Form(ONE, [str(ONE)], {"reason": " why ", "approve_unlinks": " 12 ", "expired_after": ""}, {"force"})
    given = arguments(ONE, form.request("ada in Flower"))
    assert given == {
        "enterprise_customer_uuid": str(ONE),
        "plan_uuids": [str(ONE)],
        "force": True,
        "reason": "why",
        "approve_unlinks": 12,
        "triggered_by": "ada in Flower",
    }
    night = Form(None, [], {"reason": "", "approve_unlinks": ""}, {"dry_run"})
    assert arguments(None, night.request("ada")) == {"dry_run": True, "triggered_by": "ada"}


@pytest.mark.parametrize(
    ("form", "argument", "words"),
    [
        (Form(None, [], {"reason": "x"}, {"force"}), "", "the whole night takes no force"),
        (Form(None, [str(ONE)]), "", "the whole night takes no plan_uuids"),
        (Form(None, [], {"expired_after": "2026-01-01"}), "", "the whole night takes no expired_after"),
        (Form(ONE, ["x"]), "plan_uuids", "plan_uuids: "),
        (Form(ONE, [str(uuid4()) for _ in range(1001)]), "plan_uuids", "plan_uuids: "),
        (Form(ONE, [], {"approve_unlinks": "9" * 5000, "reason": "x"}), "approve_unlinks", "approve_unlinks: "),
        (Form(ONE, [], {"approve_unlinks": "²", "reason": "x"}), "approve_unlinks", "approve_unlinks: "),
        (Form(ONE, [], {"approve_unlinks": "5"}), "reason", "approve_unlinks needs a reason"),
        (Form(ONE, [], {}, {"force"}), "reason", "force needs a reason"),
        (Form(ONE, [], {"reason": "turned \u202e round"}), "reason", "reason: must be one line of text"),
        (
            Form(ONE, [], {"expired_after": "2026-02-01", "expired_before": "2026-01-01"}),
            "expired_after",
            "swap the two",
        ),
    ],
)
def test_each_complaint_is_about_one_field(form: Form, argument: str, words: str) -> None:
    with pytest.raises(BadArgument) as refused:
        form.request("ada in Flower")
    complaints: dict[str, Any] = dict(refused.value.complaints)
    assert words in (complaints[argument] if argument else str(refused.value))
