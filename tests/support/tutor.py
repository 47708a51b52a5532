"""The Tutor plugin, installed by pip into a folder, with a Tutor root and a stand-in for docker there."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Keeps what it was asked, an argument a line (NUL) and a call a page (SOH).
DOCKER = """#!/bin/sh
printf '%s\\0' "$@" >>"$0.asked"
printf '\\001' >>"$0.asked"
echo '{}'
"""


def installed(folder: Path, settings: Mapping[str, str]) -> Path:
    """Install and enable the plugin, with these settings of Tutor; give Tutor's env/ folder."""
    shutil.copytree(ROOT / "deploy/tutor", folder / "source")  # setuptools builds beside what it builds
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-build-isolation"]
    subprocess.run([*pip, "--no-deps", "--target", folder / "site", folder / "source"], check=True)
    (folder / "bin").mkdir()
    (folder / "bin/docker").write_text(DOCKER)
    (folder / "bin/docker").chmod(0o755)
    tutor(folder, "plugins", "enable", "license-expiry")
    tutor(folder, "config", "save", *(word for each in settings.items() for word in ("--set", "=".join(each))))
    return folder / "root/env"


def tutor(folder: Path, *command: str) -> list[list[str]]:
    """Run tutor with the plugin; give what it asked docker: the arguments of each call."""
    asked = folder / "bin/docker.asked"
    asked.unlink(missing_ok=True)
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "site"),
        "TUTOR_ROOT": str(folder / "root"),
        "TUTOR_PLUGINS_ROOT": str(folder / "plugins"),
    }
    program = Path(sys.executable).parent / "tutor"
    subprocess.run([program, *command], env=environment, check=True, timeout=60, capture_output=True)
    calls = asked.read_text().split("\1")[:-1] if asked.exists() else []
    return [call.split("\0")[:-1] for call in calls]
