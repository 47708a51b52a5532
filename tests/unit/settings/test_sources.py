"""Where settings come from, and which of several wins."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import pytest
from support.settings import GOOD, ONE, OTHER, SECRET, UNLINKING, Env, Yaml, complaints, refused

from worker.errors import Unusable
from worker.settings import CelerySettings, DatabaseSettings, Settings, load_settings
from worker.settings.sources import CONFIG_FILE_VARIABLE, load, origins

SECRETS = ("database-password", "broker-password", "backend-password", "the-lms-secret")


# Where they come from


def test_the_environment_is_enough(env: Env) -> None:
    env(UNLINK_AFTER_DAYS="30", LMS_REQUESTS_PER_MINUTE="800")
    settings = load_settings(broker=True)
    assert settings.UNLINK_AFTER_DAYS == 30
    assert settings.LMS_REQUESTS_PER_MINUTE == 800.0
    assert settings.BACKEND_SERVICE_EDX_OAUTH2_KEY == "a-key"


def test_the_yaml_file_is_enough(yaml: Yaml) -> None:
    yaml("\n".join(f"{name}: '{value}'" for name, value in GOOD.items()) + "\nUNLINK_AFTER_DAYS: 30\n")
    settings = load_settings(broker=True)
    assert settings.UNLINK_AFTER_DAYS == 30
    assert settings.BACKEND_SERVICE_EDX_OAUTH2_SECRET == "the-lms-secret"


def test_the_environment_wins_over_the_yaml_file(env: Env, yaml: Yaml) -> None:
    yaml("UNLINK_AFTER_DAYS: 30\nLMS_URL: https://from-the-file.example\nLMS_PARALLEL_REQUESTS: 8\n")
    env(UNLINK_AFTER_DAYS="60")
    settings = load_settings()
    assert settings.UNLINK_AFTER_DAYS == 60
    assert settings.LMS_URL == "https://courses.example.com"
    assert settings.LMS_PARALLEL_REQUESTS == 8


def test_an_empty_variable_hides_neither_the_file_nor_the_default(env: Env, yaml: Yaml) -> None:
    yaml("UNLINK_AFTER_DAYS: 30\n")
    env(UNLINK_AFTER_DAYS="", LMS_PARALLEL_REQUESTS="")
    settings = load_settings()
    assert (settings.UNLINK_AFTER_DAYS, settings.LMS_PARALLEL_REQUESTS) == (30, 8)


def test_what_else_is_in_the_file_or_the_environment_is_none_of_ours(env: Env, yaml: Yaml) -> None:
    yaml("DJANGO_SETTINGS_MODULE: license_manager.settings\nDATABASES: {default: {HOST: x}}\n")
    env(PATH_TO_SOMETHING="x", unlink_after_days="1")
    assert load_settings().UNLINK_AFTER_DAYS == 90


def test_an_empty_file_is_no_settings(env: Env, yaml: Yaml) -> None:
    yaml("")
    env()
    assert load_settings().UNLINK_AFTER_DAYS == 90


def test_importing_and_loading_again_reads_afresh(env: Env) -> None:
    env()
    assert load_settings().UNLINK_AFTER_DAYS == 90
    env(UNLINK_AFTER_DAYS="91")
    assert load_settings().UNLINK_AFTER_DAYS == 91


@pytest.mark.parametrize(
    ("value", "found"),
    [
        pytest.param(f"{ONE},{OTHER}", {ONE, OTHER}, id="commas"),
        pytest.param(f" {ONE} , {OTHER} , ", {ONE, OTHER}, id="white space and a comma too many"),
        pytest.param(ONE.hex, {ONE}, id="without dashes, as databases keep them"),
        pytest.param(f"{ONE},{ONE}", {ONE}, id="the same twice"),
        pytest.param("", set(), id="nobody"),
        pytest.param(" , ", set(), id="nobody, at length"),
    ],
)
def test_customers_come_with_commas(env: Env, value: str, found: set[UUID]) -> None:
    env(**{UNLINKING: value})
    customers = load_settings().CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED
    assert customers == found


@pytest.mark.parametrize(
    ("value", "found"),
    [
        pytest.param(f"[{ONE}, '{OTHER}']", {ONE, OTHER}, id="a list"),
        pytest.param(f"\n  - {ONE}\n  - {OTHER}", {ONE, OTHER}, id="a list of lines"),
        pytest.param(f"'{ONE},{OTHER}'", {ONE, OTHER}, id="commas"),
        pytest.param("[]", set(), id="an empty list"),
        pytest.param("", set(), id="null"),
    ],
)
def test_customers_come_as_a_yaml_list_too(env: Env, yaml: Yaml, value: str, found: set[UUID]) -> None:
    env()
    yaml(f"{UNLINKING}: {value}\n")
    customers = load_settings().CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED
    assert customers == found


def test_the_secret_comes_from_a_file(env: Env, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the-lms-secret\n")
    env(**{SECRET: None, f"{SECRET}_FILE": str(secret)})
    assert load_settings().BACKEND_SERVICE_EDX_OAUTH2_SECRET == "the-lms-secret"


def test_a_secret_that_is_set_wins_over_its_file(env: Env, tmp_path: Path) -> None:
    env(**{f"{SECRET}_FILE": str(tmp_path / "not there")})
    assert load_settings().BACKEND_SERVICE_EDX_OAUTH2_SECRET == "the-lms-secret"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(None, "cannot be read (No such file or directory)", id="not there"),
        pytest.param(b"\n", "is not set", id="empty"),
        pytest.param(b"\xff\xfe", "", id="not text"),
    ],
)
def test_a_secret_file_that_gives_no_secret_is_named(
    env: Env, tmp_path: Path, content: bytes | None, words: str
) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    env(**{SECRET: None, f"{SECRET}_FILE": str(path)})
    (name,) = complaints(refused())
    assert name == SECRET
    assert words in refused()


def test_a_secret_file_that_is_a_directory_is_named(env: Env, tmp_path: Path) -> None:
    env(**{SECRET: None, f"{SECRET}_FILE": str(tmp_path)})
    assert f"{tmp_path} cannot be read" in complaints(refused())[SECRET]


# The file


def test_a_file_that_is_not_there_is_named(env: Env, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    env()
    monkeypatch.setenv(CONFIG_FILE_VARIABLE, str(tmp_path / "nowhere.yml"))
    message = refused()
    assert message.startswith(f"{CONFIG_FILE_VARIABLE}: {tmp_path}/nowhere.yml is not a file")
    assert "unset it" in message


def test_a_directory_is_not_a_file(env: Env, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    env()
    monkeypatch.setenv(CONFIG_FILE_VARIABLE, str(tmp_path))
    assert "is not a file" in refused()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("LMS_URL: [", id="unfinished"),
        pytest.param("a: b: c", id="two colons"),
        pytest.param("\tLMS_URL: x", id="a tab"),
        pytest.param("- LMS_URL\n", id="a list"),
        pytest.param("LMS_URL", id="a word"),
        pytest.param("1: 2", id="a number for a name"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_named(env: Env, yaml: Yaml, content: str) -> None:
    env()
    path = yaml(content)
    message = refused()
    assert message.startswith(f"{CONFIG_FILE_VARIABLE}: {path} is not a YAML mapping")


# Names


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("LMS_URLS", "LMS_URL"),
        ("lms_url", "LMS_URL"),
        ("UNLINK_AFTER_DAY", "UNLINK_AFTER_DAYS"),
        ("CUSTOMERS_WITH_EXPIRED_LICENCES_UNLINKING_ENABLED", UNLINKING),
        ("TIMEZONE", "TIME_ZONE"),
        ("DATABASE_URI", "DATABASE_URL"),
    ],
)
def test_a_misspelt_name_in_the_file_is_named_with_the_one_that_was_meant(
    env: Env, yaml: Yaml, written: str, meant: str
) -> None:
    env()
    yaml(f"{written}: the-lms-secret\n")
    message = refused()
    assert list(complaints(message)) == [written]
    assert f"perhaps to {meant}," in message
    assert "the-lms-secret" not in message


def test_license_managers_own_file_is_taken(env: Env, yaml: Yaml) -> None:
    own = """SECRET_KEY ALLOWED_HOSTS DATABASES CACHES JWT_AUTH LANGUAGE_CODE MEDIA_ROOT STATIC_URL LOGIN_URL
    CELERY_BROKER_TRANSPORT CELERY_BROKER_HOSTNAME CELERY_BROKER_VHOST CELERY_BROKER_USER CELERY_BROKER_PASSWORD
    CELERY_TASK_TIME_LIMIT CELERY_TASK_SOFT_TIME_LIMIT CELERY_RESULT_EXTENDED CELERY_TASK_ALWAYS_EAGER CMS_URL
    SOCIAL_AUTH_EDX_OAUTH2_KEY SOCIAL_AUTH_EDX_OAUTH2_SECRET SOCIAL_AUTH_EDX_OAUTH2_ISSUER
    SOCIAL_AUTH_EDX_OAUTH2_LOGOUT_URL SOCIAL_AUTH_EDX_OAUTH2_PUBLIC_URL_ROOT BACKEND_SERVICE_EDX_OAUTH2_PROVIDER_URL
    BULK_ENROLL_REQUEST_TIMEOUT_SECONDS BULK_ENROLL_REQUEST_LIMIT SUPPORT_SITE_URL ENTERPRISE_CATALOG_URL BRAZE_API_KEY
    DEFAULT_DAYS_BEFORE_LICENSE_PURGE SUBSCRIPTION_PLAN_RENEWAL_LOCK_PERIOD_HOURS FLOWER_BASIC_AUTH"""
    yaml("".join(f"{name}: x\n" for name in own.split()) + "UNLINK_AFTER_DAYS: 30\n")
    env(UNLINK_AFTER_DAYS=None)
    assert load_settings().UNLINK_AFTER_DAYS == 30


@pytest.mark.parametrize("name", Settings.model_fields)
def test_null_in_the_file_is_not_set(env: Env, yaml: Yaml, name: str) -> None:
    env(**{name: None})
    yaml(f"{name}: null\n")
    if name in GOOD:
        assert "is not set" in complaints(refused())[name]
    else:
        assert getattr(load_settings(), name) == Settings.model_fields[name].default


def test_where_each_setting_comes_from_is_known(env: Env, yaml: Yaml, secrets: Path) -> None:
    env(DATABASE_URL=None, **{SECRET: None})
    (secrets / SECRET).write_text("the-lms-secret")
    (secrets / "LMS_URL").write_text("https://hidden.example.com")
    path = yaml("DATABASE_URL: sqlite:////tmp/x\nUNLINK_LIMIT: 5\nTIME_ZONE: null\n")
    found = origins(Settings)
    assert found.pop("the environment") == ["CELERY_BROKER_URL", "LMS_URL", "BACKEND_SERVICE_EDX_OAUTH2_KEY"]
    assert found.pop(str(secrets)) == [SECRET]
    assert found.pop(str(path)) == ["DATABASE_URL", "UNLINK_LIMIT"]
    assert len(found.pop("the default")) == len(Settings.model_fields) - 6
    assert found == {}


# Secrets


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that stands for /run/secrets."""
    folder = tmp_path / "secrets"
    (folder / "kubernetes.io").mkdir(parents=True)
    monkeypatch.setattr("worker.settings.sources.SECRETS_FOLDER", folder)
    return folder


def test_a_setting_may_come_from_a_file_of_its_name(env: Env, secrets: Path) -> None:
    env(DATABASE_URL=None, **{SECRET: None})
    (secrets / "DATABASE_URL").write_text("mysql://u:p%40x@mysql/license_manager\n")
    (secrets / SECRET).write_text("the-lms-secret\n")
    settings = load_settings()
    assert settings.DATABASE_URL == "mysql+pymysql://u:p%40x@mysql/license_manager"
    assert settings.BACKEND_SERVICE_EDX_OAUTH2_SECRET == "the-lms-secret"


def test_the_environment_wins_over_a_secret_and_a_secret_over_the_file(env: Env, yaml: Yaml, secrets: Path) -> None:
    env(LMS_URL="https://environment.example.com")
    yaml("LMS_URL: https://yaml.example.com\nTIME_ZONE: Asia/Tokyo\nUNLINK_AFTER_DAYS: 30\n")
    for name, value in (("LMS_URL", "https://secret.example.com"), ("TIME_ZONE", "Europe/Paris")):
        (secrets / name).write_text(value)
    settings = load_settings()
    assert settings.LMS_URL == "https://environment.example.com"
    assert (settings.TIME_ZONE, settings.UNLINK_AFTER_DAYS) == ("Europe/Paris", 30)


def test_an_empty_secret_is_as_good_as_none(env: Env, yaml: Yaml, secrets: Path) -> None:
    env(DATABASE_URL=None)
    yaml("DATABASE_URL: mysql://u:p@mysql/license_manager\n")
    (secrets / "DATABASE_URL").write_text("\n")
    assert load_settings().DATABASE_URL == "mysql+pymysql://u:p@mysql/license_manager"


def test_a_secret_that_cannot_be_read_is_named(env: Env, secrets: Path) -> None:
    env(DATABASE_URL=None)
    (secrets / "DATABASE_URL").mkdir()
    (secrets / SECRET).write_bytes(b"\xff\xfe")
    (secrets / "LMS_URL").symlink_to(secrets / "not there")
    told = complaints(refused())
    assert (
        f"the file {secrets}/DATABASE_URL cannot be read by user {os.getuid()} (Is a directory)" in told["DATABASE_URL"]
    )
    assert "(it is not UTF-8)" in told[SECRET]
    assert set(told) == {"DATABASE_URL", SECRET}


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_secret_of_another_user_is_named(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root reads everything, a child that is nobody looks."""
    env(DATABASE_URL=None)
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setattr("worker.settings.sources.SECRETS_FOLDER", Path(folder))
        Path(folder, "DATABASE_URL").write_text("mysql://u:the-lms-secret@h/d")
        Path(folder, "DATABASE_URL").chmod(0o400)
        child = os.fork()
        if not child:
            os.setuid(65534)
            os._exit("DATABASE_URL cannot be read by user 65534 (Permission denied)" not in refused())
        assert os.waitpid(child, 0)[1] == 0


def test_a_wrong_secret_is_reported_like_any_other(env: Env, secrets: Path) -> None:
    env(DATABASE_URL=None)
    (secrets / "DATABASE_URL").write_text("oracle://u:the-lms-secret@h/d")
    (secrets / "LOG_FORMAT").write_text("xml")
    message = refused()
    assert set(complaints(message)) == {"DATABASE_URL", "LOG_FORMAT"}
    assert "the-lms-secret" not in message


def test_reading_the_database_needs_no_secret_of_the_lms(env: Env) -> None:
    env(LMS_URL=None, **{SECRET: None})
    assert load(DatabaseSettings).DATABASE_URL.startswith("mysql")


def shown(settings: Any) -> str:
    return f"{settings!r} {settings} {[settings]}"


def test_what_is_shown_of_settings_holds_no_secret(env: Env) -> None:
    env(CELERY_RESULT_BACKEND="redis://:backend-password@redis/1")
    for settings in (load_settings(), load_settings(broker=True), load(CelerySettings)):
        assert [secret for secret in SECRETS if secret in shown(settings)] == []
    assert "https://courses.example.com" in shown(load_settings()), "something is shown"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"DATABASE_URL": "the-lms-secret"}, id="no URL"),
        pytest.param({"DATABASE_URL": "oracle://u:the-lms-secret@h/d"}, id="another database"),
        pytest.param({"DATABASE_URL": "mysql://u:p@x:the-lms-secret@h/d"}, id="a password that was not escaped"),
        pytest.param({"DATABASE_URL": "mysql://u:the-lms-secret@h:x/d"}, id="a wrong port"),
        pytest.param({"CELERY_BROKER_URL": "http://:the-lms-secret@h"}, id="another broker"),
        pytest.param({"LMS_URL": None}, id="something else is missing"),
        pytest.param({"LEASE_SECONDS": "1"}, id="time-outs out of order"),
    ],
)
def test_what_is_reported_of_wrong_settings_holds_no_secret(env: Env, changes: dict[str, str | None]) -> None:
    env(**changes)
    with pytest.raises(Unusable) as caught:
        load_settings(broker=True)
    link: BaseException | None = caught.value
    while link is not None:
        assert [secret for secret in SECRETS if secret in f"{link} {link!r}"] == []
        link = link.__cause__ or link.__context__


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(f'{SECRET}: "the-lms-secret\nX: [', id="an unfinished string"),
        pytest.param(f"{SECRET}: @the-lms-secret", id="a sign that YAML keeps to itself"),
        pytest.param(f"{SECRET}: the-lms-secret: x", id="a colon"),
        pytest.param(f"{SECRET}: [the-lms-secret]", id="a list"),
    ],
)
def test_what_is_reported_of_a_wrong_file_holds_no_secret(env: Env, yaml: Yaml, content: str) -> None:
    env(**{SECRET: None})
    yaml(content)
    assert "the-lms-secret" not in refused()
