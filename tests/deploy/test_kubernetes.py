"""The manifests, as kustomize renders them: schemas and promtool admit them, and they name only what there is."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.flower_options import keeps_its_list
from support.services import missing

from worker.flower.guard import FlowerSettings
from worker.settings import Settings
from worker.settings.sources import CONFIG_FILE_VARIABLE

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy/kubernetes"
SETTINGS = {*Settings.model_fields, *FlowerSettings.model_fields, CONFIG_FILE_VARIABLE}
VERSION = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)[0]
# The oldest release of which the library has schemas, and the newest.
RELEASES = ("1.25", kubernetes_validate.latest_version())
HANDED = {
    "worker": {"DATABASE_URL", "CELERY_BROKER_URL", "BACKEND_SERVICE_EDX_OAUTH2_SECRET"},
    "beat": {"CELERY_BROKER_URL"},
    "flower": {"FLOWER_DATABASE_URL", "CELERY_BROKER_URL", "FLOWER_BASIC_AUTH"},
    "serve": {"SERVE_DATABASE_URL"},
    "init-db": {"INIT_DATABASE_URL"},
}


@cache
def rendered() -> list[dict[str, Any]]:
    """What `kubectl apply -k deploy/kubernetes/example` would send."""
    kubectl = shutil.which("kubectl") or missing("kubectl", "install it")
    order = [kubectl, "kustomize", str(FOLDER / "example")]
    done = subprocess.run(order, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


def of_kind(*kinds: str) -> dict[str, Any]:
    found = [each for each in rendered() if each["kind"] in kinds]
    return {each["metadata"]["name"].removeprefix("license-expiry-"): each for each in found}


def pods() -> dict[str, Any]:
    return {name: each["spec"]["template"]["spec"] for name, each in of_kind("Deployment", "Job").items()}


def containers() -> dict[str, Any]:
    return {name: pod["containers"][0] for name, pod in pods().items()}


@pytest.mark.parametrize("release", RELEASES)
def test_the_schemas_of_kubernetes_admit_every_manifest(release: str) -> None:
    for each in rendered():
        if not each["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(each, release, strict=True)
    misspelled = of_kind("Deployment")["beat"] | {"speck": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(misspelled, release, strict=True)


def test_the_image_is_set_once() -> None:
    assert {each["image"] for each in containers().values()} == {f"registry.example.com/license-expiry:{VERSION}"}
    texts = [path.read_text() for path in FOLDER.rglob("*.yaml")]
    assert sum(text.count(VERSION) for text in texts) == sum(text.count("registry.example") for text in texts) == 1


def test_there_is_one_beat_and_no_pod_may_do_more_than_it_needs() -> None:
    beat, worker = (of_kind("Deployment")[name]["spec"] for name in ("beat", "worker"))
    assert (beat["replicas"], beat["strategy"]) == (1, {"type": "Recreate"})
    assert worker["template"]["spec"]["terminationGracePeriodSeconds"] == 160
    assert pods().keys() == HANDED.keys()
    for pod in pods().values():
        (container,) = pod["containers"]
        assert pod["automountServiceAccountToken"] is False  # else nothing can be mounted on /run/secrets
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
    assert of_kind("Job")["init-db"]["spec"]["ttlSecondsAfterFinished"] > 0


def test_every_process_is_probed_and_the_worker_and_beat_as_the_image_has_it() -> None:
    [check] = re.findall(r"HEALTHCHECK .*\n  CMD (.+)", (ROOT / "Dockerfile").read_text())
    for name, container in containers().items():
        if name in ("worker", "beat"):
            assert container["livenessProbe"]["exec"]["command"] == ["sh", "-c", check]
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]]
        elif name != "init-db":
            assert {"livenessProbe", "readinessProbe"} <= set(container)


@pytest.mark.parametrize("name", HANDED)
def test_each_pod_is_handed_its_own_secrets_and_no_others(name: str) -> None:
    (secrets,) = [each["secret"] for each in pods()[name]["volumes"] if "secret" in each]
    assert {item["key"] for item in secrets["items"]} == HANDED[name]
    for item in secrets["items"]:
        assert item["path"] in SETTINGS
        assert item["key"] in (item["path"], f"{name.split('-')[0].upper()}_{item['path']}")


def test_the_settings_exist_and_every_pod_has_them() -> None:
    [config] = [each for each in rendered() if each["kind"] == "ConfigMap"]
    assert set(config["data"]) <= SETTINGS
    for container in containers().values():
        assert container["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]


def test_flower_keeps_its_list_on_a_volume_that_it_may_write() -> None:
    [claim], deployment = of_kind("PersistentVolumeClaim").values(), of_kind("Deployment")["flower"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    assert claim["spec"]["resources"]["requests"]["storage"] == "1Gi"
    pod, container = deployment["template"]["spec"], containers()["flower"]
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsUser"]
    [mounted] = [each["mountPath"] for each in container["volumeMounts"] if each["name"] == "data"]
    assert Path(keeps_its_list(container["command"] + container["args"])).parent == Path(mounted)
    volume = next(each for each in pod["volumes"] if each["name"] == "data")
    assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def chosen(selector: dict[str, Any]) -> set[str]:
    """The processes whose pods have the labels that a selector asks for."""
    labels = {
        name: each["spec"]["template"]["metadata"]["labels"] for name, each in of_kind("Deployment", "Job").items()
    }
    wanted = {key: [value] for key, value in selector.get("matchLabels", {}).items()}
    wanted |= {each["key"]: each["values"] for each in selector.get("matchExpressions", [])}
    return {name for name, given in labels.items() if all(given.get(key) in values for key, values in wanted.items())}


def test_policies_and_the_budget_choose_the_pods_that_they_are_for() -> None:
    policies = {each["metadata"]["name"]: each["spec"] for each in rendered() if each["kind"] == "NetworkPolicy"}
    everyone, worker, pages = (policies[f"license-expiry{name}"] for name in ("", "-worker", "-pages"))
    assert chosen(everyone["podSelector"]) == HANDED.keys()
    assert (everyone["policyTypes"], everyone.get("ingress")) == (["Ingress", "Egress"], None)
    assert (chosen(worker["podSelector"]), worker["policyTypes"]) == ({"worker"}, ["Egress"])
    assert chosen(pages["podSelector"]) == {"flower", "serve"}
    [budget] = of_kind("PodDisruptionBudget").values()
    assert chosen(budget["spec"]["selector"]) == {"worker"}
    assert budget["spec"]["maxUnavailable"] < of_kind("Deployment")["worker"]["spec"]["replicas"]


def test_prometheus_scrapes_the_services_under_the_names_of_its_jobs() -> None:
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    services = of_kind("Service")
    scraped = []
    for monitor in (each for each in rendered() if each["kind"] == "ServiceMonitor"):
        assert monitor["spec"].keys() == {"selector", "endpoints"}
        [service] = [
            each
            for each in services.values()
            if monitor["spec"]["selector"]["matchLabels"].items() <= each["metadata"]["labels"].items()
        ]
        [endpoint], [port] = monitor["spec"]["endpoints"], service["spec"]["ports"]
        assert endpoint.keys() == {"port", "path", "interval", "scrapeTimeout", "relabelings"}
        assert (endpoint["port"], endpoint["path"]) == (port["name"], "/metrics")
        [label] = endpoint["relabelings"]
        assert label == {"targetLabel": "job", "replacement": monitor["metadata"]["name"]}
        scraped.append((label["replacement"], port["port"]))
    assert scraped == [(job["job_name"], int(job["static_configs"][0]["targets"][0].split(":")[1])) for job in jobs]


def test_the_rules_are_those_of_prometheus(tmp_path: Path) -> None:
    for part in ("kubernetes/monitoring", "prometheus"):
        shutil.copytree(ROOT / "deploy" / part, tmp_path / part)
    subprocess.run([tmp_path / "kubernetes/monitoring/make-rule"], check=True)
    made = (tmp_path / "kubernetes/monitoring/prometheus-rule.yaml").read_text()
    assert made == (FOLDER / "monitoring/prometheus-rule.yaml").read_text(), (
        "run deploy/kubernetes/monitoring/make-rule"
    )
    [rule] = [each for each in rendered() if each["kind"] == "PrometheusRule"]
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy/prometheus/rules.yml").read_text())
