"""Settings: which there are, what is made of them, which are wrong, and what an operator is told about those."""

import re
import sys

import pytest
from support.settings import GOOD, ONE, OTHER, SECRET, UNLINKING, Env, Yaml, complaints, refused

from worker.settings import CelerySettings, Settings, load_settings, retry_wait
from worker.settings.sources import load

REQUIRED = list(GOOD)


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
        "UNLINK_LIMIT": 1000,
        "FLOWER_URL": "",
        "SERVE_URL": "",
        "ALLOW_HTTP": False,
        "LICENSE_EXPIRATION_BATCH_SIZE": 100,
        "BULK_UNLINK_BATCH_SIZE": 100,
        "BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS": 120,
        "BULK_UNLINK_REQUEST_TIMEOUT_SECONDS": 120,
        "LMS_PARALLEL_REQUESTS": 8,
        "LMS_DOWNGRADES_PER_MINUTE": None,
        "LMS_UNLINKS_PER_MINUTE": None,
        "LMS_REQUESTS_PER_MINUTE": None,
        "NIGHTLY_SCHEDULE": "0 2 * * *",
        "TIME_ZONE": "UTC",
        "LOG_FORMAT": "keyvalue",
        "LEASE_SECONDS": 300,
        "TASK_TIME_LIMIT_SECONDS": 3000,
        "VISIBILITY_TIMEOUT_SECONDS": 4200,
        "TASK_MAX_RETRIES": 5,
        "TASK_RETRY_SECONDS": 60,
        "LEDGER_KEEP_DAYS": 400,
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


@pytest.mark.parametrize(
    ("given", "made"),
    [
        pytest.param({}, {"downgrade": None, "unlink": None, "learners": None}, id="no limit"),
        pytest.param({"REQUESTS": "800"}, {"downgrade": 800, "unlink": 800, "learners": 800}, id="the old name"),
        pytest.param({"UNLINKS": "2000"}, {"downgrade": None, "unlink": 2000, "learners": 2000}, id="one alone"),
        pytest.param(
            {"REQUESTS": "60", "DOWNGRADES": "800"}, {"downgrade": 800, "unlink": 60, "learners": 60}, id="both names"
        ),
    ],
)
def test_each_call_has_its_rate(env: Env, given: dict[str, str], made: dict[str, float | None]) -> None:
    env(**{f"LMS_{name}_PER_MINUTE": value for name, value in given.items()})
    assert load_settings().calls_per_minute == made


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
    pytest.param("LMS_URL", "courses.example.com", "must begin with http:// or https://", id="no scheme"),
    pytest.param("LMS_URL", " ", "must begin with http:// or https://", id="blank"),
    pytest.param("SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT", "ftp://x", "must begin with http://", id="another scheme"),
    pytest.param("FLOWER_URL", "flower:5555", "must begin with http:// or https://", id="Flower without a scheme"),
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


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (UNLINKING, f"{ONE},abc", "must be a UUID (given 'abc')"),
        ("UNLINK_AFTER_DAYS", "ninety", "must be an integer (given 'ninety')"),
        ("LMS_REQUESTS_PER_MINUTE", "many", "must be a number (given 'many')"),
        ("ALLOW_HTTP", "maybe", "must be a boolean, true or false (given 'maybe')"),
        ("LOG_FORMAT", "xml", "must be 'keyvalue' or 'json' (given 'xml')"),
    ],
)
def test_a_complaint_is_in_our_words_and_has_the_value(env: Env, name: str, value: str, said: str) -> None:
    env(**{name: value})
    assert said in complaints(refused())[name]


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


def test_all_wrong_settings_are_reported_at_once(env: Env) -> None:
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


def test_time_outs_out_of_order_twice_are_reported_at_once(env: Env) -> None:
    env(LEASE_SECONDS="100", VISIBILITY_TIMEOUT_SECONDS="3000")
    message = refused()
    assert "LEASE_SECONDS" in message
    assert "VISIBILITY_TIMEOUT_SECONDS" in message


def test_time_outs_out_of_order_are_reported_beside_what_is_missing(env: Env) -> None:
    env(LEASE_SECONDS="100", LMS_URL=None)
    assert set(complaints(refused())) == {"LEASE_SECONDS", "LMS_URL"}


# Segment


def test_a_segment_key_needs_segments_library(env: Env, monkeypatch: pytest.MonkeyPatch) -> None:
    env(SEGMENT_KEY="the-segment-key")
    assert load_settings().SEGMENT_KEY == "the-segment-key"
    assert "the-segment-key" not in repr(load_settings())
    monkeypatch.setitem(sys.modules, "segment", None)  # what is not installed
    told = complaints(refused())
    assert list(told) == ["SEGMENT_KEY"]
    assert "pip install '.[segment]'" in told["SEGMENT_KEY"]
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


def test_what_judges_who_is_due_is_known_by_one_mark(env: Env) -> None:
    others = {UNLINKING: "", "UNLINK_AFTER_DAYS": "90", "UNLINK_LIMIT": "1000", "TASK_RETRY_SECONDS": "60"}

    def mark(**more: str) -> str:
        env(**others | more)
        return load_settings().judged_by

    both = mark(**{UNLINKING: f"{ONE},{OTHER}"})
    others_marks = {mark(), mark(**{UNLINKING: str(ONE)}), mark(UNLINK_AFTER_DAYS="91"), mark(UNLINK_LIMIT="0"), both}
    assert len(others_marks) == 5
    assert mark(**{UNLINKING: f"{OTHER},{ONE}", "TASK_RETRY_SECONDS": "30"}) == both, "no order, and no other setting"
