"""What the documents say is so."""

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


def test_every_module_is_in_the_architecture() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    for path in (ROOT / "worker").rglob("[a-z]*.py"):
        assert "migrations" in path.parts or str(path.relative_to(ROOT)) in text, path


@pytest.mark.parametrize("path", ["requirements/dev.txt", "pyproject.toml", "Makefile", ".ci/run"])
def test_no_pinned_file_names_where_packages_come_from(path: str) -> None:
    assert "://" not in re.sub(r"(postgresql\+psycopg|mysql\+pymysql)://\S*127\.0\.0\.1", "", (ROOT / path).read_text())
