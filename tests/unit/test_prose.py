"""The prose linter finds the phrases of its list, and help texts and messages keep their sentences short."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from support.raised import made, trees

from worker.cli.main import main

ROOT = Path(__file__).parents[2]
WORDS = [line.partition("->")[0] for line in (ROOT / ".codespell/words.txt").read_text().splitlines()]
CODESPELL = Path(sys.executable).parent / "codespell"
MOST_WORDS = 25


@pytest.mark.skipif(not CODESPELL.exists() and not shutil.which("codespell"), reason="codespell is not installed")
def test_the_linter_finds_each_phrase_of_its_list(tmp_path: Path) -> None:
    text = tmp_path / "text.md"
    text.write_text("".join(f"{phrase}\n" for phrase in WORDS))
    found = subprocess.run([CODESPELL, text], cwd=ROOT, capture_output=True, text=True, check=False)
    lines = {int(line.split(":")[1]) for line in found.stdout.splitlines()}
    assert [phrase for number, phrase in enumerate(WORDS, 1) if number not in lines] == []


def sentences(text: str) -> list[str]:
    """Its sentences: a full stop, semicolon or colon before a space, or an empty line, ends one."""
    return re.split(r"[.;:!?]\)?\s|\n\s*\n", text)


def helps(command: click.Command, name: str) -> Iterator[tuple[str, str]]:
    """The help text of this command, of its options and of its commands; examples, marked by \\b, are left out."""
    parts = [part for part in (command.help or "").split("\n\n") if "\b" not in part]
    yield name, "\n\n".join(parts)
    for option in command.params:
        yield f"{name} {option.name}", getattr(option, "help", None) or ""
    if isinstance(command, click.Group):
        for below, each in command.commands.items():
            yield from helps(each, f"{name} {below}")


@pytest.mark.parametrize(("name", "text"), list(helps(main, "license-expiry")))
def test_a_help_text_has_short_sentences(name: str, text: str) -> None:
    assert [each for each in sentences(text) if len(each.split()) > MOST_WORDS] == []


def literal(node: ast.expr) -> str:
    """The text of a string or f-string, each value in it as one word; "" of anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "VALUE" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def messages() -> Iterator[tuple[str, str]]:
    """The texts that errors and findings are made with, or that are assigned to `what` and `remedy` before."""
    for path, tree in trees():
        for node in ast.walk(tree):
            texts: list[ast.expr] = []
            if isinstance(node, ast.Call) and made(node):
                texts = node.args
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("what", "remedy"):
                texts = [node.value]
            yield from ((f"{path}:{text.lineno}", literal(text)) for text in texts if literal(text))


def test_a_message_has_short_sentences() -> None:
    found = list(messages())
    assert len(found) > 100
    assert [(place, each) for place, text in found for each in sentences(text) if len(each.split()) > MOST_WORDS] == []


def test_no_remedy_installs_by_a_name_that_is_not_ours() -> None:
    """Nobody has registered it, so that anybody could."""
    for path in (ROOT / "worker").rglob("*.py"):
        assert not re.search(r"pip install '?license-expiry", path.read_text()), path
