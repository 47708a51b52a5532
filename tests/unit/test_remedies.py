"""Every error that an operator may read says what to do: looked for where the product raises it."""

import ast

import pytest
from support.raised import ERRORS, calls

# The one is read by the log of a courtesy alone; the other's sentences say what an argument must be.
EXCEPT = {"worker/license_manager/segment.py", "worker/runs/request.py"}
CALLS = [
    pytest.param(call, ERRORS[name], id=f"{path}:{call.lineno}")
    for path, call, name in calls()
    if name in ERRORS and path not in EXCEPT
]


@pytest.mark.parametrize(("call", "before"), CALLS)
def test_an_error_is_raised_with_its_remedy(call: ast.Call, before: int) -> None:
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)  # cannot_be_used gives both
    assert starred or len(call.args) > before or "remedy" in {keyword.arg for keyword in call.keywords}
    remedies = call.args[before : before + 1]
    assert not [remedy for remedy in remedies if isinstance(remedy, ast.Constant) and not remedy.value]


def test_there_are_many_of_them() -> None:
    assert len(CALLS) > 25
