"""`python -m compose.story FOLDER`: starts the stack on one database engine, runs its nights, and stops it."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import click
import pytest
from support.eventually import eventually

from compose.engine import engine
from compose.stack import FLOWER, Stack, http, say
from compose.tutors import runs_under_tutor
from simulator.data.showcase import CASES

SERVE, LMS, PROMETHEUS = (f"http://127.0.0.1:{port}" for port in (8001, 8000, 9090))
ALDER = str(CASES[0].uuid)
LIVE = {"queued", "downgrading", "downgraded", "unlinking"}


def comes_up(stack: Stack) -> None:
    stack.compose("up", "--detach", "--no-build", "--quiet-pull")
    wanted = {"redis", "worker", "beat", "flower", "serve", "mariadb", "simulator", "prometheus"}

    def unwell() -> dict[str, str]:
        states = {name: one["State"] for name, one in stack.inspected().items()}
        healths = {name: states[name].get("Health", {}).get("Status", "no check") for name in wanted}
        return {name: health for name, health in healths.items() if health != "healthy"}

    eventually(lambda: not unwell(), 180, "every service is healthy")
    listed = ("exec", "-T", "worker", "ls", "/tmp/license-expiry-10001")
    eventually(lambda: "celery-control@" in stack.compose(*listed), 60, "the worker serves the control queue")
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


def is_one_command(stack: Stack) -> None:
    began = time.monotonic()
    told = stack.engine.run(
        "env", "COMPOSE=docker-compose", "COMPOSE_PROJECT_NAME=night", stack.folder / "deploy/compose/demo"
    )
    took = time.monotonic() - began
    runs = stack.runs()
    assert {run["phase"] for run in runs} == {"finished"}
    assert "http://127.0.0.1:8001" in told
    say(f"deploy/compose/demo took {took:.0f} s, with the image built before, for a night with {len(runs)} runs")


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
            runs_under_tutor(stack)
            goes_down(stack)
            is_one_command(stack)
            goes_down(stack)
        except BaseException:
            click.echo(stack.compose("ps", "--all") + stack.compose("logs", "--no-color", "--tail=60"), err=True)
            stack.compose("down", "--volumes", "--timeout=5")
            raise


if __name__ == "__main__":
    main(Path(sys.argv[1]))
