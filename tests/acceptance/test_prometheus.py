"""A real Prometheus scrapes a real night, with our configuration, rules and dashboard."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import Engine
from support.eventually import eventually
from support.processes import COMMAND, ROOT, WORKER_SQLITE, ended, lay, listed, runs
from support.runs import rows, scan
from support.services import missing

from simulator.data.rows import Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port, listens
from worker.db.ledger_tables import HeldLicense, LmsCall, Retry
from worker.ledger.order import Phase

EXPRESSIONS = {
    target["expr"]
    for panel in json.loads((ROOT / "deploy/grafana/license-expiry.json").read_text())["panels"]
    for target in panel["targets"]
}
# The app whose beat sends the night every two seconds: it is begun once.
OFTEN = """
from support.fast_app import app
app.conf.beat_schedule = {**app.conf.beat_schedule}
app.conf.beat_schedule["nightly"] = {**app.conf.beat_schedule["nightly"], "schedule": 2.0}
"""


class Prometheus:
    """Prometheus' HTTP API."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, what: str, **arguments: str) -> Any:
        answer = requests.get(f"{self.address}/api/v1/{what}", params=arguments, timeout=10).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[float]:
        """The values that an expression has now."""
        return [float(each["value"][1]) for each in self.ask("query", query=expression)["result"]]

    def firing(self) -> dict[str, Any]:
        """The alerts that fire, each with its annotations."""
        alerts = [each for each in self.ask("alerts")["alerts"] if each["state"] == "firing"]
        return {each["labels"]["alertname"]: each["annotations"] for each in alerts}


def configure(folder: Path, replacements: dict[str, dict[str, str]]) -> Path:
    """Our own files with these texts replaced, each of which stands in them; the configuration's path."""
    for name, texts in replacements.items():
        content = (ROOT / "deploy/prometheus" / name).read_text()
        for old, new in texts.items():
            assert old in content, f"{name} has no {old}"
            content = content.replace(old, new)
        (folder / name).write_text(content)
    return folder / "prometheus.yml"


@pytest.fixture
def serve(processes: Processes, environment: Callable[..., None]) -> str:
    """A real `license-expiry serve`; its address."""
    environment()
    port = free_port()
    processes.start("serve", [*COMMAND, "serve", "--port", str(port)], lambda: listens(port))
    return f"127.0.0.1:{port}"


@pytest.fixture
def prometheus(processes: Processes, tmp_path: Path, serve: str, flower: str) -> Prometheus:
    """A real Prometheus with our files, but for the targets' addresses and times made short."""
    program = shutil.which("prometheus")
    if program is None:
        missing("prometheus", "install prometheus")
    config = {"serve:8001": serve, "flower:5555": flower.removeprefix("http://"), " 30s": " 1s", " 20s": " 1s"}
    file = configure(tmp_path, {"prometheus.yml": config, "rules.yml": {"> 15 * 60": "> 5", "[15m]": "[5s]"}})
    address = f"127.0.0.1:{free_port()}"
    ready = f"http://{address}/-/ready"
    processes.start(
        "prometheus",
        [program, f"--config.file={file}", f"--storage.tsdb.path={tmp_path}/tsdb", f"--web.listen-address={address}"],
        lambda: listens(int(address.rpartition(":")[2])) and requests.get(ready, timeout=10).ok,
    )
    return Prometheus(f"http://{address}")


@pytest.mark.long
@WORKER_SQLITE
def test_a_night_is_scraped_and_an_alert_fires_when_beat_is_stopped(
    engine: Engine,
    data: Data,
    lms: Simulator,
    environment: Any,
    processes: Processes,
    serve: str,
    flower: str,
    prometheus: Prometheus,
    worker: Any,
    beat: Any,
    tmp_path: Path,
) -> None:
    (tmp_path / "often.py").write_text(OFTEN)
    first, second = lay(data, lms, enterprises=2)
    refused = rows(engine, "license")[0]["uuid"]
    lms.faults(
        Fault(kind="downgrade", license=str(refused), status=422),
        Fault(kind="unlink", enterprise=str(second), status=503, times=4),
    )
    environment(TASK_RETRY_SECONDS=1, **listed(first, second))
    worker(app="support.fast_app")
    silenced = beat(app="often")

    eventually(lambda: runs(engine, Phase.FINISHED) and ended(engine), what="the night")
    done = runs(engine)
    calls = rows(engine, LmsCall)
    waits = [row for row in rows(engine, Retry) if row["step"] == "unlink"]
    times = sum(wait["times"] for wait in waits)
    assert times
    assert (len(done), len(rows(engine, HeldLicense))) == (2, 1)
    ledger = {
        'license_expiry_ended_runs_total{phase="finished"}': 2,
        "license_expiry_downgraded_licenses_total": sum(run.licenses_downgraded for run in done),
        "license_expiry_unlinked_licenses_total": sum(run.learners_unlinked for run in done),
        'license_expiry_held_licenses{step="downgrade", reason="http_422"}': 1,
        'license_expiry_retries_total{step="unlink", reason="http_503"}': len(waits),
        "sum(license_expiry_lms_call_duration_seconds_count)": sum(call["calls"] for call in calls),
        "license_expiry_last_finished_night_timestamp_seconds": max(
            run.ended_at.timestamp() for run in done if run.ended_at
        ),
        'sum(flower_events_total{type="task-retried", task="license_expiry.unlink_learners"})': times,
    }
    for expression, value in ledger.items():
        eventually(lambda: prometheus.query(expression) == [pytest.approx(value)], 15, f"{expression} {value}")  # noqa: B023
    for expression in EXPRESSIONS:
        eventually(lambda: prometheus.query(expression), 15, expression)  # noqa: B023
    rules = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"]: rule["health"] for rule in rules if rule["health"] != "ok"} == {}
    shown = {name: requests.get(f"http://{name}/metrics", timeout=10).text for name in (serve, flower[7:])}
    assert scan(shown, engine) == []

    eventually(lambda: "LicenseExpiryBeatSilent" not in prometheus.firing(), what="beat's being heard")
    processes.stop(silenced)
    told = eventually(lambda: prometheus.firing().get("LicenseExpiryBeatSilent", {}), 30, "the alert")
    assert told["runbook_url"].startswith("https://")
    assert told["runbook_url"].endswith("/docs/runbooks.md#licenseexpirybeatsilent")
    assert set(prometheus.firing()) == {"LicenseExpiryBeatSilent"}
