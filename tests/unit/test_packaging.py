"""What the package, its papers and its workflows say of each other is so."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
CI = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
COMMANDS = r"(?:make|\.ci/run) ([a-z][a-z-]*)"


def test_ci_tests_each_python_that_the_package_names_from_the_oldest_on() -> None:
    rows = CI["jobs"]["make"]["strategy"]["matrix"]["include"]
    assert [row["python"] for row in rows if row["name"] == "tests"] == PYTHONS
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    assert f"Python {PYTHONS[0]} to {PYTHONS[-1]}" in CONTRIBUTING


@pytest.mark.parametrize("path", [*WORKFLOWS, ROOT / ".ci/run", ROOT / "CONTRIBUTING.md"], ids=lambda path: path.name)
def test_each_make_target_that_is_called_is_there(path: Path) -> None:
    called = re.findall(COMMANDS, re.sub(r"^ *#.*", "", path.read_text(), flags=re.MULTILINE))
    assert called
    assert set(called) <= TARGETS


def test_hosted_ci_makes_all_that_ci_makes() -> None:
    [targets] = re.findall(r"\$\{\*:-(.*?)\}", (ROOT / ".ci/run").read_text())
    rows = CI["jobs"]["make"]["strategy"]["matrix"]["include"]
    assert set(targets.split()) <= {re.fullmatch(COMMANDS, row["command"])[1] for row in rows}  # type: ignore[index]


def test_each_file_that_contributing_names_is_there() -> None:
    named = re.findall(r"`((?:worker|tasks|tests|deploy|docs|requirements)/[\w./-]*)`", CONTRIBUTING)
    named += re.findall(r"\]\((?!https://)([^)#]+)", CONTRIBUTING)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    first, *releases = re.findall(r"^## (.*)", changelog, flags=re.MULTILINE)
    assert first == "[Unreleased]"
    versions = [Version(re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d", each)[1]) for each in releases]  # type: ignore[index]
    assert versions == sorted(set(versions), reverse=True)
    assert Version(PROJECT["version"]) >= max(versions, default=Version("0"))
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)", changelog, flags=re.MULTILINE)) <= kinds


def test_the_license_is_the_one_that_is_declared() -> None:
    assert PROJECT["license"] == "AGPL-3.0-or-later"
    [file] = PROJECT["license-files"]
    text = (ROOT / file).read_text()
    assert "GNU AFFERO GENERAL PUBLIC LICENSE\n                       Version 3, 19 November 2007" in text
    assert "END OF TERMS AND CONDITIONS" in text
