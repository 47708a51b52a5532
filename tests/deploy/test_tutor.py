"""The Tutor plugin, installed by pip and rendered by the real tutor."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import kubernetes_validate
import pytest
import yaml
from support.flower_options import keeps_its_list
from support.tutor import installed, tutor

from worker.flower.guard import FlowerSettings
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
NAMES = [f"license-expiry-{name}" for name in ("worker", "beat", "flower", "serve")]
HANDED = {
    "worker": {"DATABASE_URL", "CELERY_BROKER_URL", "BACKEND_SERVICE_EDX_OAUTH2_SECRET", "SEGMENT_KEY"},
    "beat": {"CELERY_BROKER_URL"},
    "flower": {"FLOWER_DATABASE_URL", "CELERY_BROKER_URL", "FLOWER_BASIC_AUTH"},
    "serve": {"SERVE_DATABASE_URL"},
    "job": {"INIT_DATABASE_URL"},
}
KEPT = "../../data/license-expiry-flower:/var/lib/license-expiry:z"
OAUTH2_SECRET = """a "secret" & <it's> $HOME"""
REDIS_PASSWORD = "p@ss"
SEGMENT_KEY = "a write key"
FLOWERS = FlowerSettings.model_fields
UNLINKED = "CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"
CUSTOMER = UUID("378d5bf0-f67d-4bf7-8b2a-cbbc53d0f772")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tutor's env/ folder, with the plugin installed and enabled."""
    folder = tmp_path_factory.mktemp("tutor")
    settings = {
        "LICENSE_EXPIRY_OAUTH2_SECRET": OAUTH2_SECRET,
        "LICENSE_EXPIRY_SEGMENT_KEY": SEGMENT_KEY,
        "LICENSE_EXPIRY_SOURCE": str(ROOT),
        "LICENSE_EXPIRY_SETTINGS": f"{{NIGHTLY_SCHEDULE: 0 3 * * *, {UNLINKED}: [{CUSTOMER}]}}",
        "REDIS_USERNAME": "default",
        "REDIS_PASSWORD": REDIS_PASSWORD,
    }
    return installed(folder, settings)


def services(rendered: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((rendered / "local" / name).read_text())["services"]
    return {name: service for name, service in found.items() if name.startswith("license-expiry")}


def manifests(rendered: Path, name: str) -> dict[str, Any]:
    found = [each for each in yaml.safe_load_all((rendered / "k8s" / name).read_text()) if each]
    return {each["metadata"]["name"]: each for each in found if each["metadata"]["name"].startswith("license-expiry")}


def test_compose_runs_the_four_processes_and_mounts_nothing_that_is_not_there(rendered: Path) -> None:
    prod = services(rendered, "docker-compose.prod.yml")
    assert list(prod) == NAMES
    assert list(services(rendered, "docker-compose.jobs.yml")) == ["license-expiry-job"]
    assert prod["license-expiry-worker"]["stop_grace_period"] == "160s"
    for service in [*prod.values(), *services(rendered, "docker-compose.jobs.yml").values()]:
        for volume in set(service["volumes"]) - {KEPT}:
            assert (rendered / "local" / volume.partition(":")[0]).is_file(), volume
    for name in ("license-expiry-flower", "license-expiry-serve"):
        assert all(port.startswith("127.0.0.1:") for port in prod[name]["ports"])
    for name, service in {**prod, **services(rendered, "docker-compose.jobs.yml")}.items():
        mounted = [volume.split(":")[:2] for volume in service["volumes"] if "/run/secrets/" in volume]
        assert {Path(file).name for file, _ in mounted} == HANDED[name.removeprefix("license-expiry-")]
        assert all(Path(file).name.endswith(Path(secret).name) for file, secret in mounted)
    flower = prod["license-expiry-flower"]
    assert keeps_its_list(flower["command"].split()) == "/var/lib/license-expiry/flower"
    assert KEPT in flower["volumes"]
    assert "permissions" in flower["depends_on"]
    permissions = yaml.safe_load((rendered / "local/docker-compose.yml").read_text())["services"]["permissions"]
    assert KEPT.replace("/var/lib/license-expiry:", "/mounts/license-expiry-flower:") in permissions["volumes"]
    owners = (rendered / "apps/permissions/setowners.sh").read_text().splitlines()
    assert "setowner 10001 /mounts/license-expiry-flower" in owners


def test_kubernetes_runs_the_four_processes_and_one_beat(rendered: Path) -> None:
    deployments = manifests(rendered, "deployments.yml")
    assert list(deployments) == NAMES
    assert list(manifests(rendered, "services.yml")) == NAMES[2:]
    assert list(manifests(rendered, "jobs.yml")) == ["license-expiry-job"]
    beat, worker = (deployments[name]["spec"] for name in ("license-expiry-beat", "license-expiry-worker"))
    assert (beat["replicas"], beat["strategy"]) == (1, {"type": "Recreate"})
    assert worker["template"]["spec"]["terminationGracePeriodSeconds"] == 160
    for deployment in deployments.values():
        pod = deployment["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts == {volume["name"] for volume in pod["volumes"]}
    for name, each in {**deployments, **manifests(rendered, "jobs.yml")}.items():
        [secret] = [one["secret"] for one in each["spec"]["template"]["spec"]["volumes"] if "secret" in one]
        items = {item["key"]: item["path"] for item in secret["items"]}
        assert items.keys() == HANDED[name.removeprefix("license-expiry-")]
        assert all(key.endswith(path) and path in Settings.model_fields | FLOWERS for key, path in items.items())
    flower = deployments["license-expiry-flower"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in flower["volumes"]}
    [claim] = manifests(rendered, "volumes.yml")
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim
    assert flower["securityContext"]["fsGroup"] == 10001
    assert keeps_its_list(flower["containers"][0]["command"]) == "/var/lib/license-expiry/flower"
    assert "plugins/license-expiry" in yaml.safe_load((rendered / "kustomization.yml").read_text())["resources"]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl here")
def test_kustomize_gives_the_pods_their_config_and_secrets(rendered: Path) -> None:
    done = subprocess.run(["kubectl", "kustomize", rendered], capture_output=True, text=True, check=True, timeout=60)
    objects = [
        each for each in yaml.safe_load_all(done.stdout) if each["metadata"]["name"].startswith("license-expiry")
    ]
    made = {each["kind"]: each["metadata"]["name"] for each in objects if each["kind"] in ("Secret", "ConfigMap")}
    pods = [each["spec"]["template"]["spec"] for each in objects if each["kind"] in ("Deployment", "Job")]
    assert len(pods) == len(NAMES) + 1
    for pod in pods:
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert volumes["secrets"]["secret"]["secretName"] == made["Secret"]
        assert volumes["config"]["configMap"]["name"] == made["ConfigMap"]


def test_its_version_follows_the_series_of_tutor_that_it_is_tried_with() -> None:
    project = tomllib.loads((ROOT / "deploy/tutor/pyproject.toml").read_text())["project"]
    series = int(version("tutor").partition(".")[0])
    assert project["version"].startswith(f"{series}.")
    assert project["dependencies"] == [f"tutor>={series}.0.0,<{series + 1}.0.0"]


def test_tutor_builds_pulls_and_pushes_the_image(rendered: Path) -> None:
    folder = rendered.parents[1]
    image = f"docker.io/license-expiry:{tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']}"
    [build], [pull], [push] = (tutor(folder, "images", each, "license-expiry") for each in ("build", "pull", "push"))
    assert (build[:3], build[-1]) == (["buildx", "build", f"--tag={image}"], str(ROOT))
    assert (pull, push) == (["pull", image], ["push", image])


def test_every_process_is_confined_and_probed_as_in_the_plain_manifests(rendered: Path) -> None:
    base = [
        each
        for path in (ROOT / "deploy/kubernetes/base").glob("*.yaml")
        for each in yaml.safe_load_all(path.read_text())
        if each and "kind" in each
    ]
    plain = {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]["containers"][0]
        for each in base
        if each["kind"] in ("Deployment", "Job")
    }
    plain["license-expiry-job"] = plain.pop("license-expiry-init-db")
    ours = manifests(rendered, "deployments.yml") | manifests(rendered, "jobs.yml")
    assert ours.keys() == plain.keys()
    for name, each in ours.items():
        pod = each["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["resources"] == plain[name]["resources"]
        assert container.get("livenessProbe") == plain[name].get("livenessProbe")
        assert ("readinessProbe" in container) is ("readinessProbe" in plain[name])
    assert "--concurrency=2" in ours["license-expiry-worker"]["spec"]["template"]["spec"]["containers"][0]["command"]
    assert plain["license-expiry-worker"]["args"] == ["--concurrency=2"]
    for each in [
        *services(rendered, "docker-compose.prod.yml").values(),
        *services(rendered, "docker-compose.jobs.yml").values(),
    ]:
        assert each["read_only"] is True
        assert (each["cap_drop"], each["security_opt"]) == (["ALL"], ["no-new-privileges:true"])


def test_the_schemas_of_kubernetes_admit_its_manifests(rendered: Path) -> None:
    for name in ("deployments.yml", "jobs.yml", "services.yml", "volumes.yml"):
        for each in manifests(rendered, name).values():
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


def test_what_is_mounted_is_what_the_worker_reads(rendered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = rendered / "plugins/license-expiry"
    monkeypatch.setenv("LICENSE_EXPIRY_CFG", str(ours / "config.yml"))
    monkeypatch.setattr("worker.settings.sources.SECRETS_FOLDER", ours / "secrets")
    settings = Settings()
    assert settings.BACKEND_SERVICE_EDX_OAUTH2_SECRET == OAUTH2_SECRET
    assert settings.SEGMENT_KEY == SEGMENT_KEY
    assert settings.LMS_URL == "http://lms:8000"
    assert (settings.NIGHTLY_SCHEDULE, getattr(settings, UNLINKED)) == ("0 3 * * *", {CUSTOMER})
    assert settings.CELERY_BROKER_URL == "redis://default:p%40ss@redis:6379/5"
    database = urlsplit(settings.DATABASE_URL)
    assert (database.hostname, database.port, database.path) == ("mysql", 3306, "/license_manager")


def test_no_secret_is_in_a_manifest(rendered: Path) -> None:
    secrets = [path.read_text().strip() for path in (rendered / "plugins/license-expiry/secrets").iterdir()]
    passwords = [urlsplit(each).password for each in secrets if "://" in each] + [OAUTH2_SECRET, SEGMENT_KEY]
    manifests = [*rendered.glob("local/*.yml"), *rendered.glob("k8s/*.yml"), rendered / "kustomization.yml"]
    text = "".join(path.read_text() for path in [*manifests, rendered / "plugins/license-expiry/config.yml"])
    for secret in [*secrets, *filter(None, passwords)]:
        assert secret not in text


def test_each_account_is_given_the_documented_rights_once_there_is_what_they_are_on(rendered: Path) -> None:
    asked = "import json, tutor_license_expiry.plugin, tutor.hooks as hooks;"
    asked += "print(json.dumps(list(hooks.Filters.CLI_DO_INIT_TASKS.iterate())))"
    environment = os.environ | {"PYTHONPATH": str(rendered.parents[1] / "site")}
    told = subprocess.run([sys.executable, "-c", asked], env=environment, check=True, capture_output=True, text=True)
    make_accounts, make_ledger, give_rights = json.loads(told.stdout)[-3:]
    assert [make_accounts[0], make_ledger, give_rights[0]] == [
        "mysql",
        ["license-expiry", "license-expiry init-db"],
        "mysql",
    ]
    user = "{{ LICENSE_EXPIRY_MYSQL_USERNAME }}"
    for (_, script), file, accounts in (
        (make_accounts, "init.sql", ["_init"]),
        (give_rights, "rights.sql", ["", "_flower", "_serve"]),
    ):
        documented = (ROOT / "deploy/database/mysql" / file).read_text()
        given = script[script.index(documented.splitlines()[0]) :].removesuffix("SQL\n")
        assert given.replace(f"'{user}", "'license_expiry") == documented
        assert re.findall(rf"REVOKE ALL PRIVILEGES, GRANT OPTION FROM '{user}(\w*)'@'%';", script) == accounts
    passwords = re.findall(rf"ALTER USER '{user}(\w*)'@'%' IDENTIFIED BY '{{{{ (\w+) }}}}';", make_accounts[1])
    assert dict(passwords) == {
        "": "LICENSE_EXPIRY_MYSQL_PASSWORD",
        "_init": "LICENSE_EXPIRY_MYSQL_INIT_PASSWORD",
        "_flower": "LICENSE_EXPIRY_MYSQL_FLOWER_PASSWORD",
        "_serve": "LICENSE_EXPIRY_MYSQL_SERVE_PASSWORD",
    }
    for which, name in passwords:
        secret = which.removeprefix("_").upper() + "_" * bool(which) + "DATABASE_URL"
        login = urlsplit((rendered / "plugins/license-expiry/secrets" / secret).read_text().strip())
        config = yaml.safe_load((rendered.parent / "config.yml").read_text())
        assert (login.username, login.password) == (f"license_expiry{which}", config[name])
