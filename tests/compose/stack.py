"""The compose project on an engine, and what the scenes of the story say and ask by HTTP."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import click

from compose.engine import Engine

ROOT = Path(__file__).parents[2]
FLOWER = "http://127.0.0.1:5555"
BEGAN = time.monotonic()


class Stack:
    """The compose project, in a copy of the files that an operator has."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.folder = engine.folder / "project"
        self.folder.mkdir()
        for name in (
            "docker-compose.yml",
            "Dockerfile",
            ".dockerignore",
            "README.md",
            "celeryconfig.py",
            "pyproject.toml",
        ):
            shutil.copy(ROOT / name, self.folder)
        for name in ("requirements", "simulator", "tasks", "worker"):
            shutil.copytree(ROOT / name, self.folder / name)
        for part in ("compose", "database", "prometheus"):
            ignored = shutil.ignore_patterns("secrets", "settings.env")
            shutil.copytree(ROOT / "deploy" / part, self.folder / "deploy" / part, ignore=ignored)
        subprocess.run([self.folder / "deploy/compose/prepare"], check=True, stdout=subprocess.DEVNULL)
        self.secrets = {path.name: path.read_text() for path in (self.folder / "deploy/compose/secrets").iterdir()}

    def compose(self, *command: str) -> str:
        """Run docker-compose with both profiles; give what it prints."""
        files = ["--file=docker-compose.yml", f"--file={ROOT}/tests/compose/override.yml"]
        profiles = ["--profile=demo", "--profile=monitoring"]
        return self.engine.run("docker-compose", "--project-name=night", *files, *profiles, *command, cwd=self.folder)

    def inspected(self) -> dict[str, Any]:
        """Give what the engine says of each service's container, the ended ones too."""
        ids = self.engine.run("docker", "ps", "--all", "--quiet").split()
        each = json.loads(self.engine.run("docker", "inspect", *ids))
        return {one["Config"]["Labels"]["com.docker.compose.service"]: one for one in each}

    def license_expiry(self, *command: str) -> Any:
        """Run the command in the worker's container; give what it prints as JSON. Status 1 tells of a held license."""
        told = f"license-expiry {' '.join(command)} --json || [ $? = 1 ]"
        return json.loads(self.compose("exec", "-T", "worker", "sh", "-c", told))

    def flower(self, path: str, content: Any) -> Any:
        """Post to Flower's API as its operator."""
        login = base64.b64encode(self.secrets["FLOWER_BASIC_AUTH"].encode()).decode()
        return http(FLOWER + path, content, {"Authorization": f"Basic {login}"})

    def runs(self, enterprise: str | None = None) -> list[dict[str, Any]]:
        """The newest run of each enterprise, or of one."""
        runs = self.license_expiry("status")["runs"]
        return [run for run in runs if enterprise in (None, run["enterprise_customer_uuid"])]


def http(url: str, content: Any = None, headers: dict[str, str] | None = None) -> Any:
    """Get, or post JSON; give the answer, as JSON if it is. Raises HTTPError."""
    body = None if content is None else json.dumps(content).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body, headers or {}), timeout=30) as answer:
        text = answer.read().decode()
    return json.loads(text) if answer.headers.get_content_type() == "application/json" else text


def say(what: str) -> None:
    click.echo(f"test-compose: {what} ({time.monotonic() - BEGAN:.0f} s since up)")
