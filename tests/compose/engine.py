"""A Docker engine of the test's own: its data, its socket and its log in one folder."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from support.eventually import eventually


class NoEngine(Exception):
    """dockerd does not start on this machine; the message has the end of its log."""


class Engine:
    """The commands of one engine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"

    def run(self, *command: str | Path, cwd: Path | None = None) -> str:
        """Run docker or docker-compose on this engine; give what it prints. Raises CalledProcessError."""
        environment = {**os.environ, "DOCKER_HOST": self.host, "DOCKER_BUILDKIT": "0"}
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            click.echo(f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}", err=True)
        done.check_returncode()
        return done.stdout


@contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """Start dockerd, with no network of its own and hands off the firewall; end it. Raises NoEngine."""
    made = Engine(folder)
    own = [f"--data-root={folder}/data", f"--exec-root={folder}/exec", f"--pidfile={folder}/dockerd.pid"]
    apart = ["--bridge=none", "--iptables=false", "--ip6tables=false", f"--cgroup-parent=/{folder.name}"]
    file = folder / "dockerd.log"
    with file.open("ab") as log:
        daemon = subprocess.Popen(["dockerd", *own, *apart, f"--host={made.host}"], stdout=log, stderr=log)
    try:
        eventually(lambda: daemon.poll() is not None or _answers(made), 60, "dockerd answers")
        if daemon.poll() is not None:
            raise NoEngine(" ".join(file.read_text(errors="replace").splitlines()[-3:]))
        yield made
    finally:
        daemon.terminate()
        daemon.wait(60)


def _answers(made: Engine) -> bool:
    return subprocess.run(["docker", "--host", made.host, "version"], capture_output=True).returncode == 0
