"""`python -m compose`: the image and docker-compose.yml on a real engine; needs root, docker.io and debootstrap.

Everything happens in a folder and in namespaces of its own, which end with it: no port of this machine is taken, and
nothing is left behind.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import click
import yaml
from support.eventually import eventually

from compose.bases import build, make_bases
from compose.engine import NoEngine, engine

ROOT = Path(__file__).parents[2]
SKIP = 77
COMMANDS = ("dockerd", "docker", "docker-compose", "debootstrap", "unshare", "ip")
APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
# Where Docker would look for another engine, or leave something.
HIDDEN = (Path("/etc/docker"), Path("/run/docker"), Path("/run/containerd"))


def main() -> int:
    """Play the story apart from the rest of the machine; give the exit status."""
    if reason := _why_not():
        click.echo(f"test-compose: SKIPPED, {reason}")
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the end, which leaves nothing
    folder = Path(tempfile.mkdtemp(prefix="license-expiry-compose-", dir="/var/tmp"))
    made = [path for path in HIDDEN if not path.exists()]
    for path in made:
        path.mkdir()
    try:
        status = subprocess.run([*APART, sys.executable, "-m", "compose", str(folder)]).returncode
    finally:
        eventually(lambda: _clean(folder, made), what=f"{folder} is gone")
    return 0 if status == SKIP else status


def _why_not() -> str:
    if os.geteuid():
        return "it takes root to start an engine"
    if absent := [command for command in COMMANDS if shutil.which(command) is None]:
        return f"{', '.join(absent)} not installed"
    trial = [*APART, "unshare", "--net", "ip", "link", "add", "trial", "type", "bridge"]
    done = subprocess.run(trial, capture_output=True, text=True)
    return f"this machine lets nobody make namespaces and bridges: {done.stderr.strip()}" if done.returncode else ""


def inside(folder: Path) -> int:
    """Make the images with this machine's network, then play the story without it; give the exit status."""
    for path in HIDDEN:
        subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True)
    began = time.monotonic()
    try:
        with engine(folder) as own:
            services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
            names = {name: each["image"] for name, each in services.items()}
            names["python"] = (ROOT / "Dockerfile").read_text().partition("FROM ")[2].split()[0]
            make_bases(own, names)
            click.echo(f"test-compose: base images made ({time.monotonic() - began:.0f} s)")
            build(own, ROOT, names["worker"], ROOT / "Dockerfile")
            sizes = [
                int(own.run("docker", "image", "inspect", "--format={{.Size}}", names[name])) / 1e6
                for name in ("worker", "python")
            ]
            told = f"{sizes[0]:.0f} MB, {sizes[0] - sizes[1]:.0f} of it ours"
            click.echo(f"test-compose: image built, {told} ({time.monotonic() - began:.0f} s)")
    except NoEngine as error:
        click.echo(f"test-compose: SKIPPED, dockerd does not start here: {error}")
        return SKIP
    status = subprocess.run(["unshare", "--net", sys.executable, "-m", "compose.story", folder]).returncode
    click.echo(f"test-compose: {'FAILED' if status else 'passed'} ({time.monotonic() - began:.0f} s)")
    return status


def _clean(folder: Path, made: list[Path]) -> bool:
    """Remove what there is; say whether all of it is gone, which it is when the last process has ended."""
    shutil.rmtree(folder, ignore_errors=True)
    groups = list(Path("/sys/fs/cgroup").glob(f"**/{folder.name}"))
    within = [each for group in groups for each in sorted(group.glob("**/"), reverse=True)]
    for path in [*within, *made]:
        with suppress(OSError):
            path.rmdir()
    return not any(path.exists() for path in (folder, *groups, *made))


if __name__ == "__main__":
    sys.exit(inside(Path(sys.argv[1])) if sys.argv[1:] else main())
