"""Settings: where they come from, which are wrong, and what an operator is told about those."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from worker.errors import Unusable
from worker.settings import CelerySettings, DatabaseSettings, Settings, load_settings, retry_wait
from worker.settings_sources import CONFIG_FILE_VARIABLE, load

GOOD = {
    "DATABASE_URL": "mysql://user:database-password@mysql/license_manager",
    "CELERY_BROKER_URL": "redis://:broker-password@redis:6379/5",
    "LMS_URL": "https://courses.example.com",
    "BACKEND_SERVICE_EDX_OAUTH2_KEY": "a-key",
    "BACKEND_SERVICE_EDX_OAUTH2_SECRET": "the-lms-secret",
}
REQUIRED = list(GOOD)
SECRETS = ("database-password", "broker-password", "backend-password", "the-lms-secret")
ONE, OTHER = UUID("378d5bf0-f67d-4bf7-8b2a-cbbc53d0f772"), UUID("7f2c0b53-3b0c-4b0e-9d4e-0b8f3c7d2a11")
UNLINKING = "CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"
SECRET = "BACKEND_SERVICE_EDX_OAUTH2_SECRET"
Env = Callable[..., None]
Yaml = Callable[[str], Path]


@pytest.fixture(autouse=True)
def no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*Settings.model_fields, CONFIG_FILE_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Env:
    """Set the environment to what is good, with changes; None leaves one out."""

    def set_all(**changes: str | None) -> None:
        for name, value in (GOOD | changes).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return set_all


@pytest.fixture
def yaml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Yaml:
    """Write the YAML file and name it."""

    def write(content: str) -> Path:
        path = tmp_path / "settings.yml"
        path.write_text(content)
        monkeypatch.setenv(CONFIG_FILE_VARIABLE, str(path))
        return path

    return write


def refused(broker: bool = True) -> str:
    with pytest.raises(Unusable) as caught:
        load_settings(broker=broker)
    return str(caught.value)


def complaints(message: str) -> dict[str, str]:
    """The name of each setting that is complained about, and what is said of it."""
    first, *lines = message.splitlines()
    assert first == "These settings are wrong:"
    return dict(line.strip().split(": ", 1) for line in lines)


# What there is


def test_the_names_and_defaults_are_those_of_the_design() -> None:
    # Names that operators type do not change once released.
    assert {name: field.default for name, field in Settings.model_fields.items() if not field.is_required()} == {
        "CELERY_BROKER_URL": "",
        "CELERY_RESULT_BACKEND": "",
        "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT": "",
        "BACKEND_SERVICE_EDX_OAUTH2_SECRET": "",
        "BACKEND_SERVICE_EDX_OAUTH2_SECRET_FILE": None,
        UNLINKING: frozenset(),
        "UNLINK_AFTER_DAYS": 90,
        "LICENSE_EXPIRATION_BATCH_SIZE": 100,
        "BULK_UNLINK_BATCH_SIZE": 100,
        "BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS": 120,
        "BULK_UNLINK_REQUEST_TIMEOUT_SECONDS": 120,
        "LMS_PARALLEL_REQUESTS": 4,
        "LMS_PARALLEL_REQUESTS_PER_HOST": 8,
        "LMS_REQUESTS_PER_MINUTE": None,
        "NIGHTLY_SCHEDULE": "0 2 * * *",
        "TIME_ZONE": "UTC",
        "LOG_FORMAT": "keyvalue",
        "LEASE_SECONDS": 300,
        "TASK_TIME_LIMIT_SECONDS": 3000,
        "VISIBILITY_TIMEOUT_SECONDS": 4200,
        "TASK_MAX_RETRIES": 5,
        "TASK_RETRY_SECONDS": 60,
        "SEGMENT_KEY": "",
        "SEGMENT_INCLUDE_EMAIL": False,
    }
    assert {name for name, field in Settings.model_fields.items() if field.is_required()} == {
        "DATABASE_URL",
        "LMS_URL",
        "BACKEND_SERVICE_EDX_OAUTH2_KEY",
    }


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_description_and_an_example(name: str) -> None:
    field = Settings.model_fields[name]
    assert field.description
    assert field.description[0].isupper() or field.description.startswith("license-manager")
    assert not field.description.endswith("."), "a message goes on after it"
    assert field.examples
    assert all(isinstance(example, str) and example for example in field.examples)


@pytest.mark.parametrize("name", [name for name in Settings.model_fields if not name.endswith("_FILE")])
def test_every_example_is_a_value_that_is_taken(env: Env, name: str) -> None:
    for example in Settings.model_fields[name].examples or []:
        env(**{name: str(example)})
        load_settings(broker=True)


def test_the_examples_go_together(env: Env) -> None:
    examples = {name: str((field.examples or [""])[0]) for name, field in Settings.model_fields.items()}
    env(**{name: example for name, example in examples.items() if not name.endswith("_FILE")})
    customers = load_settings(broker=True).CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED
    assert customers == {ONE, OTHER}


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
    assert (settings.UNLINK_AFTER_DAYS, settings.LMS_PARALLEL_REQUESTS) == (30, 4)


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


# What is made of them


@pytest.mark.parametrize(
    ("given", "made"),
    [
        pytest.param("mysql://u:p@h/d", "mysql+pymysql://u:p@h/d", id="as Django has it"),
        pytest.param(
            "mysql+pymysql://u:p@h/d?charset=utf8mb4", "mysql+pymysql://u:p@h/d?charset=utf8mb4", id="PyMySQL"
        ),
        pytest.param("mariadb://u:p@h:3307/d", "mariadb+pymysql://u:p@h:3307/d", id="MariaDB, another port"),
        pytest.param("postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d", id="as Heroku has it"),
        pytest.param("postgresql://u:p@h/d", "postgresql+psycopg://u:p@h/d", id="PostgreSQL: psycopg 3"),
        pytest.param("postgresql+psycopg://h/d", "postgresql+psycopg://h/d", id="psycopg 3 by name"),
        pytest.param("sqlite:////tmp/d.sqlite3", "sqlite:////tmp/d.sqlite3", id="SQLite"),
        pytest.param("mysql://u:a%40b%2Fc@h/d", "mysql+pymysql://u:a%40b%2Fc@h/d", id="an escaped password survives"),
    ],
)
def test_the_database_driver_is_one_that_we_bring(env: Env, given: str, made: str) -> None:
    env(DATABASE_URL=given)
    url = load_settings().DATABASE_URL
    assert url == made


@pytest.mark.parametrize("name", ["LMS_URL", "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT"])
def test_a_slash_at_the_end_of_an_address_is_taken_off(env: Env, name: str) -> None:
    env(**{name: "https://lms.example/"})
    assert getattr(load_settings(), name) == "https://lms.example"


CHECKED = "://r/5?ssl_cert_reqs=required"


@pytest.mark.parametrize(
    ("broker", "backend", "found"),
    [
        pytest.param("redis://r/5", None, "redis://r/5", id="the broker when that is a Redis"),
        pytest.param(f"rediss{CHECKED}", None, f"rediss{CHECKED}", id="with TLS too"),
        pytest.param("redis://r/5", "redis://other/1", "redis://other/1", id="what is set wins"),
        pytest.param("amqp://r", "redis://other/1", "redis://other/1", id="beside a RabbitMQ"),
        pytest.param("amqp://r", None, None, id="a RabbitMQ keeps no results"),
        pytest.param(None, None, None, id="nothing set"),
    ],
)
def test_where_results_are_kept(env: Env, broker: str | None, backend: str | None, found: str | None) -> None:
    env(CELERY_BROKER_URL=broker, CELERY_RESULT_BACKEND=backend)
    assert load(CelerySettings).result_backend == found
    assert load_settings().result_backend == found


@pytest.mark.parametrize(
    ("first", "waits"),
    [
        pytest.param(60, [60, 120, 240, 480, 900, 900], id="doubles up to 15 minutes"),
        pytest.param(1200, [1200, 1200], id="a longer first wait stays as it is"),
    ],
)
def test_the_waits_of_a_retry_grow(first: int, waits: list[int]) -> None:
    assert [retry_wait(first, attempt) for attempt in range(len(waits))] == waits


# Wrong ones


@pytest.mark.parametrize("name", REQUIRED)
def test_what_is_missing_is_named_with_where_to_set_it(env: Env, name: str) -> None:
    env(**{name: None})
    told = complaints(refused())
    assert list(told) == [name]
    assert "is not set" in told[name]
    assert "for example" in told[name]


def test_a_broker_is_a_must_only_where_one_is_used(env: Env) -> None:
    env(CELERY_BROKER_URL=None)
    assert load_settings().CELERY_BROKER_URL == ""


WRONG = [
    pytest.param("DATABASE_URL", "license_manager", "not a SQLAlchemy URL", id="no URL"),
    pytest.param("DATABASE_URL", "oracle://u:p@h/d", "must begin with mysql://", id="another database"),
    pytest.param("DATABASE_URL", "mysql+mysqldb://u:p@h/d", "must begin with mysql://", id="a driver we do not bring"),
    pytest.param("DATABASE_URL", "postgresql+psycopg2://h/d", "postgresql://", id="psycopg 2"),
    pytest.param("DATABASE_URL", "mysql://u:p@h:port/d", "", id="a port that is none"),
    pytest.param("LMS_URL", "courses.example.com", "must begin with http:// or https://", id="no scheme"),
    pytest.param("LMS_URL", " ", "must begin with http:// or https://", id="blank"),
    pytest.param("SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT", "ftp://x", "must begin with http://", id="another scheme"),
    pytest.param("CELERY_BROKER_URL", "localhost:6379", "must begin with redis://", id="a broker without a scheme"),
    pytest.param("CELERY_BROKER_URL", "rediss://r/5", "?ssl_cert_reqs=required", id="TLS without a certificate"),
    pytest.param("CELERY_RESULT_BACKEND", "rediss://r/5", "?ssl_cert_reqs=required", id="the same of the backend"),
    pytest.param("CELERY_BROKER_URL", "sqs://x", "must begin with redis://", id="another broker"),
    pytest.param(UNLINKING, f"{ONE},nonsense", "'nonsense'", id="one customer that is no UUID"),
    pytest.param(UNLINKING, f"{ONE};{OTHER}", "UUID", id="semicolons"),
    pytest.param("UNLINK_AFTER_DAYS", "-1", "greater than or equal to 0", id="unlinked before it expires"),
    pytest.param("UNLINK_AFTER_DAYS", "ninety", "integer", id="days in words"),
    pytest.param("UNLINK_AFTER_DAYS", "90.5", "integer", id="half a day"),
    pytest.param("LICENSE_EXPIRATION_BATCH_SIZE", "0", "greater than 0", id="empty downgrades"),
    pytest.param("LICENSE_EXPIRATION_BATCH_SIZE", "1001", "less than or equal to 1000", id="too large"),
    pytest.param("BULK_UNLINK_BATCH_SIZE", "0", "greater than 0", id="empty unlinks"),
    pytest.param("BULK_UNLINK_BATCH_SIZE", "1001", "less than or equal to 1000", id="more than was tried"),
    pytest.param("BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS", "0", "greater than 0", id="no time to downgrade"),
    pytest.param("BULK_UNLINK_REQUEST_TIMEOUT_SECONDS", "-5", "greater than 0", id="no time to unlink"),
    pytest.param("LMS_PARALLEL_REQUESTS", "0", "greater than 0", id="nothing in flight"),
    pytest.param("LMS_PARALLEL_REQUESTS", "65", "less than or equal to 64", id="too much in flight"),
    pytest.param("LMS_PARALLEL_REQUESTS_PER_HOST", "0", "greater than 0", id="nothing in flight on a host"),
    pytest.param("LMS_PARALLEL_REQUESTS_PER_HOST", "257", "less than or equal to 256", id="too much on a host"),
    pytest.param("LMS_REQUESTS_PER_MINUTE", "0", "greater than 0", id="no calls at all"),
    pytest.param("LMS_REQUESTS_PER_MINUTE", "nan", "greater than 0", id="not a number"),
    pytest.param("NIGHTLY_SCHEDULE", "2am", "five fields", id="not cron"),
    pytest.param("NIGHTLY_SCHEDULE", "0 2 * * * *", "five fields", id="with seconds"),
    pytest.param("TIME_ZONE", "Mars/Olympus", "not a time zone", id="no such zone"),
    pytest.param("TIME_ZONE", "../../etc/passwd", "not a time zone", id="a path"),
    pytest.param("TIME_ZONE", "Europe", "not a time zone", id="a directory of zones"),
    pytest.param("LEASE_SECONDS", "0", "greater than 0", id="no lease"),
    pytest.param("TASK_TIME_LIMIT_SECONDS", "x", "integer", id="no limit"),
    pytest.param("VISIBILITY_TIMEOUT_SECONDS", "-1", "greater than 0", id="no visibility"),
    pytest.param("TASK_MAX_RETRIES", "-1", "greater than or equal to 0", id="fewer than none"),
    pytest.param("TASK_RETRY_SECONDS", "0", "greater than 0", id="a hot loop"),
]


@pytest.mark.parametrize(("name", "value", "words"), WRONG)
def test_a_wrong_value_is_named_with_its_remedy(env: Env, name: str, value: str, words: str) -> None:
    env(**{name: value})
    told = complaints(refused())
    assert list(told) == [name]
    assert words in told[name]
    field = Settings.model_fields[name]
    assert str(field.description) in told[name]
    if value.startswith("rediss://"):  # the example would have the operator give TLS up
        assert "Keep TLS: rediss://" in told[name]
    else:
        assert f"for example {(field.examples or [''])[0]}" in told[name]


def test_an_unlinking_delay_that_no_calendar_holds_is_wrong(env: Env) -> None:
    env(UNLINK_AFTER_DAYS="9999999")  # for "never", say
    assert list(complaints(refused())) == ["UNLINK_AFTER_DAYS"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        pytest.param("LMS_URL: ''", "LMS_URL", id="an empty address"),
        pytest.param("BACKEND_SERVICE_EDX_OAUTH2_KEY: ''", "BACKEND_SERVICE_EDX_OAUTH2_KEY", id="an empty key"),
        pytest.param("CELERY_BROKER_URL: ''", "CELERY_BROKER_URL", id="an empty broker"),
        pytest.param("DATABASE_URL: ''", "DATABASE_URL", id="an empty database"),
        pytest.param(f"{SECRET}: ''", SECRET, id="an empty secret"),
        pytest.param("LMS_URL:", "LMS_URL", id="null"),
        pytest.param(f"{SECRET}: 12345", SECRET, id="a secret that YAML takes for a number"),
        pytest.param("UNLINK_AFTER_DAYS: yes", "UNLINK_AFTER_DAYS", id="yes is not one day"),
        pytest.param("UNLINK_AFTER_DAYS: 90.5", "UNLINK_AFTER_DAYS", id="half a day"),
        pytest.param("TIME_ZONE: ''", "TIME_ZONE", id="an empty time zone"),
        pytest.param(f"{UNLINKING}: 5", UNLINKING, id="a number for a list"),
        pytest.param(f"{UNLINKING}: [nonsense]", UNLINKING, id="a list with no UUID"),
        pytest.param(f"{UNLINKING}: {{a: b}}", UNLINKING, id="a mapping for a list"),
    ],
)
def test_a_wrong_value_in_the_file_is_named_too(env: Env, yaml: Yaml, content: str, name: str) -> None:
    env(**{name: None})
    yaml(content)
    told = complaints(refused())
    assert list(told) == [name]
    assert "for example" in told[name]


def test_all_wrong_settings_are_told_at_once(env: Env) -> None:
    env(LMS_URL=None, DATABASE_URL="x", UNLINK_AFTER_DAYS="x", TIME_ZONE="x", CELERY_BROKER_URL="x")
    told = complaints(refused())
    assert set(told) == {"LMS_URL", "DATABASE_URL", "UNLINK_AFTER_DAYS", "TIME_ZONE", "CELERY_BROKER_URL"}


def test_nothing_set_names_every_setting_that_must_be() -> None:
    assert set(complaints(refused())) == set(REQUIRED)
    assert set(complaints(refused(broker=False))) == set(REQUIRED) - {"CELERY_BROKER_URL"}


# The order of the time-outs


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        pytest.param(
            {"BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS": "300"},
            ("LEASE_SECONDS", "BULK_EXPIRATION_", "REQUEST_TIMEOUT_SECONDS"),
            id="a downgrade outlasts the lease",
        ),
        pytest.param(
            {"BULK_UNLINK_REQUEST_TIMEOUT_SECONDS": "301"},
            ("LEASE_SECONDS", "BULK_UNLINK_REQUEST_TIMEOUT_SECONDS"),
            id="an unlink outlasts the lease",
        ),
        pytest.param(
            {"LEASE_SECONDS": "120"},
            ("LEASE_SECONDS", "BULK_UNLINK_REQUEST_TIMEOUT_SECONDS"),
            id="the lease is no longer than a call",
        ),
        pytest.param(
            {"LEASE_SECONDS": "3000"},
            ("TASK_TIME_LIMIT_SECONDS", "LEASE_SECONDS"),
            id="the lease outlasts the task",
        ),
        pytest.param(
            {"VISIBILITY_TIMEOUT_SECONDS": "3000"},
            ("VISIBILITY_TIMEOUT_SECONDS", "TASK_TIME_LIMIT_SECONDS"),
            id="Redis gives a task out again while it runs",
        ),
        pytest.param(
            {"TASK_RETRY_SECONDS": "1801"},
            ("TASK_RETRY_SECONDS", "VISIBILITY_TIMEOUT_SECONDS"),
            id="Redis gives a retry out again while it waits",
        ),
        pytest.param(
            {"VISIBILITY_TIMEOUT_SECONDS": "1799", "TASK_TIME_LIMIT_SECONDS": "1000"},
            ("TASK_RETRY_SECONDS", "VISIBILITY_TIMEOUT_SECONDS"),
            id="the longest of the growing waits counts, not the first",
        ),
    ],
)
def test_time_outs_out_of_order_name_both_settings_and_the_remedy(
    env: Env, changes: dict[str, str], named: tuple[str, ...]
) -> None:
    env(**changes)
    message = refused()
    assert [name for name in named if name not in message] == []
    (name,) = complaints(message)
    assert name in named
    assert re.search(r"\b(Raise|Lower|lower)\b", message)
    assert [value for value in changes.values() if value not in message and value != "1000"] == []


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"LEASE_SECONDS": "131"}, id="a lease just longer than a call"),
        pytest.param({"LEASE_SECONDS": "2999"}, id="a lease just shorter than the task"),
        pytest.param({"VISIBILITY_TIMEOUT_SECONDS": "4200"}, id="just visible in time"),
        pytest.param({"TASK_RETRY_SECONDS": "1000"}, id="a wait that just fits"),
        pytest.param({"TASK_MAX_RETRIES": "0"}, id="no retries"),
    ],
)
def test_time_outs_just_in_order_are_taken(env: Env, changes: dict[str, str]) -> None:
    env(**changes)
    load_settings(broker=True)


def test_time_outs_out_of_order_twice_are_told_at_once(env: Env) -> None:
    env(LEASE_SECONDS="100", VISIBILITY_TIMEOUT_SECONDS="3000")
    message = refused()
    assert "LEASE_SECONDS" in message
    assert "VISIBILITY_TIMEOUT_SECONDS" in message


def test_time_outs_out_of_order_are_told_beside_what_is_missing(env: Env) -> None:
    env(LEASE_SECONDS="100", LMS_URL=None)
    assert set(complaints(refused())) == {"LEASE_SECONDS", "LMS_URL"}


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


# Secrets


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder that stands for /run/secrets."""
    folder = tmp_path / "secrets"
    (folder / "kubernetes.io").mkdir(parents=True)
    monkeypatch.setattr("worker.settings_sources.SECRETS_FOLDER", folder)
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


def test_a_wrong_secret_is_told_like_any_other(env: Env, secrets: Path) -> None:
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
def test_what_is_told_of_wrong_settings_holds_no_secret(env: Env, changes: dict[str, str | None]) -> None:
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
def test_what_is_told_of_a_wrong_file_holds_no_secret(env: Env, yaml: Yaml, content: str) -> None:
    env(**{SECRET: None})
    yaml(content)
    assert "the-lms-secret" not in refused()


# Segment


def test_a_segment_key_needs_segments_library(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    env(SEGMENT_KEY="the-segment-key")
    assert load_settings().SEGMENT_KEY == "the-segment-key"
    assert "the-segment-key" not in repr(load_settings())
    monkeypatch.setitem(sys.modules, "segment", None)  # what is not installed
    told = complaints(refused())
    assert list(told) == ["SEGMENT_KEY"]
    assert "pip install 'license-expiry[segment]'" in told["SEGMENT_KEY"]
    assert "the-segment-key" not in told["SEGMENT_KEY"]
    env(SEGMENT_KEY=None)
    assert load_settings().SEGMENT_KEY == ""


@pytest.mark.parametrize(
    ("content", "included"),
    [
        pytest.param("SEGMENT_INCLUDE_EMAIL: true", True, id="YAML's own"),
        pytest.param("SEGMENT_INCLUDE_EMAIL: no", False, id="YAML's other word for it"),
        pytest.param("SEGMENT_INCLUDE_EMAIL: 'true'", True, id="a string"),
        pytest.param("TIME_ZONE: UTC", False, id="by default"),
    ],
)
def test_whether_segment_gets_the_email_is_yes_or_no(env: Env, yaml: Yaml, content: str, included: bool) -> None:
    env(SEGMENT_INCLUDE_EMAIL=None)
    yaml(content)
    assert load_settings().SEGMENT_INCLUDE_EMAIL is included


def test_whether_segment_gets_the_email_is_nothing_else(env: Env) -> None:
    env(SEGMENT_INCLUDE_EMAIL="perhaps")
    assert list(complaints(refused())) == ["SEGMENT_INCLUDE_EMAIL"]
