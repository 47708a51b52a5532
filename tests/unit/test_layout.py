"""The house stays one in which a stranger finds the way: few entries, small modules, short functions."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKER = ROOT / "worker"
PACKAGES = sorted(path.parent for path in WORKER.rglob("*/__init__.py"))
MODULES = sorted(path for folder in ("worker", "tasks") for path in (ROOT / folder).rglob("*.py"))


def test_worker_has_few_entries() -> None:
    assert len([path for path in WORKER.iterdir() if path.name not in ("__pycache__", "py.typed")]) <= 18


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: str(package.relative_to(WORKER)))
def test_a_package_has_few_modules(package: Path) -> None:
    assert len(list(package.glob("*.py"))) - 1 <= 12


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_a_module_is_small_and_its_functions_are_short(module: Path) -> None:
    text = module.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 40, node.name
