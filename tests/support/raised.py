"""Where the product makes its errors and findings: the calls, found in its source."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# How many arguments come before the remedy. The one before the remedy is what happened.
ERRORS = {
    **dict.fromkeys(("Unusable", "WrongSetting", "WrongValue", "BadArgument"), 1),
    **dict.fromkeys(("Unavailable", "RunRefused"), 2),
}
BEFORE_THE_REMEDY = ERRORS | {"Away": 1, "Finding": 3}


def trees() -> Iterator[tuple[str, ast.Module]]:
    """Each module of the product, by its path in the project."""
    for folder in ("worker", "tasks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text())


def made(node: ast.AST) -> str:
    """The name of the error or finding that this node makes; "" if it makes none."""
    name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
    return name if name in BEFORE_THE_REMEDY else ""


def calls() -> Iterator[tuple[str, ast.Call, str]]:
    """Each place where one is made: the module's path, the call, and the name."""
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and (name := made(node)):
                yield path, node, name
