"""docker-compose.yml and Dockerfile, read but not run: `make test-compose` runs them."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
import yaml
from celery import Celery
from click.testing import CliRunner
from sqlalchemy import Engine, make_url
from support.database_account import SECURITY
from support.flower_options import keeps_its_list
from support.services import missing

from simulator.__main__ import main as simulator
from simulator.data.showcase import CASES
from simulator.processes import Processes, free_port, listens
from tasks.broker import check_broker
from worker.cli.checks.rights import missing_rights
from worker.db.engine import make_engine
from worker.settings import CONNECT_SECONDS, Settings

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
VERSION = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)[0]
OURS = f"license-expiry:{VERSION}"
PINNED = re.compile(r"[a-z/-]+:v?\d+\.\d+\.\d+(-[a-z-]+)?")
# What the official images read; the rest are settings of ours.
OF_THE_IMAGES = {"MARIADB_ROOT_PASSWORD_FILE", "MARIADB_DATABASE", "MARIADB_USER", "MARIADB_PASSWORD_FILE"}
OTHER_SECRETS = {"FLOWER_BASIC_AUTH", "REDIS_PASSWORD", "MARIADB_PASSWORD", "MARIADB_ROOT_PASSWORD"}
ONE_SHOTS = ("init", "accounts", "rights")
OUR_URLS = {"", "INIT_", "FLOWER_", "SERVE_"}
HANDED = {
    "init": {"INIT_DATABASE_URL"},
    "worker": {"DATABASE_URL", "CELERY_BROKER_URL", "BACKEND_SERVICE_EDX_OAUTH2_SECRET"},
    "beat": {"CELERY_BROKER_URL"},
    "flower": {"FLOWER_DATABASE_URL", "CELERY_BROKER_URL", "FLOWER_BASIC_AUTH"},
    "serve": {"SERVE_DATABASE_URL"},
    "redis": {"REDIS_PASSWORD"},
    "mariadb": {"MARIADB_ROOT_PASSWORD", "MARIADB_PASSWORD"},
    "accounts": {"MARIADB_ROOT_PASSWORD"} | {f"{each}DATABASE_URL" for each in OUR_URLS},
    "rights": {"MARIADB_ROOT_PASSWORD"} | {f"{each}DATABASE_URL" for each in OUR_URLS},
    "simulator": {"LICENSE_MANAGER_DATABASE_URL", "BACKEND_SERVICE_EDX_OAUTH2_SECRET"},
    "prometheus": set(),
}


def handed(name: str) -> dict[str, str]:
    """The secrets of a service: each by its name, and the file that it is there."""
    given = [{"source": each} if isinstance(each, str) else each for each in SERVICES[name].get("secrets", [])]
    return {each["source"]: each.get("target", each["source"]) for each in given}


def settings_of_the_demo() -> dict[str, str]:
    lines = (ROOT / "deploy/compose/demo.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_confined_watched_and_brought_back(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert PINNED.fullmatch(service["image"])
    assert "/tmp" in service["tmpfs"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert service["image"] in (OURS, "prom/prometheus:v2.55.1") or service["user"] != "root"
    if name in ONE_SHOTS:
        assert service["restart"].startswith("on-failure:")
        assert service["healthcheck"] == {"disable": True}
    else:
        assert service["restart"] == "unless-stopped"
        assert name in ("worker", "beat") or service["healthcheck"]["test"]  # theirs is the image's


def test_a_worker_may_finish_the_calls_in_flight_before_it_is_killed() -> None:
    calls = (Settings.model_fields[f"BULK_{each}_REQUEST_TIMEOUT_SECONDS"] for each in ("EXPIRATION", "UNLINK"))
    longest = max(int(field.default) for field in calls) + CONNECT_SECONDS
    given = int(SERVICES["worker"]["stop_grace_period"].removesuffix("s"))
    told = re.findall(r"(\d+) seconds", (ROOT / "docs/how-to/stop.md").read_text().partition("## Stop a worker")[2])[0]
    assert given > int(told) > longest


def test_only_one_beat_can_be_there_and_it_keeps_its_schedule() -> None:
    assert [name for name, each in SERVICES.items() if " beat " in str(each.get("command"))] == ["beat"]
    assert SERVICES["beat"]["volumes"] == ["beat:/var/lib/license-expiry"]
    assert "/var/lib/license-expiry/schedule" in SERVICES["beat"]["command"]


def test_flower_is_handed_what_its_pages_need_and_keeps_its_list() -> None:
    flower = SERVICES["flower"]
    assert flower["env_file"] == SERVICES["worker"]["env_file"], "a preview goes by the settings of a night"
    assert flower["depends_on"] == SERVICES["worker"]["depends_on"], "it waits for the ledger's tables"
    assert keeps_its_list(flower["command"].split()) == "/var/lib/license-expiry/flower"
    assert flower["volumes"] == ["flower:/var/lib/license-expiry"]
    assert "flower" in COMPOSE["volumes"]


def test_secrets_come_by_file_and_stand_nowhere() -> None:
    made = re.findall(r"^(?:secret|database) (\w+)", (ROOT / "deploy/compose/prepare").read_text(), flags=re.MULTILINE)
    assert set(COMPOSE["secrets"]) == set(made)
    for name, secret in COMPOSE["secrets"].items():
        assert secret == {"file": f"deploy/compose/secrets/{name}"}
        setting = "DATABASE_URL" if name.endswith("_DATABASE_URL") else name
        assert name in OTHER_SECRETS or not Settings.model_fields[setting].repr  # a setting of ours that is secret
    text = (ROOT / "docker-compose.yml").read_text() + (ROOT / "deploy/compose/demo.env").read_text()
    assert not re.search(r"://\S*:\S*@", text)
    assert not re.search(r"(?i)(password|secret)\w*[=:] *(?!yes)[\"']?[a-z0-9]{6,}", re.sub(r"@?/run/\S+", "", text))


@pytest.mark.parametrize("name", SERVICES)
def test_each_service_is_handed_its_own_secrets_and_no_others(name: str) -> None:
    assert handed(name).keys() == HANDED[name]
    if SERVICES[name]["image"] == OURS and name != "simulator":
        for secret, file in handed(name).items():
            assert file in {*Settings.model_fields, "FLOWER_BASIC_AUTH"}
            assert secret in (file, f"{name.upper()}_{file}")


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The secrets that prepare makes."""
    for name in ("prepare", "demo.env"):
        shutil.copy(ROOT / "deploy/compose" / name, tmp_path)
    subprocess.run([tmp_path / "prepare"], check=True, capture_output=True)
    return tmp_path / "secrets"


def test_its_redis_lets_in_one_user_with_the_documented_rights(secrets: Path, tmp_path: Path) -> None:
    if shutil.which("redis-server") is None:
        missing("redis-server", "install redis")
    shell, option, script = SERVICES["redis"]["command"]
    port = free_port()
    script = script.replace("$$", "$").replace("/run/secrets", str(secrets)).replace("/data", str(tmp_path))
    url = (secrets / "CELERY_BROKER_URL").read_text().replace("redis:6379", f"127.0.0.1:{port}")
    with Processes(tmp_path) as processes:
        start = [shell, option, script.replace("redis-server -", f"redis-server - --port {port}")]
        processes.start("redis", start, lambda: listens(port))
        client = redis.Redis.from_url(url)
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.acl_list()
        with pytest.raises(redis.exceptions.AuthenticationError):
            redis.Redis(port=port).ping()
        app = Celery("license_expiry", broker=url, set_as_current=False)
        app.conf.broker_transport_options = {"global_keyprefix": "license_expiry:"}
        check_broker(app)
    [documented] = [line for line in SECURITY.read_text().splitlines() if line.startswith("ACL SETUSER")]
    assert documented.partition("a-password ")[2] in script


@pytest.mark.parametrize("engine_kind", ["mariadb"], indirect=True)
def test_its_accounts_are_made_with_the_documented_rights(engine: Engine, secrets: Path, tmp_path: Path) -> None:
    if shutil.which("mariadb") is None:
        missing("mariadb", "install mariadb-client")
    server, tag = engine.url, uuid4().hex[:8]
    files = [
        *secrets.glob("*DATABASE_URL"),
        *(shutil.copy(ROOT / f"deploy/database/mysql/{name}.sql", tmp_path) for name in ("init", "rights")),
    ]
    for path in map(Path, files):  # the server has the accounts of others, too
        path.chmod(0o600)
        path.write_text(re.sub(r"license_expiry(_init|_flower|_serve)?(?=[:'])", rf"le_{tag}\1", path.read_text()))
    (secrets / "MARIADB_ROOT_PASSWORD").chmod(0o600)
    (secrets / "MARIADB_ROOT_PASSWORD").write_text(server.password or "")
    there = {"/run/secrets": str(secrets), "--host=mariadb": f"--host={server.host} --port={server.port or 3306}"}
    there |= {"--user=root license_manager": f"--user={server.username} {server.database}"}
    script = (ROOT / "deploy/compose/accounts").read_text()
    for told, here in there.items():
        assert told in script
        script = script.replace(told, here)
    try:
        for service in ("accounts", "rights"):
            _, file = SERVICES[service]["entrypoint"]
            subprocess.run(["sh", "-c", script, "accounts", tmp_path / Path(file).name], check=True, timeout=60)
        for process in ("", "INIT_", "FLOWER_", "SERVE_"):
            url = make_url((secrets / f"{process}DATABASE_URL").read_text())
            own = make_engine(
                url.set(
                    host=server.host, port=server.port, database=server.database, query=server.query
                ).render_as_string(hide_password=False)
            )
            with own.connect() as connection:
                assert (missing_rights(connection) == []) is (process == "")
            own.dispose()
    finally:
        with engine.begin() as connection:
            for which in ("", "_init", "_flower", "_serve"):
                connection.exec_driver_sql(f"DROP USER IF EXISTS le_{tag}{which}@'%%'")


def test_every_name_in_an_environment_means_something() -> None:
    assert {name for each in SERVICES.values() for name in each.get("environment", {})} <= OF_THE_IMAGES
    assert set(settings_of_the_demo()) <= set(Settings.model_fields)
    assert {each["env_file"] for each in SERVICES.values() if each["image"] == OURS} == {"deploy/compose/settings.env"}


def test_the_demos_settings_fit_its_data_and_its_lms() -> None:
    settings = settings_of_the_demo()
    listed = settings["CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"]
    assert listed.split(",") == [str(case.uuid) for case in CASES if case.unlinks]
    command = SERVICES["simulator"]["command"]
    assert f"--client-id {settings['BACKEND_SERVICE_EDX_OAUTH2_KEY']} " in command
    assert settings["LMS_URL"] == f"http://simulator:{re.findall('--port ([0-9]+)', command)[0]}"


def test_the_simulator_takes_its_database_from_a_secret(tmp_path: Path) -> None:
    secret = tmp_path / "DATABASE_URL"
    order = ["make-data", "--enterprises", "1", "--licenses", "1", "--database", f"@{secret}"]
    assert f"{secret} cannot be read" in CliRunner().invoke(simulator, order).output
    secret.write_text(f"sqlite:///{tmp_path}/try.db\n")
    assert CliRunner().invoke(simulator, order).exit_code == 0
    assert (tmp_path / "try.db").exists()


def test_the_image_is_pinned_not_root_and_takes_no_secret_in() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert len(set(bases)) == 1
    assert PINNED.fullmatch(bases[0])
    assert "USER 10001:10001" in lines
    assert any(line.startswith("HEALTHCHECK ") for line in lines)
    taken = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert taken[0] == "*"
    assert not [line for line in taken[1:] if line.startswith("!") and ("deploy" in line or "env" in line)]


def test_the_image_has_what_the_tests_run_with() -> None:
    run, build, dev = (
        dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / f"requirements/{name}.txt").read_text(), flags=re.MULTILINE))
        for name in ("run", "build", "dev")
    )
    assert run.items() <= dev.items()
    assert {"pymysql", "psycopg", "flower"} <= set(run)
    assert build == {"setuptools": dev["setuptools"]}


def test_prepare_makes_files_that_nobody_else_reads_and_keeps_those_that_are_there(tmp_path: Path) -> None:
    for name in ("prepare", "demo.env"):
        shutil.copy(ROOT / "deploy/compose" / name, tmp_path)
    secrets = tmp_path / "secrets"
    secrets.mkdir(0o700)
    (secrets / "DATABASE_URL").write_text("mysql://its.own/database")
    for _ in range(2):
        subprocess.run([tmp_path / "prepare"], check=True, capture_output=True)
        made = {path.name: path.read_text() for path in secrets.iterdir()}
    assert set(made) == set(COMPOSE["secrets"])
    assert made["DATABASE_URL"] == "mysql://its.own/database"
    assert made["CELERY_BROKER_URL"] == f"redis://license_expiry:{made['REDIS_PASSWORD']}@redis:6379/5"
    assert len(set(made.values())) == len(made)
    assert secrets.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "settings.env").read_text() == (tmp_path / "demo.env").read_text()


def test_compose_itself_takes_the_file(tmp_path: Path) -> None:
    if shutil.which("docker-compose"):
        command = ["docker-compose"]
    elif (
        shutil.which("docker") and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        command = ["docker", "compose"]
    else:
        pytest.skip("no docker compose: install docker-compose")
    (tmp_path / "deploy/compose").mkdir(parents=True)
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    shutil.copy(ROOT / "deploy/compose/demo.env", tmp_path / "deploy/compose/settings.env")
    profiles = ["--profile", "demo", "--profile", "monitoring"]
    files = ["--file=docker-compose.yml", f"--file={ROOT}/tests/compose/override.yml"]
    told = [*command, *files, *profiles, "config", "--quiet"]
    done = subprocess.run(told, cwd=tmp_path, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
