"""What the documents say is so."""

import ast
import inspect
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from support import reference
from support.raised import BEFORE_THE_REMEDY, calls

from worker import errors
from worker.celery import app
from worker.cli.main import main
from worker.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
OURS = "https://github.com/openedx/license-expiry/"


def reference_of(name: str) -> str:
    return (DOCS / f"reference/{name}.md").read_text()


@pytest.mark.parametrize("name", reference.PARTS)
def test_the_reference_is_what_the_code_says_now(name: str) -> None:
    assert reference_of(name) == reference.page(name), "run: make reference"


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_reference_with_its_default_and_in_the_example(name: str) -> None:
    (row,) = re.findall(rf"^\| `{name}` \| ([^|]*) \| [^|]{{10,}} \|", reference_of("settings"), flags=re.MULTILINE)
    default = Settings.model_fields[name].default
    if isinstance(default, int | str) and default:
        assert str(default) in row
    assert re.search(rf"^(# )?{name}=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)


def test_five_settings_have_no_default() -> None:
    assert reference_of("settings").count(" | required | ") == 5
    install = (DOCS / "how-to/install.md").read_text()
    told = install.partition("Five have no default: ")[2].partition(". List")[0]
    assert set(re.findall(r"`(\w+)`", told)) == reference._required()


@pytest.mark.parametrize("name", main.commands)
def test_every_command_is_in_the_readme_and_in_the_reference(name: str) -> None:
    assert f"license-expiry {name}" in README
    assert f"## {name}\n\n```text\nUsage: license-expiry {name} " in reference_of("command")


def test_the_commands_without_json_are_those_that_the_reference_names() -> None:
    without = {name for name, each in main.commands.items() if "--json" not in str([p.opts for p in each.params])}
    told = reference_of("command").partition("except ")[2].partition(" takes")[0]
    assert set(re.findall(r"`(\w+)`", told)) == without


def test_every_task_and_argument_is_in_the_reference() -> None:
    app.loader.import_default_modules()
    ours = {name: task for name, task in app.tasks.items() if name.startswith("license_expiry.")}
    assert len(ours) == 5
    told = set(re.findall(r"`(\w+)`", reference_of("tasks").partition("<!--")[0]))
    for name, task in ours.items():
        assert f"## {name}\n" in reference_of("tasks")
        assert set(inspect.signature(task.run).parameters) <= told


REASONS = re.findall(r"`([\w<>]+)`", str(errors.__doc__).partition("The reason codes:")[2])


@pytest.mark.parametrize("code", REASONS)
def test_every_reason_code_is_in_the_reference(code: str) -> None:
    assert re.search(rf"^\| [^|]*`{code}`[^|]* \| [^|]+ \| [^|]+ \|$", reference_of("messages"), re.MULTILINE)


def remedies() -> set[str]:
    """The remedies that stand as plain texts in the code."""
    found = [
        argument.value
        for path, call, name in calls()
        if path != reference.IN_ONE_LOG_LINE
        for argument in call.args[BEFORE_THE_REMEDY[name] :][:1]
        if isinstance(argument, ast.Constant)
    ]
    return {text for text in found if isinstance(text, str)}


def test_every_remedy_is_in_the_reference() -> None:
    assert len(remedies()) > 30
    assert not [text for text in remedies() if reference._cell(text) not in reference_of("messages")]


def test_a_shell_can_source_the_example_and_a_process_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (ROOT / ".env.example").read_text()
    example = re.sub(r"^# ([A-Z_0-9]+=)", r"\1", lines, flags=re.MULTILINE)  # the defaults, too
    example = re.sub(r"^(.*(?:SECRET_FILE|SEGMENT_KEY)=).*", r"\1", example, flags=re.MULTILINE)
    shell = ["sh", "-euc", 'set -a; eval "$1"; set +a; env -0', "sh", f"{example}\nBACKEND_SERVICE_EDX_OAUTH2_SECRET=s"]
    told = subprocess.run(shell, env={}, capture_output=True, text=True, check=True).stdout
    for name, value in (line.split("=", 1) for line in told.split("\0") if line):
        monkeypatch.setenv(name, value)
    assert load_settings(broker=True).NIGHTLY_SCHEDULE == "0 2 * * *"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_into_the_repository_leads_somewhere(path: Path) -> None:
    text = path.read_text()
    for kind, target in re.findall(rf"{OURS}(blob|tree)/main/([^)#>\s]+)", text):
        assert (ROOT / target).is_dir() == (kind == "tree"), target
        assert (ROOT / target).exists(), target
    for picture in re.findall(r"(docs/images/[\w-]+\.png)", text):
        assert (ROOT / picture).exists(), picture


def test_the_readme_is_short_and_reads_the_same_in_a_package_index() -> None:
    assert README.count("\n") < 150
    assert all(link.startswith("https://") for link in re.findall(r"\]\(([^)]+)\)", README))


def test_every_picture_is_on_a_page() -> None:
    text = "".join(path.read_text() for path in PAGES)
    assert not [picture.name for picture in (DOCS / "images").iterdir() if f"images/{picture.name}" not in text]


def test_the_comparison_has_ten_rows_and_each_shows_what_holds_it() -> None:
    table = README.partition("## How it compares")[2].partition("\n\n[")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 10
    assert all(OURS in row[4] for row in rows)


CODE = (DOCS / "explanation/code.md").read_text()
FILES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("worker", "tasks", "simulator", "deploy")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in {".py", ".yml", ".yaml", ".sql", ".md", ""} and path.is_file()
)


@pytest.mark.parametrize("path", [*FILES, "docker-compose.yml", "pyproject.toml", ".env.example", "CHANGELOG.md"])
def test_every_page_that_the_code_names_is_there(path: str) -> None:
    for page in re.findall(r"\b(docs/[\w/-]+\.md)", (ROOT / path).read_text()):
        assert (ROOT / page).exists(), page


def test_the_table_of_packages_is_the_tree() -> None:
    _, _, table = CODE.partition("| In `worker/` |")
    rows = table.partition("\n\n")[0].splitlines()[2:]
    told = [name for row in rows for name in re.findall(r"`([\w./]+)`", row.split("|")[1])]
    there = {
        path.name + "/" * path.is_dir()
        for path in (ROOT / "worker").iterdir()
        if path.suffix != ".typed" and path.name[0] != "_"
    }
    assert sorted(told) == sorted(there)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: str(page.relative_to(DOCS)))
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    for path in re.findall(r"`((?:worker|tasks|simulator|tests)/[\w/]+\.py)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_the_page_of_differences_has_a_reason_in_each_row() -> None:
    text = (DOCS / "explanation/differences.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(len(row.split("|")) == 6 and all(cell.strip() for cell in row.split("|")[1:4]) for row in rows)


PACKAGES = [path.parent for path in (ROOT / "worker").rglob("*/__init__.py") if "migrations" not in path.parts]


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_the_docstring_of_a_package_names_its_modules(package: Path) -> None:
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    for path in package.iterdir():
        if path.name[0] != "_":
            assert f"`{path.stem}" in docstring, path


PINNED = [str(path.relative_to(ROOT)) for path in (ROOT / "requirements").iterdir()]


WORKFLOWS = [str(path.relative_to(ROOT)) for path in (ROOT / ".github").rglob("*.yml")]
ALLOWED = r"(postgresql\+psycopg|mysql\+pymysql)://\S*127\.0\.0\.1|https://github\.com/openedx/license-expiry"


@pytest.mark.parametrize("path", [*PINNED, *WORKFLOWS, "pyproject.toml", "Makefile", ".ci/run", ".ci/package"])
def test_no_pinned_file_names_where_packages_come_from(path: str) -> None:
    assert "://" not in re.sub(ALLOWED, "", (ROOT / path).read_text())


TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/explanation/security.md").read_text())))


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_each_test_that_a_claim_of_security_names_is_there(path: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_each_claim_of_what_a_process_may_do_names_its_tests() -> None:
    claims = (ROOT / "docs/explanation/security.md").read_text().partition("## Per process")[2].partition("\n## ")[0]
    assert {path for path, _ in TESTS} > {"tests/security/test_accounts.py", "tests/security/test_broker_user.py"}
    assert all("::" in claim for claim in claims.split("\n- ")[1:])


@pytest.mark.parametrize("path", ["docs/how-to/install.md", "docs/how-to/systemd.md", "Dockerfile"])
def test_the_package_is_installed_with_what_is_pinned_by_hash_and_nothing_else(path: str) -> None:
    installs = re.findall(r"pip (?:--\S+ \S+ )?install ((?:\\\n|[^\n])*)", (ROOT / path).read_text())
    ours = [line for line in installs if "deploy/tutor" not in line]
    assert len(ours) == 2
    assert "--require-hashes" in ours[0]
    assert "--no-deps --no-build-isolation ." in ours[1]


def test_the_floors_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    floors = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "requirements/floors.txt").read_text(), flags=re.MULTILINE))
    extras = [*project["optional-dependencies"]["mysql"], *project["optional-dependencies"]["postgresql"]]
    for line in [*project["dependencies"], *extras]:
        name, floor = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)(?:,<[\d.]+)?", line).groups()  # type: ignore[union-attr]
        assert f"{floors[name.lower()]}.".startswith(f"{floor}."), line
