"""Celery's settings: what is promised of delivery, and what a worker or beat does when a setting is wrong."""

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.settings import Settings
from worker.settings.sources import CONFIG_FILE_VARIABLE

ROOT = Path(__file__).parents[2]
TASKS = {
    "license_expiry.run_nightly",
    "license_expiry.run_enterprise",
    "license_expiry.downgrade_enrollments",
    "license_expiry.unlink_learners",
    "license_expiry.reconcile",
}
GOOD = {
    "DATABASE_URL": "sqlite:///not-opened.sqlite3",
    "CELERY_BROKER_URL": "memory://",
    "LMS_URL": "https://lms.example",
    "BACKEND_SERVICE_EDX_OAUTH2_KEY": "a-key",
    "BACKEND_SERVICE_EDX_OAUTH2_SECRET": "a-secret",
}
Config = Callable[..., dict[str, Any]]

TLS = "rediss://r/5?ssl_cert_reqs=required"


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Config:
    """Run celeryconfig.py in an environment with these settings and no others; give what it defines."""

    def run(**settings: str) -> dict[str, Any]:
        for name in (*Settings.model_fields, CONFIG_FILE_VARIABLE):
            monkeypatch.delenv(name, raising=False)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        return runpy.run_path(str(ROOT / "celeryconfig.py"))

    return run


def clean(settings: dict[str, str]) -> dict[str, str]:
    """This environment with these settings and no others of ours."""
    ours = {*Settings.model_fields, CONFIG_FILE_VARIABLE}
    return {name: value for name, value in os.environ.items() if name not in ours} | {
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
        **settings,
    }


def celery(cwd: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "celery", "-A", "worker", *arguments]
    return subprocess.run(command, env=clean(settings), cwd=cwd, capture_output=True, text=True, timeout=60)


# What is promised


def test_only_json_goes_over_the_wire(config: Config) -> None:
    made = config()
    assert (made["task_serializer"], made["result_serializer"], made["accept_content"]) == ("json", "json", ["json"])
    assert "json" in made.get("result_accept_content", ["json"])


def test_triggers_and_reconcile_have_a_queue_of_their_own(config: Config) -> None:
    made = config()
    assert made["task_default_queue"] == "license_expiry"
    triggers = {f"license_expiry.{name}" for name in ("run_nightly", "run_enterprise", "reconcile")}
    assert made["task_routes"] == {name: {"queue": "license_expiry.control"} for name in triggers}


def test_a_task_is_acknowledged_late_and_taken_one_at_a_time(config: Config) -> None:
    made = config()
    assert made["task_acks_late"] is True
    assert made["worker_prefetch_multiplier"] == 1
    assert made["task_reject_on_worker_lost"] is False, "reconcile takes up what a killed process had, and counts"


def test_flower_sees_tasks_begin_and_retry(config: Config) -> None:
    made = config()
    assert [made[name] for name in ("worker_send_task_events", "task_send_sent_event", "task_track_started")] == [
        True,
        True,
        True,
    ]


@pytest.mark.parametrize("broker", ["redis://r/5", TLS])
def test_the_visibility_timeout_is_the_settings_and_outlasts_a_task(config: Config, broker: str) -> None:
    made = config(CELERY_BROKER_URL=broker, VISIBILITY_TIMEOUT_SECONDS="5000", TASK_TIME_LIMIT_SECONDS="4000")
    assert made["broker_transport_options"]["visibility_timeout"] == 5000
    assert made["result_backend_transport_options"]["visibility_timeout"] == 5000, "the two share their keys"
    assert made["task_time_limit"] == 4000
    made = config(CELERY_BROKER_URL=broker)
    assert made["broker_transport_options"]["visibility_timeout"] == 4200
    assert made["task_time_limit"] < 4200


@pytest.mark.parametrize(
    ("broker", "options"),
    [
        pytest.param("amqp://r", {"confirm_publish": True}, id="a RabbitMQ says that it has a message"),
        pytest.param("amqps://r", {"confirm_publish": True}, id="with TLS"),
        pytest.param("memory://", {}, id="none in memory"),
        pytest.param("", {}, id="none set"),
    ],
)
def test_other_brokers_get_no_options_of_redis(config: Config, broker: str, options: dict[str, Any]) -> None:
    assert config(CELERY_BROKER_URL=broker)["broker_transport_options"] == options


@pytest.mark.parametrize("broker", ["redis://r/5", TLS])
def test_a_redis_that_is_frozen_or_gone_is_noticed_and_its_keys_are_our_own(config: Config, broker: str) -> None:
    made = config(CELERY_BROKER_URL=broker)
    options = made["broker_transport_options"]
    assert 0 < options["socket_connect_timeout"] <= options["socket_timeout"] <= 60
    assert 0 < options["health_check_interval"] <= 60
    assert options["socket_keepalive"] is True
    assert options["global_keyprefix"] == "license_expiry:"
    assert made["result_backend_transport_options"]["global_keyprefix"] == "license_expiry:"
    assert made["redis_socket_timeout"] == options["socket_timeout"]


def test_a_message_is_handed_over_again_for_as_long_as_a_broker_takes_to_restart(config: Config) -> None:
    policy = config()["task_publish_retry_policy"]
    waits = [
        min(policy["interval_start"] + number * policy["interval_step"], policy["interval_max"])
        for number in range(policy["max_retries"])
    ]
    assert 20 <= sum(waits) <= 60


@pytest.mark.parametrize(
    ("settings", "broker", "backend"),
    [
        pytest.param({}, None, None, id="nothing set: `celery report` works anywhere"),
        pytest.param({"CELERY_BROKER_URL": "redis://r/5"}, "redis://r/5", "redis://r/5", id="one Redis for both"),
        pytest.param({"CELERY_BROKER_URL": TLS}, TLS, TLS, id="with TLS"),
        pytest.param({"CELERY_BROKER_URL": "amqp://r"}, "amqp://r", None, id="a RabbitMQ keeps no results"),
        pytest.param(
            {"CELERY_BROKER_URL": "amqp://r", "CELERY_RESULT_BACKEND": "redis://b/1"},
            "amqp://r",
            "redis://b/1",
            id="a Redis for results alone",
        ),
        pytest.param(
            {"CELERY_BROKER_URL": "redis://r/5", "CELERY_RESULT_BACKEND": "redis://b/1"},
            "redis://r/5",
            "redis://b/1",
            id="two of them",
        ),
    ],
)
def test_the_broker_and_the_result_backend(
    config: Config, settings: dict[str, str], broker: str | None, backend: str | None
) -> None:
    made = config(**settings)
    assert (made["broker_url"], made["result_backend"]) == (broker, backend)


# The schedule


def test_beat_starts_the_night_at_its_time_and_reconciles_every_few_minutes(config: Config) -> None:
    schedule = config(NIGHTLY_SCHEDULE="30 3 * * mon-fri", TIME_ZONE="Europe/Berlin")["beat_schedule"]
    assert {name: entry["task"] for name, entry in schedule.items()} == {
        "nightly": "license_expiry.run_nightly",
        "reconcile": "license_expiry.reconcile",
    }
    nightly = schedule["nightly"]["schedule"]
    assert (nightly.minute, nightly.hour, nightly.day_of_week) == ({30}, {3}, {1, 2, 3, 4, 5})
    assert schedule["nightly"]["options"]["headers"] == {"scheduled": True}, "so that it is begun once"
    assert schedule["reconcile"]["schedule"] == 300
    for entry in schedule.values():
        assert "expires" not in entry.get("options", {}), "a worker whose clock is wrong would drop it"


def test_the_night_is_in_the_time_zone_that_was_set(config: Config) -> None:
    assert config(TIME_ZONE="Europe/Berlin")["timezone"] == "Europe/Berlin"
    assert config()["timezone"] == "UTC"
    nightly = config()["beat_schedule"]["nightly"]["schedule"]
    assert (nightly.minute, nightly.hour) == ({0}, {2})


@pytest.mark.parametrize(
    "schedule",
    [
        pytest.param("61 * * * *", id="no such minute"),
        pytest.param("0 24 * * *", id="no such hour"),
        pytest.param("0 2 30 2 *", id="no such day"),
        pytest.param("x", id="one field"),
        pytest.param("x * * * *", id="a word"),
        pytest.param("@daily", id="a shorthand"),
        pytest.param("*/0 * * * *", id="every zero minutes"),
        pytest.param("0,,30 2 * * *", id="a part left empty"),
        pytest.param("*/ 2 * * *", id="an unfinished step"),
        pytest.param("-5 2 * * *", id="a negative minute"),
    ],
)
def test_a_wrong_schedule_ends_with_one_sentence(
    config: Config, schedule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        config(**GOOD, NIGHTLY_SCHEDULE=schedule)
    assert caught.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    sentence = told.err.strip().removeprefix("These settings are wrong:\n").strip()
    assert sentence.startswith("NIGHTLY_SCHEDULE: ")
    assert "five" in sentence
    assert "for example 0 2 * * *" in sentence
    assert "\n" not in sentence


def test_a_wrong_file_ends_with_one_sentence(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        config(**{CONFIG_FILE_VARIABLE: "/nowhere.yml"})
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith(f"{CONFIG_FILE_VARIABLE}: /nowhere.yml is not a file")


# In processes of their own


def test_the_tasks_are_those_of_the_design_and_the_schedule_names_them(tmp_path: Path) -> None:
    code = (
        "import json; from worker.celery import app; app.loader.import_default_modules();"
        "print(json.dumps([sorted(app.tasks), [e['task'] for e in app.conf.beat_schedule.values()],"
        "app.conf.task_default_queue, app.conf.task_always_eager]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=clean({}), cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    registered, scheduled, queue, eager = json.loads(done.stdout)
    assert {name for name in registered if not name.startswith("celery.")} == TASKS
    assert set(scheduled) <= TASKS
    assert (queue, eager) == ("license_expiry", False)


def test_report_needs_no_setting(tmp_path: Path) -> None:
    done = celery(tmp_path, "report")
    assert done.returncode == 0, done.stderr
    assert "license_expiry.run_nightly" in done.stdout


NO_BROKER = {**GOOD, "CELERY_BROKER_URL": "http://r"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("part", "settings", "named"),
    [
        pytest.param(
            "worker",
            {**GOOD, "LMS_URL": "", "UNLINK_AFTER_DAYS": "x"},
            {"LMS_URL", "UNLINK_AFTER_DAYS"},
            id="one missing, one wrong",
        ),
        pytest.param("worker", NO_BROKER, {"CELERY_BROKER_URL"}, id="no broker at all"),
        pytest.param("beat", NO_BROKER, {"CELERY_BROKER_URL"}, id="no broker at all, for beat"),
    ],
)
def test_a_wrong_setting_stops_it_before_it_starts(
    tmp_path: Path, part: str, settings: dict[str, str], named: set[str]
) -> None:
    arguments = ("--schedule", str(tmp_path / "schedule")) if part == "beat" else ("--pool", "solo")
    done = celery(tmp_path, part, *arguments, **settings)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    _, told, after = done.stderr.partition("These settings are wrong:\n")  # beat puts a log's prefix before it
    assert told
    assert "These settings are wrong:" not in after
    assert {line.split(":")[0].strip() for line in after.splitlines()} == named


def test_a_wrong_schedule_stops_beat_with_its_sentence(tmp_path: Path) -> None:
    settings = {**GOOD, "NIGHTLY_SCHEDULE": "61 * * * *"}
    done = celery(tmp_path, "beat", "--schedule", str(tmp_path / "schedule"), **settings)
    assert done.returncode == 2
    assert done.stderr.startswith("NIGHTLY_SCHEDULE: ")
    assert len(done.stderr.splitlines()) == 1


def test_beat_starts_when_nothing_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "celery", "-A", "worker", "beat", "--loglevel", "DEBUG"]
    command += ["--schedule", str(tmp_path / "schedule")]
    with subprocess.Popen(
        command, env=clean(GOOD), cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as beat:
        assert beat.stderr is not None
        told = []
        for line in beat.stderr:  # ends when it ticks, which is after the check of the settings, or dies
            told.append(line)
            if "beat: Waking up" in line:
                break
        else:
            pytest.fail("".join(told))
        assert beat.poll() is None
        beat.kill()
        beat.stderr.read()
