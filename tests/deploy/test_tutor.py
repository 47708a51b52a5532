"""The Tutor plugin, installed by pip and rendered by the real tutor."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import yaml
from support.flower_options import keeps_its_list

from worker.cli.checks.rights import OPTIONAL, RIGHTS
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
NAMES = [f"license-expiry-{name}" for name in ("worker", "beat", "flower", "serve")]
OF_FLOWER = ["DATABASE_URL", "CELERY_BROKER_URL", "FLOWER_BASIC_AUTH"]
KEPT = "../../data/license-expiry-flower:/var/lib/license-expiry:z"
OAUTH2_SECRET = """a "secret" & <it's> $HOME"""
REDIS_PASSWORD = "p@ss"
UNLINKED = "CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"
CUSTOMER = UUID("378d5bf0-f67d-4bf7-8b2a-cbbc53d0f772")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tutor's env/ folder, with the plugin installed and enabled."""
    folder = tmp_path_factory.mktemp("tutor")
    shutil.copytree(ROOT / "deploy/tutor", folder / "source")  # setuptools builds beside what it builds
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-build-isolation"]
    subprocess.run([*pip, "--no-deps", "--target", folder / "site", folder / "source"], check=True)
    environment = os.environ | {
        "PYTHONPATH": str(folder / "site"),
        "TUTOR_ROOT": str(folder / "root"),
        "TUTOR_PLUGINS_ROOT": str(folder / "plugins"),
    }
    settings = {
        "LICENSE_EXPIRY_OAUTH2_SECRET": OAUTH2_SECRET,
        "LICENSE_EXPIRY_SETTINGS": f"{{NIGHTLY_SCHEDULE: 0 3 * * *, {UNLINKED}: [{CUSTOMER}]}}",
        "REDIS_USERNAME": "default",
        "REDIS_PASSWORD": REDIS_PASSWORD,
    }
    given = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    for command in (["plugins", "enable", "license-expiry"], ["config", "save", *given]):
        subprocess.run([Path(sys.executable).parent / "tutor", *command], env=environment, check=True, timeout=60)
    return folder / "root/env"


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
        assert not [each for each in prod[name]["volumes"] if "OAUTH2" in each]
    flower = prod["license-expiry-flower"]
    secrets = [volume.split(":")[1] for volume in flower["volumes"] if "/run/secrets/" in volume]
    assert secrets == [f"/run/secrets/{name}" for name in OF_FLOWER]
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
    flower = deployments["license-expiry-flower"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in flower["volumes"]}
    assert [item["key"] for item in volumes["secrets"]["secret"]["items"]] == OF_FLOWER
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


def test_what_is_mounted_is_what_the_worker_reads(rendered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = rendered / "plugins/license-expiry"
    monkeypatch.setenv("LICENSE_EXPIRY_CFG", str(ours / "config.yml"))
    monkeypatch.setattr("worker.settings.sources.SECRETS_FOLDER", ours / "secrets")
    settings = Settings()
    assert settings.BACKEND_SERVICE_EDX_OAUTH2_SECRET == OAUTH2_SECRET
    assert settings.LMS_URL == "http://lms:8000"
    assert (settings.NIGHTLY_SCHEDULE, getattr(settings, UNLINKED)) == ("0 3 * * *", {CUSTOMER})
    assert settings.CELERY_BROKER_URL == "redis://default:p%40ss@redis:6379/5"
    database = urlsplit(settings.DATABASE_URL)
    assert (database.hostname, database.port, database.path) == ("mysql", 3306, "/license_manager")


def test_no_secret_is_in_a_manifest(rendered: Path) -> None:
    secrets = [path.read_text().strip() for path in (rendered / "plugins/license-expiry/secrets").iterdir()]
    passwords = [urlsplit(each).password for each in secrets if "://" in each] + [OAUTH2_SECRET]
    manifests = [*rendered.glob("local/*.yml"), *rendered.glob("k8s/*.yml"), rendered / "kustomization.yml"]
    text = "".join(path.read_text() for path in [*manifests, rendered / "plugins/license-expiry/config.yml"])
    for secret in [*secrets, *filter(None, passwords)]:
        assert secret not in text


def test_its_account_is_given_the_documented_rights_once_the_ledger_is_made(rendered: Path) -> None:
    asked = "import json, tutor_license_expiry.plugin, tutor.hooks as hooks;"
    asked += "print(json.dumps(list(hooks.Filters.CLI_DO_INIT_TASKS.iterate())))"
    environment = os.environ | {"PYTHONPATH": str(rendered.parents[1] / "site")}
    told = subprocess.run([sys.executable, "-c", asked], env=environment, check=True, capture_output=True, text=True)
    make_account, make_ledger, give_rights = json.loads(told.stdout)[-3:]
    assert [make_account[0], make_ledger[0], give_rights[0]] == ["mysql", "license-expiry", "mysql"]
    assert "license-expiry init-db" in make_ledger[1]
    given = re.findall(r"GRANT (.+) ON (\w+) TO '{{ LICENSE_EXPIRY_MYSQL_USERNAME }}'@'%';", give_rights[1])
    assert {table: tuple(re.split(r", (?!modified)", verbs)) for verbs, table in given} == RIGHTS | OPTIONAL
    assert "GRANT" not in make_account[1].replace("REVOKE ALL PRIVILEGES, GRANT OPTION", "")
