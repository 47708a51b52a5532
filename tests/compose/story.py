"""`python -m compose.story FOLDER`: the stack comes up on the engine's images, does its nights, and goes down."""

import base64
import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import click
import pytest
from support.eventually import eventually

from compose.engine import Engine, engine
from simulator.data.showcase import CASES

ROOT = Path(__file__).parents[2]
FLOWER, SERVE, LMS, PROMETHEUS = (f"http://127.0.0.1:{port}" for port in (5555, 8001, 8000, 9090))
ALDER = str(CASES[0].uuid)
LIVE = {"queued", "downgrading", "downgraded", "unlinking"}


class Stack:
    """The compose project, in a copy of the files that an operator has."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.folder = engine.folder / "project"
        self.folder.mkdir()
        shutil.copy(ROOT / "docker-compose.yml", self.folder)
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


def comes_up(stack: Stack) -> None:
    stack.compose("up", "--detach", "--no-build", "--quiet-pull")
    wanted = {"redis", "worker", "beat", "flower", "serve", "mariadb", "simulator", "prometheus"}

    def unwell() -> dict[str, str]:
        states = {name: one["State"] for name, one in stack.inspected().items()}
        healths = {name: states[name].get("Health", {}).get("Status", "no check") for name in wanted}
        return {name: health for name, health in healths.items() if health != "healthy"}

    eventually(lambda: not unwell(), 180, "every service is healthy")
    for name in ("init", "accounts", "rights"):
        assert stack.inspected()[name]["State"]["ExitCode"] == 0, name
    say("every health check is green")


def is_hardened(stack: Stack) -> None:
    for name, one in stack.inspected().items():
        told = json.dumps([one["Config"], one["Args"], one["HostConfig"]])
        assert not [secret for secret, value in stack.secrets.items() if value in told], name
        assert one["HostConfig"]["ReadonlyRootfs"], name
        assert one["HostConfig"]["CapDrop"] == ["ALL"], name
        ports = [each for bound in (one["HostConfig"]["PortBindings"] or {}).values() for each in bound]
        assert all(each["HostIp"] == "127.0.0.1" for each in ports), name
        if one["State"]["Status"] == "running":
            status = stack.engine.run("docker", "exec", one["Id"], "cat", "/proc/1/status")
            assert "\nUid:\t0" not in status, name
            written = "touch /etc/x 2>/dev/null && echo written || true"
            assert "written" not in stack.engine.run("docker", "exec", one["Id"], "sh", "-c", written), name
    worker = stack.inspected()["worker"]["Id"]
    assert stack.engine.run("docker", "exec", worker, "id", "-u").strip() == "10001"
    configured = stack.compose("exec", "-T", "redis", "sh", "-c", ASK_REDIS)
    assert {"maxmemory_policy:noeviction", "aof_enabled:1"} <= set(configured.split())
    assert "NOAUTH" in stack.compose("exec", "-T", "redis", "redis-cli", "ping")
    say("nobody is root, nothing is writable, no secret shows")


ASK_REDIS = (
    "export REDISCLI_AUTH=$(cat /run/secrets/REDIS_PASSWORD); "
    "redis-cli --user license_expiry info memory; redis-cli --user license_expiry info persistence"
)


def runs_one_enterprise(stack: Stack) -> None:
    path = "/api/task/async-apply/license_expiry.run_enterprise"
    order = {"kwargs": {"enterprise_customer_uuid": ALDER}}
    with pytest.raises(urllib.error.HTTPError, match="401"):
        http(FLOWER + path, order)
    stack.flower(path, order)
    eventually(lambda: [run["phase"] for run in stack.runs(ALDER)] == ["finished"], 60, "Alder's run is finished")
    assert len(stack.runs()) == 1
    say("Flower started one enterprise, and it is finished")


def survives_a_restart(stack: Stack) -> None:
    http(f"{LMS}/_simulator/latency", {"seconds": 2})
    stack.flower("/api/task/async-apply/license_expiry.run_nightly", {})
    journal = f"{LMS}/_simulator/journal"
    eventually(lambda: [each for each in http(journal)["entries"] if each["end"] is None], 60, "a call is in flight")
    before = stack.inspected()["worker"]["State"]["Pid"]
    assert any(run["phase"] in LIVE for run in stack.runs())
    began = time.monotonic()
    stack.compose("restart", "worker")
    took = time.monotonic() - began
    assert stack.inspected()["worker"]["State"]["Pid"] != before
    assert took < 60
    assert any(run["phase"] in LIVE for run in stack.runs()), "the night was over too soon"
    say(f"the worker was restarted in the middle of the night, which took {took:.0f} s")
    http(f"{LMS}/_simulator/latency", {"seconds": 0})
    eventually(lambda: {run["phase"] for run in stack.runs()} == {"finished"}, 120, "every run is finished")
    assert not stack.license_expiry("due")["enterprises"]
    entries = http(journal)["entries"]
    assert all(each["status"] for each in entries), "a call was cut off"
    for case in CASES:
        ends, starts = (
            [each[side] for each in entries if each["kind"] == kind and str(case.uuid) in each["enterprises"]]
            for kind, side in (("downgrade", "end"), ("unlink", "start"))
        )
        assert not (ends and starts) or max(ends) < min(starts), case.name
    say("the night is finished, in order, and nothing is due")


def is_watched(stack: Stack) -> None:
    run = stack.runs(ALDER)[0]["run_id"]
    assert ALDER in http(f"{SERVE}/runs/{run}")
    assert "license_expiry_" in http(f"{SERVE}/metrics")

    def targets() -> dict[str, str]:
        active = http(f"{PROMETHEUS}/api/v1/targets")["data"]["activeTargets"]
        return {each["labels"]["job"]: each["health"] for each in active}

    eventually(lambda: set(targets().values()) == {"up"}, 90, f"Prometheus reaches all: {targets()}")
    rules = http(f"{PROMETHEUS}/api/v1/rules")["data"]["groups"]
    assert sum(len(group["rules"]) for group in rules) > 3
    say(f"Prometheus scrapes {', '.join(sorted(targets()))} and has our rules")


def goes_down(stack: Stack) -> None:
    stack.compose("down", "--volumes", "--timeout=20")
    assert not stack.engine.run("docker", "ps", "--all", "--quiet")
    assert not stack.engine.run("docker", "volume", "ls", "--quiet")
    say("taken down")


def main(folder: Path) -> None:
    """Play the story on a loopback of its own."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with engine(folder) as own:
        stack = Stack(own)
        try:
            for scene in (comes_up, is_hardened, runs_one_enterprise, survives_a_restart, is_watched):
                scene(stack)
            goes_down(stack)
        except BaseException:
            click.echo(stack.compose("ps", "--all") + stack.compose("logs", "--no-color", "--tail=60"), err=True)
            stack.compose("down", "--volumes", "--timeout=5")
            raise


BEGAN = time.monotonic()
if __name__ == "__main__":
    main(Path(sys.argv[1]))
