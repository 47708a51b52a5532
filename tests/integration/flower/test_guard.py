"""Whom a real Flower lets in, and that it does not start when it would let in anybody."""

import os
import re
import socket
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from flower.urls import handlers  # type: ignore[import-untyped]
from support.eventually import eventually
from support.processes import CELERY, ROOT
from support.services import missing

from simulator.processes import Processes, free_port, listens
from worker.flower.pages import HANDLERS
from worker.flower.task_list import Retried, in_short

OPEN = {"/metrics", "/healthcheck", "/logout", "/login"}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The least that the app wants; Flower's own switch for an open API is on, and opens nothing."""
    for name in [each for each in os.environ if each.startswith("FLOWER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", f"sqlite:///{tmp_path}/none.sqlite3")
    monkeypatch.setenv("CELERY_BROKER_URL", "memory://")
    monkeypatch.setenv("LMS_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("BACKEND_SERVICE_EDX_OAUTH2_KEY", "key")
    monkeypatch.setenv("BACKEND_SERVICE_EDX_OAUTH2_SECRET", "secret")
    monkeypatch.setenv("FLOWER_UNAUTHENTICATED_API", "true")


@pytest.mark.parametrize("order", [("retried", "received"), ("received", "retried")])
def test_a_task_that_waits_for_its_retry_is_in_retry_in_any_order_of_events(order: tuple[str, str]) -> None:
    task = Retried("an id")
    for told in ("sent", "received", "started", *order, "sent"):
        task.event(told, 1.0, 1.0, {"retries": 1} if told == "received" else {})
    assert (task.state, task.retries) == ("RETRY", 1)
    task.event("started", 2.0, 2.0, {})
    assert task.state == "STARTED"


def test_the_arguments_of_a_step_are_its_enterprise_and_run() -> None:
    names = {"enterprise_customer_uuid": "E", "run_id": "R", "message_number": 12, "ledger": "L"}
    assert in_short(SimpleNamespace(kwargs=repr(names))).kwargs == "E/R"
    assert (
        in_short(SimpleNamespace(kwargs=repr(names | {"message_number": 3}).replace(", 'ledger': 'L'", ""))).kwargs
        == "E/R"
    )
    assert in_short(SimpleNamespace(kwargs="{'dry_run': True}")).kwargs == "dry_run: True"
    assert in_short(SimpleNamespace(kwargs=None)).kwargs == ""


@pytest.mark.long
@pytest.mark.usefixtures("settings")
def test_flower_does_not_start_when_it_would_let_anybody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLOWER_BASIC_AUTH", "")
    wrong = [
        "--basic_auth=",
        "--basic_auth=operator:secret,operator:",
        "--auth_provider=flower.views.auth.GithubLoginHandler",  # which without --auth asks nobody
    ]
    starts = {
        each: subprocess.Popen(
            [*CELERY, "worker", "flower", f"--port={free_port()}", each], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for each in wrong
    }
    for each, process in starts.items():
        _, told = process.communicate(timeout=60)
        assert process.returncode == 2, each
        assert re.fullmatch("FLOWER_BASIC_AUTH is not set.*/run/secrets/FLOWER_BASIC_AUTH.*\n", told), told


@pytest.fixture
def flower(settings: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[int]:
    """The port of a Flower that was told nothing but its port, with its password in a secret's file."""
    (tmp_path / "FLOWER_BASIC_AUTH").write_text("operator:from a file\n")
    (tmp_path / "with_secrets.py").write_text(
        "import pathlib, worker.settings.sources\n"
        f"worker.settings.sources.SECRETS_FOLDER = pathlib.Path({str(tmp_path)!r})\n"
        "from worker.celery import app\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    port = free_port()
    with Processes(tmp_path, ROOT) as processes:
        processes.start("flower", [*CELERY, "with_secrets", "flower", f"--port={port}"], lambda: listens(port))
        yield port


def test_flower_listens_on_loopback_and_asks_at_every_door(flower: int) -> None:
    if not Path("/proc/net/tcp").exists():
        missing("/proc/net/tcp", "run this on Linux")
    with socket.create_server(("127.0.0.2", flower)):  # free only if it does not listen on all addresses
        pass
    address = f"http://127.0.0.1:{flower}"
    asked = 0
    for handler in [*HANDLERS, *handlers]:
        pattern = handler.regex.pattern.rstrip("$") if hasattr(handler, "regex") else handler[0]
        path = re.sub(r"/\?$", "", re.sub(r"\([^)]*\)", "0", pattern))
        if path in OPEN or path.startswith("/static") or path == ".*":
            continue
        told = {requests.request(method, address + path, timeout=10).status_code for method in ("GET", "POST")}
        assert told <= {401, 405}, path
        assert 401 in told, path
        asked += 1
    assert asked > 30

    def status(header: str) -> int:
        return requests.get(f"{address}/tasks", headers={"Authorization": header}, timeout=10).status_code

    for header in ("Basic =", "Basic", "Basic Og=="):  # each is looked at when the one before has waited
        eventually(lambda: status(header) == 401, what=header)  # noqa: B023, run at once
    right = f"Basic {b64encode(b'operator:from a file').decode()}"
    eventually(lambda: status(right) == 200, what="the login that is right")
    assert requests.get(f"{address}/healthcheck", timeout=10).text == "OK"
