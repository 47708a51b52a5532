"""What operators are given to install by: it parses, and names only what there is."""

import configparser
import re
import shutil
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from support.flower_options import keeps_its_list
from support.services import missing

from worker.flower.guard import FlowerSettings
from worker.settings import CelerySettings, DatabaseSettings, Settings
from worker.settings.sources import CONFIG_FILE_VARIABLE

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
HOW_TO = ROOT / "docs/how-to"
DOCS = [*sorted(HOW_TO.glob("*.md")), ROOT / "docs/runbooks.md"]
SETTINGS = {*Settings.model_fields, *FlowerSettings.model_fields, CONFIG_FILE_VARIABLE}
FLOWERS = {f"FLOWER_{name.upper()}" for name in import_module("flower.options").default_options}
OF_OTHERS = {
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
    "MYSQL_HOST",
    "DOCKER_REGISTRY",
}  # Python's and Tutor's, and requests'
OF_OTHERS |= {"CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"}
SECRETS = {f"{process}_DATABASE_URL" for process in ("INIT", "FLOWER", "SERVE")}  # by their names at their source
PREPARE = (ROOT / "deploy/compose/prepare").read_text()
SECRETS |= set(re.findall(r"^(?:secret|database) ([A-Z_]+)", PREPARE, flags=re.MULTILINE))


def unit(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(path)
    return parser


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_unit_starts_a_command_that_is_installed_and_hands_over_no_secret_itself(path: Path) -> None:
    service = unit(path)["Service"]
    installed = {"celery", *tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]}
    assert Path(service["ExecStart"].split()[0]).parent == Path("/opt/license-expiry/bin")
    assert Path(service["ExecStart"].split()[0]).name in installed
    assert not re.search("URL=|SECRET=|AUTH=", path.read_text())


def test_the_worker_is_stopped_as_its_shutdown_needs_it() -> None:
    service = unit(ROOT / "deploy/systemd/license-expiry-worker.service")["Service"]
    assert (service["KillMode"], service["TimeoutStopSec"]) == ("mixed", "160")


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze") or missing("systemd-analyze", "install systemd")
    units = shutil.copytree(ROOT / "deploy/systemd", tmp_path / "units")
    for path in units.glob("*.service"):  # it looks for the commands too
        path.write_text(re.sub(r"ExecStart=\S+", "ExecStart=/bin/true", path.read_text()))
    done = subprocess.run(
        [analyze, "verify", "--man=no", *sorted(units.glob("*.service"))], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    for path in units.glob("*.service"):
        assessed = [
            analyze,
            "security",
            "--offline=true",
            "--threshold=20",
            "--no-pager",
            str(path),
        ]  # its level times ten
        done = subprocess.run(assessed, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_the_documented_installation_takes_only_what_has_the_pinned_hashes() -> None:
    texts = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    installs = re.findall(r"/opt/license-expiry/bin/pip install (.+)", texts)
    assert installs == [
        "--require-hashes -r requirements/run.txt -r requirements/build.txt",
        "--no-deps --no-build-isolation .",
    ]


@pytest.mark.parametrize("name", ["worker", "beat", "flower", "serve", "init"])
def test_each_unit_reads_a_file_of_its_own(name: str) -> None:
    file = unit(ROOT / f"deploy/systemd/license-expiry-{name}.service")["Service"]["EnvironmentFile"]
    assert file == f"/etc/license-expiry/{name}.env"
    assert f"| `{file}` |" in (HOW_TO / "systemd.md").read_text()


def test_flower_keeps_its_list_in_a_folder_that_it_may_write() -> None:
    service = unit(ROOT / "deploy/systemd/license-expiry-flower.service")["Service"]
    file = keeps_its_list([Path(service["ExecStart"].split()[0]).name, *service["ExecStart"].split()[1:]])
    assert Path(file).parent == Path("/var/lib") / service["StateDirectory"]


def test_the_units_of_flower_and_serve_are_documented_with_the_settings_that_they_read() -> None:
    rows = dict(re.findall(r"^\| (\w+) \| (.+) \|$", (HOW_TO / "install.md").read_text(), flags=re.MULTILINE))
    judged = {"CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED", "UNLINK_AFTER_DAYS", "UNLINK_LIMIT"}
    named = set(re.findall(r"`([A-Z_]+)", rows["Flower"]))
    assert {"DATABASE_URL", "CELERY_BROKER_URL", "FLOWER_BASIC_AUTH", "SERVE_URL", *judged} <= named
    addresses = {"DATABASE_URL", "FLOWER_URL", "SERVE_URL"}
    assert set(DatabaseSettings.model_fields) - set(CelerySettings.model_fields) == judged | addresses
    assert not any("OAUTH2" in name for name in named)


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_every_setting_that_a_document_names_is_there(path: Path) -> None:
    plugin = (ROOT / "deploy/tutor/tutor_license_expiry/plugin.py").read_text()
    tutors = {f"LICENSE_EXPIRY_{name}" for name in re.findall(r'"([A-Z0-9_]+)"', plugin)}
    named = set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b", path.read_text()))
    assert not named - SETTINGS - FLOWERS - tutors - OF_OTHERS - SECRETS


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.stem)
def test_every_link_leads_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\((?!https:)([^)]+)\)", path.read_text()):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_alert_has_its_run_book() -> None:
    rules = "".join(path.read_text() for path in (ROOT / "deploy/prometheus").glob("*.y*ml"))
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs/runbooks.md").read_text(), flags=re.MULTILINE)
    assert sorted(re.findall(r"- alert: (\w+)", rules)) == sorted(headings)
