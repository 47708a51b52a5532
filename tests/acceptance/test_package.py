"""The package that `pip install .` makes: it brings everything that runs."""

import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]


def asked_for(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """The names of all that a distribution of this environment asks for, its own among them."""
    found = {name}
    for line in metadata.requires(name) or []:
        wanted = Requirement(line)
        if wanted.marker is None or any(wanted.marker.evaluate({"extra": extra}) for extra in extras | {""}):
            found |= asked_for(wanted.name, frozenset(wanted.extras))
    return found


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with nothing but the wheel and what it asks for, lent by this one; the folder of its commands."""
    folder = tmp_path_factory.mktemp("package")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-build-isolation", "--no-deps", "-w", folder, ROOT], check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv/bin/python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], check=True)
    (packages,) = (folder / "venv/lib").glob("python*/site-packages")
    for name in asked_for("license-expiry") - {"license-expiry"}:
        lent = metadata.distribution(name)
        for part in {file.parts[0] for file in lent.files or () if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / part).exists():
                (packages / part).symlink_to(Path(str(lent.locate_file(part))))
    celery = folder / "venv/bin/celery"
    celery.write_text(f"#!{python}\nfrom celery.__main__ import main\nmain()\n")
    celery.chmod(0o755)
    return folder / "venv/bin"


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["license-expiry", "--help"], "init-db"),
        (["celery", "-A", "worker", "report"], "license_expiry"),
        (["python", "-m", "simulator", "--help"], "make-data"),
        (["python", "-c", "import tasks; print(sorted(tasks.run_nightly.app.tasks))"], "license_expiry.run_nightly"),
        (["python", "-c", "import worker.ledger.migrations.versions as v; print(*v.__path__)"], "versions"),
        (
            ["python", "-c", "from importlib.resources import files as f; print((f('worker') / 'py.typed').is_file())"],
            "True",
        ),
        (
            [
                "python",
                "-c",
                "from importlib.metadata import metadata as m; print(m('license-expiry')['License-Expression'])",
            ],
            "AGPL",
        ),
    ],
)
def test_it_starts_in_an_empty_folder(installed: Path, tmp_path: Path, command: list[str], expected: str) -> None:
    bare = {"PATH": f"{installed}:/usr/bin:/bin", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


@pytest.mark.long
def test_it_makes_the_ledger_there(installed: Path, tmp_path: Path) -> None:
    environment = {
        "PATH": f"{installed}:/usr/bin:/bin",
        "DATABASE_URL": f"sqlite:///{tmp_path}/try.db",
        "LMS_URL": "http://127.0.0.1:1",
        "BACKEND_SERVICE_EDX_OAUTH2_KEY": "key",
        "BACKEND_SERVICE_EDX_OAUTH2_SECRET": "secret",
    }
    for command in (
        ["python", "-m", "simulator", "make-data", "--demo", "--database", environment["DATABASE_URL"]],
        ["license-expiry", "init-db"],
        ["license-expiry", "due", "--json"],
    ):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    assert '"enterprises"' in done.stdout
