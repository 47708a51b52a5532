"""What the documents say is so."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from worker.cli.main import main
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TABLE = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| ([^|]*) \|", README, flags=re.MULTILINE))


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_readme_with_its_default_and_in_the_example(name: str) -> None:
    default = Settings.model_fields[name].default
    assert name in TABLE
    if isinstance(default, int | str) and default:
        assert str(default) in TABLE[name]
    assert re.search(rf"^(# )?{name}=", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)


def test_no_setting_is_in_the_readme_that_is_not_there() -> None:
    assert set(TABLE) == set(Settings.model_fields)


@pytest.mark.parametrize("name", main.commands)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"license-expiry {name}" in README


def test_every_link_in_the_readme_leads_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


ARCHITECTURE = (ROOT / "docs/architecture.md").read_text()


def test_the_table_of_packages_is_the_tree() -> None:
    _, _, table = ARCHITECTURE.partition("| In `worker/` |")
    rows = table.partition("\n\n")[0].splitlines()[2:]
    told = [name for row in rows for name in re.findall(r"`([\w./]+)`", row.split("|")[1])]
    there = {
        path.name + "/" * path.is_dir()
        for path in (ROOT / "worker").iterdir()
        if path.suffix != ".typed" and path.name[0] != "_"
    }
    assert sorted(told) == sorted(there)


def test_every_file_that_the_architecture_sends_to_is_there() -> None:
    for path in re.findall(r"`((?:worker|tasks|simulator)/[\w./]+)`", ARCHITECTURE):
        assert (ROOT / path).exists(), path


def test_the_page_of_differences_has_a_reason_in_each_row_and_is_linked() -> None:
    rows = [line for line in (ROOT / "docs/differences.md").read_text().splitlines() if line.startswith("| ")]
    assert all(len(row.split("|")) == 6 and all(cell.strip() for cell in row.split("|")[1:4]) for row in rows)
    assert "docs/differences.md" in README
    assert "(differences.md)" in ARCHITECTURE


PACKAGES = [path.parent for path in (ROOT / "worker").rglob("*/__init__.py") if "migrations" not in path.parts]


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_the_docstring_of_a_package_names_its_modules(package: Path) -> None:
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    for path in package.iterdir():
        if path.name[0] != "_":
            assert f"`{path.stem}" in docstring, path


PINNED = [str(path.relative_to(ROOT)) for path in (ROOT / "requirements").iterdir()]


WORKFLOWS = [str(path.relative_to(ROOT)) for path in (ROOT / ".github").rglob("*.yml")]
OURS = r"(postgresql\+psycopg|mysql\+pymysql)://\S*127\.0\.0\.1|https://github\.com/openedx/license-expiry"


@pytest.mark.parametrize("path", [*PINNED, *WORKFLOWS, "pyproject.toml", "Makefile", ".ci/run", ".ci/package"])
def test_no_pinned_file_names_where_packages_come_from(path: str) -> None:
    assert "://" not in re.sub(OURS, "", (ROOT / path).read_text())


TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/security.md").read_text())))


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_each_test_that_a_claim_of_security_names_is_there(path: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_each_claim_of_what_a_process_may_do_names_its_tests() -> None:
    claims = (ROOT / "docs/security.md").read_text().partition("## Per process")[2].partition("\n## ")[0]
    assert {path for path, _ in TESTS} > {"tests/security/test_accounts.py", "tests/security/test_broker_user.py"}
    assert all("::" in claim for claim in claims.split("\n- ")[1:])


@pytest.mark.parametrize("path", ["README.md", "docs/install.md", "Dockerfile"])
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
