"""Every error that an operator may read says what to do: looked for where the product raises it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# How many arguments come before the remedy.
OF_ONE = dict.fromkeys(("Unusable", "WrongSetting", "WrongValue", "BadArgument"), 1)
BEFORE_THE_REMEDY = OF_ONE | dict.fromkeys(("Unavailable", "RunRefused"), 2)
# The one is read by the log of a courtesy alone; the other's sentences say what an argument must be.
EXCEPT = {"worker/license_manager/segment.py", "worker/runs/request.py"}


def raised() -> Iterator[tuple[str, ast.Call]]:
    """Each place where such an error is made."""
    for folder in ("worker", "tasks"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") in BEFORE_THE_REMEDY:
                    yield str(path.relative_to(ROOT)), node


CALLS = [pytest.param(path, call, id=f"{path}:{call.lineno}") for path, call in raised() if path not in EXCEPT]


@pytest.mark.parametrize(("path", "call"), CALLS)
def test_an_error_is_raised_with_its_remedy(path: str, call: ast.Call) -> None:
    starred = any(isinstance(argument, ast.Starred) for argument in call.args)  # cannot_be_used gives both
    before = BEFORE_THE_REMEDY[getattr(call.func, "id", "")]
    assert starred or len(call.args) > before or "remedy" in {keyword.arg for keyword in call.keywords}
    remedies = call.args[before : before + 1]
    assert not [remedy for remedy in remedies if isinstance(remedy, ast.Constant) and not remedy.value]


def test_there_are_many_of_them() -> None:
    assert len(CALLS) > 25
