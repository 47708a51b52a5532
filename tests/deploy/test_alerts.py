"""The alert rules do what they say, and lead to a run-book; they and the dashboard name metrics that there are."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.services import missing

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/prometheus"
RULES = [rule for group in yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"] for rule in group["rules"]]
ALERTS: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in RULES if "alert" in rule}
ADDRESS = '{{ query "license_expiry:runbooks:info" | first | label "address" }}'
TESTS = yaml.safe_load((FOLDER / "rules.test.yml").read_text())["tests"]
DOCS = (ROOT / "docs/reference/metrics.md").read_text()
DASHBOARD = json.loads((ROOT / "deploy/grafana/license-expiry.json").read_text())


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool")
    if program is None:
        missing("promtool", "install prometheus")
    done = subprocess.run([program, *arguments], cwd=FOLDER, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")
    assert f"{len(RULES)} rules found" in promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yml")


def test_promtool_sees_every_alert_fire_and_not_fire() -> None:
    seen: dict[str, set[bool]] = {name: set() for name in ALERTS}
    for test in TESTS:
        for each in test["promql_expr_test"]:
            (name,) = re.findall(r'^ALERTS\{alertname="(\w+)", alertstate="firing"\}$', each["expr"])
            seen[name].add("exp_samples" in each)
    assert seen == {name: {True, False} for name in ALERTS}
    promtool("test", "rules", "rules.test.yml")


@pytest.mark.parametrize("name", ALERTS)
def test_every_alert_says_what_to_do_and_leads_to_its_run_book(name: str) -> None:
    rule = ALERTS[name]
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    assert "What to do: " in rule["annotations"]["description"]
    assert rule["annotations"]["runbook_url"] == f"{ADDRESS}#{name.lower()}"
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs/runbooks.md").read_text(), flags=re.MULTILINE)
    assert name in headings
    assert f"| [{name}](../runbooks.md#{name.lower()}) |" in (ROOT / "docs/how-to/monitor.md").read_text()


def test_the_address_of_the_run_books_is_set_in_one_place_and_can_be_clicked() -> None:
    (setting,) = [rule["labels"]["address"] for rule in RULES if rule.get("record") == "license_expiry:runbooks:info"]
    assert re.fullmatch(r"https://\S+/docs/runbooks\.md", setting)
    assert (FOLDER / "rules.yml").read_text().count(setting) == 1


def test_rules_and_dashboard_name_no_metric_that_is_not_in_the_docs() -> None:
    documented = set(re.findall(r"^\| `(\w+)`", DOCS, flags=re.MULTILINE))
    expressions = [rule["expr"] for rule in RULES] + [
        target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]
    ]
    for expression in expressions:
        for name in re.findall(r"\b(?:license_expiry|flower)_\w+", expression):
            assert re.sub("_(bucket|count|sum)$", "", name) in documented, expression


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    panels = DASHBOARD["panels"]
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(DASHBOARD)
    assert [each["name"] for each in DASHBOARD["templating"]["list"]] == ["datasource"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["type"] in ("stat", "timeseries")
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} lies over another panel"
        taken |= cells
        for target in panel["targets"]:
            assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
