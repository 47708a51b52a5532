"""What the documents say is so."""

import ast
import re
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
    there = {path.name + "/" * path.is_dir() for path in (ROOT / "worker").iterdir() if path.name[0] != "_"}
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


@pytest.mark.parametrize("path", ["requirements/dev.txt", "pyproject.toml", "Makefile", ".ci/run"])
def test_no_pinned_file_names_where_packages_come_from(path: str) -> None:
    assert "://" not in re.sub(r"(postgresql\+psycopg|mysql\+pymysql)://\S*127\.0\.0\.1", "", (ROOT / path).read_text())


TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs/security.md").read_text())))


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_each_test_that_a_claim_of_security_names_is_there(path: str, name: str) -> None:
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE)


def test_each_claim_of_what_a_process_may_do_names_its_tests() -> None:
    claims = (ROOT / "docs/security.md").read_text().partition("## Per process")[2].partition("\n## ")[0]
    assert {path for path, _ in TESTS} > {"tests/security/test_accounts.py", "tests/security/test_broker_user.py"}
    assert all("::" in claim for claim in claims.split("\n- ")[1:])
