"""What the Tutor plugin renders, started on the engine with the demo's database, Redis and LMS in place of Tutor's.

The rest of Tutor's services are left out: their images cannot be had here.
"""

import os
from pathlib import Path
from typing import Any

import yaml
from support.eventually import eventually
from support.tutor import installed, tutor

from compose.stack import Stack, say

PROJECT = ("docker-compose", "--project-name=tutor", "--file=ours.yml")


def runs_under_tutor(stack: Stack) -> None:
    stack.compose("up", "--detach", "--no-build", "redis", "mariadb", "simulator")
    folder = stack.engine.folder / "tutor"
    folder.mkdir()
    environment = installed(folder, _settings(stack))
    local = environment / "local"
    (local / "ours.yml").write_text(yaml.safe_dump(_ours(local)))
    kept = environment.parent / "data/license-expiry-flower"  # which Tutor's service `permissions` makes
    kept.mkdir(parents=True)
    os.chown(kept, 10001, 10001)

    def compose(*command: str) -> str:
        return stack.engine.run(*PROJECT, *command, cwd=local)

    def healths(*services: str) -> set[str]:
        return {stack.inspected()[name]["State"]["Health"]["Status"] for name in services}

    eventually(lambda: healths("simulator") == {"healthy"}, 120, "the LMS is there")
    for asked in tutor(folder, "local", "do", "init", "--limit", "license-expiry")[1:]:  # first it looks what runs
        service, job = asked[-5], asked[-4:]
        if service == "mysql-job":
            stack.compose("exec", "-T", "mariadb", *job)
        else:
            compose("run", "--rm", "-T", service, *job)
    say("the plugin's init made the accounts and the ledger")
    compose("up", "--detach")
    names = [f"license-expiry-{process}" for process in ("worker", "beat", "flower", "serve")]

    eventually(lambda: healths(*names) == {"healthy"}, 120, "every process is healthy")
    told = "license-expiry run --json || [ $? = 1 ]"
    runs = yaml.safe_load(compose("exec", "-T", "license-expiry-worker", "sh", "-c", told))["runs"]
    assert runs
    assert {run["phase"] for run in runs} == {"finished"}
    compose("down", "--timeout=20")
    say(f"the four processes of the Tutor plugin are healthy, and a night with {len(runs)} runs is finished")


def _settings(stack: Stack) -> dict[str, str]:
    """Tutor's settings for the demo's services; ours as the demo has them."""
    lines = (stack.folder / "deploy/compose/demo.env").read_text().splitlines()
    demo = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    listed = "CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"
    return {
        "MYSQL_HOST": "mariadb",
        "MYSQL_ROOT_PASSWORD": stack.secrets["MARIADB_ROOT_PASSWORD"],
        "REDIS_USERNAME": "license_expiry",
        "REDIS_PASSWORD": stack.secrets["REDIS_PASSWORD"],
        "LICENSE_EXPIRY_LMS_URL": demo["LMS_URL"],
        "LICENSE_EXPIRY_OAUTH2_KEY": demo["BACKEND_SERVICE_EDX_OAUTH2_KEY"],
        "LICENSE_EXPIRY_OAUTH2_SECRET": stack.secrets["BACKEND_SERVICE_EDX_OAUTH2_SECRET"],
        "LICENSE_EXPIRY_SETTINGS": f"{{{listed}: [{demo[listed]}]}}",
    }


def _ours(local: Path) -> dict[str, Any]:
    """The plugin's services as rendered, on the demo's network, and checked more often."""
    found: dict[str, Any] = {}
    for name in ("docker-compose.prod.yml", "docker-compose.jobs.yml"):
        found |= yaml.safe_load((local / name).read_text())["services"]
    ours = {name: each for name, each in found.items() if name.startswith("license-expiry-")}
    for name, each in ours.items():
        del each["depends_on"]
        if name != "license-expiry-job":
            each["healthcheck"] = each.get("healthcheck", {}) | {"interval": "5s"}
    return {"services": ours, "networks": {"default": {"external": True, "name": "night_default"}}}
