"""The base images, under the names that the project's files use, made from the mirror that this Debian has."""

import shutil
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path

from compose.engine import Engine

STAND_INS = Path(__file__).parent / "stand-ins"


def make_bases(engine: Engine, names: Mapping[str, str]) -> None:
    """Make an image for each file in stand-ins/, under the name that `names` has for it."""
    context = engine.folder / "stand-ins"
    shutil.copytree(STAND_INS, context)
    _let_pip_out(context)
    root, archive = engine.folder / "root", engine.folder / "root.tar"
    release, mirror = _mirror()
    subprocess.run(["debootstrap", "--variant=minbase", release, root, mirror], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["tar", "--create", f"--file={archive}", f"--directory={root}", "."], check=True)
    engine.run("docker", "import", archive, "debian")
    for file in sorted(context.glob("*.Dockerfile")):
        build(engine, context, names[file.stem], file)


def build(engine: Engine, context: Path, name: str, file: Path) -> None:
    """Build an image, on this machine's own network."""
    engine.run("docker", "build", "--network=host", f"--tag={name}", f"--file={file}", context)


def _mirror() -> tuple[str, str]:
    """The release that this machine runs, and where it has it from."""
    asked = ["apt-get", "indextargets", "--format", "$(CODENAME) $(REPO_URI)", "Created-By: Packages"]
    release, mirror = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()[:2]
    return release, mirror


def _let_pip_out(context: Path) -> None:
    """Lay out what pip needs on this machine: the certificates that it trusts, and its index if that is another."""
    trusted = ssl.get_default_verify_paths().cafile or "/etc/ssl/certs/ca-certificates.crt"
    shutil.copy(trusted, context / "ca-certificates.crt")
    asked = subprocess.run(["pip", "config", "get", "global.index-url"], capture_output=True, text=True)
    index = f"index-url = {asked.stdout.strip()}\n" if asked.returncode == 0 else ""
    (context / "pip.conf").write_text(f"[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n{index}")
