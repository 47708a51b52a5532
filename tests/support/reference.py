"""Writes the parts of docs/reference/ that the code already says: settings, command, tasks, metrics, messages.

`make reference` puts each part between the two comments that name it in its page. A test holds the pages to the code.
"""

import ast
import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from unittest import mock

import click
from pydantic_core import PydanticUndefined

from support.raised import BEFORE_THE_REMEDY, made, trees
from tasks import broker
from worker.celery import app
from worker.cli.main import main as command
from worker.errors import SeveralWrong
from worker.lms import outcomes
from worker.settings import CelerySettings, DatabaseSettings, Settings, load_settings
from worker.web import metrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/reference"
READERS = {
    CelerySettings: "Every process reads these. Beat reads no others",
    DatabaseSettings: "Workers, the command, Flower and serve read these",
    Settings: "Workers and the command read these",
}
# Where an error is made, and what its messages are about.
SUBJECTS = {
    "worker/settings": "Settings",
    "worker/db": "The database",
    "worker/lms": "The LMS",
    "tasks/broker.py": "The broker",
    "worker/cli/checks": "Findings of `license-expiry doctor`",
    "worker/flower": "Flower",
    "worker/web": "The pages of `license-expiry serve`",
    "": "Starting, running and stopping",
}
IN_ONE_LOG_LINE = "worker/license_manager/segment.py"  # its messages are read nowhere else
HELP_OPTIONS: list[str] = command.context_settings["help_option_names"]
Texts = dict[str, "str | tuple[str, ...]"]


def settings() -> str:
    """A table of settings for each kind of process that reads them."""
    required, told, tables = _required(), set[str](), []
    for model, readers in READERS.items():
        rows = ["| Setting | Default | Meaning | Example |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            if name not in told:
                default = "required" if name in required else _default(field.default)
                example = f"`{(field.examples or [''])[0]}`"
                rows.append(f"| `{name}` | {default} | {_cell(field.description or '')} | {example} |")
        told |= set(model.model_fields)
        tables.append(f"{readers}:\n\n" + "\n".join(rows))
    return "\n\n".join(tables)


def _required() -> set[str]:
    """The settings that a worker does not start without."""
    with mock.patch.dict(os.environ, clear=True):
        try:
            load_settings(broker=True)
        except SeveralWrong as error:
            return {part.what.partition(":")[0] for part in error.parts}
    return set()


def _default(value: object) -> str:
    if value is False:
        return "`false`"
    return f"`{value}`" if value not in (None, "", frozenset(), PydanticUndefined) else "not set"


def commands() -> str:
    """The help of the command, and of each of its own commands, as --help prints it."""
    top = click.Context(command, info_name="license-expiry", terminal_width=100, help_option_names=HELP_OPTIONS)
    parts = [_help(command, top)]
    for name, each in sorted(command.commands.items()):
        own = click.Context(each, parent=top, info_name=name, terminal_width=100)
        parts.append(f"## {name}\n\n{_help(each, own)}")
    return "\n\n".join(parts)


def _help(each: click.Command, context: click.Context) -> str:
    return f"```text\n{each.get_help(context).rstrip()}\n```"


def tasks() -> str:
    """Each task with its arguments and the sentence that says what it does."""
    app.loader.import_default_modules()
    parts = []
    for name, task in sorted(app.tasks.items()):
        if name.startswith("license_expiry."):
            arguments = str(inspect.signature(task.run)).partition(" -> ")[0]
            parts.append(f"## {name}\n\n```python\n{name}{arguments}\n```\n\n{inspect.getdoc(task.run)}")
    return "\n\n".join(parts)


def series() -> str:
    """The metrics of serve."""
    rows = ["| Metric | Type | Labels | Meaning |", "|---|---|---|---|"]
    for family in metrics._families({}):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in getattr(family, "_labelnames", ()))
        rows.append(f"| `{name}` | {family.type} | {labels} | {_cell(family.documentation)} |")
    return "\n".join(rows)


def messages() -> str:
    """What may be wrong and what to do about it, as the code has it. `…` stands for what a message fills in."""
    known: Texts = {}
    modules = dict(trees())
    for tree in modules.values():
        known |= _assigned(tree.body, known)
    by_subject: dict[str, set[tuple[str, str]]] = {subject: set() for subject in SUBJECTS.values()}
    for path, tree in modules.items():
        if path != IN_ONE_LOG_LINE:
            subject = next(told for start, told in SUBJECTS.items() if path.startswith(start))
            by_subject[subject] |= set(_pairs(tree, known))
    by_subject["The broker"] |= {
        (f"the broker refuses: {', '.join(kind.__name__ for kind in kinds)}", told) for kinds, told in broker._REMEDIES
    }
    by_subject["The LMS"] |= {(f"the LMS answered {status}", told) for status, told in outcomes.REMEDIES.items()}
    parts = []
    for subject, pairs in by_subject.items():
        rows = [f"| {_cell(what)} | {_cell(remedy)} |" for what, remedy in sorted(pairs)]
        parts.append(f"### {subject}\n\n| Message | What to do |\n|---|---|\n" + "\n".join(rows))
    return "\n\n".join(parts)


def _pairs(tree: ast.AST, known: Texts) -> Iterator[tuple[str, str]]:
    """Each message with its remedy. A name stands for the text that it was given last before."""
    for function in [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]:
        texts = dict(known)
        for node in sorted(ast.walk(function), key=lambda node: getattr(node, "lineno", 0)):
            texts |= _assigned([node], texts)
            if isinstance(node, ast.Call) and (name := made(node)):
                arguments = [text for each in node.args for text in _told(each, texts)]
                remedy = BEFORE_THE_REMEDY[name]
                pair = [re.sub("…[… ]*…", "…", text) for text in arguments[remedy - 1 : remedy + 1]]
                if len(pair) == 2 and pair[1].strip("… :;.,()"):  # what happened may be known to the run alone
                    yield pair[0], pair[1]


def _assigned(nodes: Iterable[ast.AST], known: Texts) -> Texts:
    """The names to which these statements give texts."""
    found: Texts = {}
    for node in nodes:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.expr):
            texts = tuple(text for text in _told(value, known | found) if text.strip("…"))
            if isinstance(node, ast.AugAssign):
                found[target.id] = f"{known.get(target.id, '')}…"
            elif texts:
                found[target.id] = texts if isinstance(value, ast.Tuple) else texts[0]
    return found


def _told(node: ast.expr, known: Mapping[str, str | tuple[str, ...]]) -> list[str]:
    """The texts that an expression stands for: one, or those of a tuple; `…` for what only a run can tell."""
    match node:
        case ast.Constant(value=str(value)):
            return [value]
        case ast.Name(id=name) if name in known:
            texts = known[name]
            return list(texts) if isinstance(texts, tuple) else [texts]
        case ast.JoinedStr(values=parts):
            return ["".join(_told(part, known)[0] for part in parts)]
        case ast.FormattedValue(value=ast.Name(id=name)) if name.isupper() and isinstance(known.get(name), str):
            return _told(node.value, known)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [_told(left, known)[0] + _told(right, known)[0]]
        case ast.Call(func=ast.Attribute(value=template, attr="format")):
            return [re.sub(r"{\w*}", "…", _told(template, known)[0])]
        case ast.IfExp(body=body):
            return _told(body, known)
        case ast.Tuple(elts=parts):
            return [_told(part, known)[0] for part in parts]
        case ast.Starred(value=value):
            return _told(value, known)
    return ["…"]


def _cell(text: str) -> str:
    """A text as a cell of a table: on one line, with what Markdown and HTML would take for their own set apart."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


PARTS = {"settings": settings, "command": commands, "tasks": tasks, "metrics": series, "messages": messages}


def page(name: str) -> str:
    """The page of this name as it should be: what people wrote, and between the comments what the code says."""
    text = (FOLDER / f"{name}.md").read_text()
    start, end = f"<!-- made by make reference: {name} -->", "<!-- end -->"
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n\n{PARTS[name]()}\n\n{end}{after}"


if __name__ == "__main__":
    for each in PARTS:
        (FOLDER / f"{each}.md").write_text(page(each))
