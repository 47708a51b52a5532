"""The assertion that downgrades come before unlinks sees what is out of order."""

from typing import Any

import pytest
from support.runs import (
    assert_order,
)

from simulator.lms.journal import Journal

# The assertion itself


@pytest.mark.parametrize(
    ("calls", "kept"),
    [
        ("D d U u", True),
        ("D D d d U U u u", True),
        ("U u", True),  # nothing was to be downgraded
        ("D U d u", False),  # in flight
        ("U D u d", False),
        ("U u D d", False),
        ("D d D U d u", False),
        ("D d U u D", False),  # and never ended
    ],
)
def test_assert_order_sees_what_is_out_of_order(calls: str, kept: bool) -> None:
    journal, begun = Journal(), {"D": list[Any](), "U": list[Any]()}
    for call in calls.split():
        if call.isupper():
            begun[call].append(journal.begin("downgrade" if call == "D" else "unlink", "/", enterprises=["one"]))
        else:
            journal.finish(begun[call.upper()].pop(0), 200, None)
    if kept:
        assert_order(journal)
    else:
        with pytest.raises(AssertionError, match="one"):
            assert_order(journal)
