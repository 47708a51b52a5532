"""What is wrong is told in one clear sentence, the thing and the remedy; nothing is written and nothing is sent."""

import json
import re
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from kombu.exceptions import OperationalError
from sqlalchemy import Engine
from support.bad_input import (
    PASSWORD,
    REQUIRED,
    RUN,
    Bad,
    Standing,
    assert_refused,
    assert_told,
    cases,
)
from support.command_line import COMMAND, LIST, Use, license_expiry
from support.runs import Laid, rows

import tasks
from simulator.lms.server import Simulator
from simulator.processes import free_port
from worker.db.ledger_tables import Run

pytestmark = pytest.mark.timeout(60)  # what waits for ever is told soon

STRANGER = UUID("0000cccc-0000-4000-8000-00000000cccc")
TOMORROW = f"{datetime.now(UTC) + timedelta(days=1):%Y-%m-%dT%H:%M:%SZ}"


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own."""
    command = [str(COMMAND), *arguments]
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=90)


# Arguments


ARGUMENTS = cases(
    Bad("an enterprise that is no UUID", (*RUN, "--enterprise", "378d5bf0"), ("--enterprise", "378d5bf0", "UUID")),
    Bad("so too for status", ("status", "--enterprise", "acme"), ("--enterprise", "acme", "UUID")),
    Bad("a plan that is no UUID", (*RUN, "--plan", "gold"), ("--plan", "gold", "UUID")),
    Bad("a variable that is not set", (*RUN, "--enterprise", ""), ("--enterprise", "UUID")),
    Bad(
        "an enterprise that license-manager does not know",
        (*RUN, "--enterprise", str(STRANGER)),
        (str(STRANGER), "no customer agreement", "check the UUID"),
    ),
    Bad(
        "one of two enterprises is unknown: the other is not begun either",
        (*RUN, "--enterprise", "{enterprise}", "--enterprise", str(STRANGER)),
        (str(STRANGER), "no customer agreement", "check the UUID"),
    ),
    Bad(
        "a plan of another enterprise",
        (*RUN, "--enterprise", "{enterprise}", "--plan", "{other_plan}"),
        ("{other_plan}", "not a plan of enterprise {enterprise}", "check"),
    ),
    Bad(
        "one of two plans is another's: the right one is not begun either",
        (*RUN, "--enterprise", "{enterprise}", "--plan", "{plan}", "--plan", "{other_plan}"),
        ("{other_plan}", "not a plan of enterprise {enterprise}", "check"),
    ),
    Bad("an unknown plan", (*RUN, "--plan", str(STRANGER)), (str(STRANGER), "not a plan of any enterprise", "check")),
    Bad(
        "an enterprise where a plan is asked for",
        (*RUN, "--plan", "{enterprise}"),
        ("{enterprise}", "not a plan of any enterprise", "check"),
    ),
    Bad(
        "a window that begins in the future",
        (*RUN, "--expired-after", TOMORROW),
        ("expired.after", TOMORROW[:10], "future", "only expired plans"),
    ),
    Bad(
        "a window that ends in the future",
        (*RUN, "--expired-before", TOMORROW),
        ("expired.before", TOMORROW[:10], "future", "only expired plans"),
    ),
    Bad(
        "a window turned round",
        (*RUN, "--expired-after", "2026-02-01", "--expired-before", "2026-01-01"),
        ("^--expired-after is later than --expired-before: swap the two$",),
    ),
    Bad("a word for a date", (*RUN, "--expired-after", "yesterday"), ("expired.after", "yesterday", r"\d{{4}}-\d\d-")),
    Bad("a day that is none", (*RUN, "--expired-before", "2026-02-30"), ("expired.before", "2026-02-30", "date")),
    Bad(
        "a date as people write it",
        (*RUN, "--expired-before", "31.01.2026"),
        ("expired.before", r"31\.01\.2026", r"\d{{4}}-\d\d-"),
    ),
    Bad("a year alone is no number of seconds", (*RUN, "--expired-before", "2026"), ("expired.before", "date")),
    Bad(
        "force without a reason", (*RUN, "--plan", "{plan}", "--force"), ("--force needs a --reason", "give --reason$")
    ),
    Bad(
        "force with a blank reason", (*RUN, "--force", "--reason", "  "), ("--force needs a --reason", "give --reason$")
    ),
    Bad("a reason that does not fit", (*RUN, "--force", "--reason", "x" * 256), ("reason", "255")),
    Bad(
        "beside --json nothing is printed either", (*RUN, "--enterprise", str(STRANGER), "--json"), ("check the UUID",)
    ),
    Bad("so for a rehearsal", (*RUN, "--enterprise", str(STRANGER), "--dry-run"), ("check the UUID",)),
    Bad("an option that there is not", (*RUN, "--enterprize", "{enterprise}"), ("--enterprize", "--enterprise")),
    Bad("a command that there is not", ("dew",), ("dew",)),
    Bad("an argument that is none", (*RUN, "{enterprise}"), ("{enterprise}",)),
)


@ARGUMENTS
def test_a_wrong_argument_is_refused(bad: Bad, refused: Use, standing: Standing) -> None:
    laid, other = standing.laid, standing.other
    names: dict[str, object] = {"enterprise": laid.enterprise, "plan": laid.plan, "other_plan": other.plan}
    assert_refused(bad, license_expiry(*(each.format(**names) for each in bad.command)), names)


# An enterprise on the unlink list that license-manager does not know


def test_an_unknown_enterprise_on_the_list_is_a_failed_run_and_the_others_are_done(
    engine: Engine, set_up: Use, laid: Laid, other: Laid
) -> None:
    set_up(**{LIST: f"{laid.enterprise},{STRANGER}"})
    result = license_expiry(*RUN, "--json")
    assert result.exit_code == 1
    runs = {UUID(run["enterprise_customer_uuid"]): run for run in json.loads(result.stdout)["runs"]}
    assert {enterprise: run["phase"] for enterprise, run in runs.items()} == {
        laid.enterprise: "finished",
        other.enterprise: "finished",
        STRANGER: "failed",
    }
    assert_told(runs[STRANGER]["error"], str(STRANGER), "no customer agreement", f"remove it from {LIST}")
    [ended] = [run for run in rows(engine, Run) if run["enterprise_customer_uuid"] == STRANGER]
    assert (ended["live"], ended["error"]) == (None, runs[STRANGER]["error"])
    shown = license_expiry("status")
    assert shown.exit_code == 1
    assert runs[STRANGER]["error"] in shown.stdout


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_due_warns_of_an_unknown_enterprise_on_the_list(
    refused: Use, standing: Standing, options: tuple[str, ...]
) -> None:
    refused(**{LIST: f"{standing.laid.enterprise},{STRANGER}"})
    result = license_expiry("due", *options)
    assert result.exit_code == 0
    assert str(STRANGER) not in result.stdout
    assert_told(result.stderr, "Warning", str(STRANGER), "no customer agreement", f"remove it from {LIST}")


# Settings


def test_every_missing_setting_is_reported_at_once(refused: Use) -> None:
    refused(**dict.fromkeys(REQUIRED))
    result = license_expiry("run")
    assert (result.exit_code, result.stdout) == (2, "")
    for name in (*REQUIRED, "CELERY_BROKER_URL"):
        assert_told(result.stderr, rf"^ *{name}: is not set\.", "for example")
    assert len(result.stderr.splitlines()) == 1 + len(REQUIRED) + 1


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("DATABASE_URL", "init-db"),
        ("DATABASE_URL", "due"),
        ("BACKEND_SERVICE_EDX_OAUTH2_KEY", "run --here"),
        ("BACKEND_SERVICE_EDX_OAUTH2_SECRET", "run --here --dry-run"),
        ("DATABASE_URL", "serve"),
        ("CELERY_BROKER_URL", "run --no-wait"),
    ],
)
def test_a_missing_setting_is_reported_by_each_command(refused: Use, name: str, command: str) -> None:
    refused(**{name: None})
    result = license_expiry(*command.split())
    assert (result.exit_code, result.stdout) == (2, "")
    assert_told(result.stderr, f"{name}: is not set", "for example")
    assert len(result.stderr.splitlines()) == 2, "the others are set"


SETTING = cases(
    Bad("another database", RUN, ("DATABASE_URL", "mysql://", "postgresql://"), {"DATABASE_URL": "oracle://u@h/db"}),
    Bad(
        "a web address for the database",
        RUN,
        ("DATABASE_URL", "mysql://"),
        {"DATABASE_URL": f"https://user:{PASSWORD}@mysql/license_manager"},
    ),
    Bad(
        "a driver that is not brought",
        RUN,
        ("DATABASE_URL", "mysql://"),
        {"DATABASE_URL": f"mysql+mysqldb://user:{PASSWORD}@mysql/license_manager"},
    ),
    Bad(
        "a port that is none",
        RUN,
        ("DATABASE_URL", "%-escape"),
        {"DATABASE_URL": f"mysql://user:{PASSWORD}@mysql:port/license_manager"},
    ),
    Bad("no URL", RUN, ("DATABASE_URL", "URL", "for example"), {"DATABASE_URL": "license_manager"}),
    Bad("no scheme", RUN, ("LMS_URL", "https://", "for example"), {"LMS_URL": "courses.example.com"}),
    Bad("a wrong scheme", RUN, ("LMS_URL", "https://"), {"LMS_URL": "ftp://courses.example.com"}),
    Bad(
        "a token URL without a scheme",
        RUN,
        ("SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT", "https://"),
        {"SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT": "courses.example.com"},
    ),
    Bad(
        "a broker that is none",
        ("run", "--no-wait"),
        ("CELERY_BROKER_URL", "redis://", "amqp://"),
        {"CELERY_BROKER_URL": f"https://user:{PASSWORD}@redis"},
    ),
    Bad("a list that is not of UUIDs", RUN, (LIST, "acme", "UUID"), {LIST: f"{STRANGER},acme"}),
    Bad("a word for a number", RUN, ("UNLINK_AFTER_DAYS", "integer"), {"UNLINK_AFTER_DAYS": "ninety"}),
    Bad("days that are negative", RUN, ("UNLINK_AFTER_DAYS", "0"), {"UNLINK_AFTER_DAYS": "-1"}),
    Bad("a lease shorter than a call", RUN, ("LEASE_SECONDS", "more than", "TIMEOUT"), {"LEASE_SECONDS": "60"}),
    Bad(
        "a secret's file that is not there",
        RUN,
        ("BACKEND_SERVICE_EDX_OAUTH2_SECRET", "/run/nowhere", "cannot be read"),
        {"BACKEND_SERVICE_EDX_OAUTH2_SECRET_FILE": "/run/nowhere", "BACKEND_SERVICE_EDX_OAUTH2_SECRET": ""},
    ),
)


@SETTING
def test_a_wrong_setting_is_refused(bad: Bad, refused: Use) -> None:
    refused(**bad.settings)
    assert_refused(bad, license_expiry(*bad.command), {})


def test_all_wrong_settings_are_reported_at_once(refused: Use) -> None:
    refused(DATABASE_URL="oracle://", LMS_URL="courses", UNLINK_AFTER_DAYS="-1", BACKEND_SERVICE_EDX_OAUTH2_KEY=None)
    result = license_expiry(*RUN)
    assert (result.exit_code, result.stdout) == (2, "")
    for name in ("DATABASE_URL", "LMS_URL", "UNLINK_AFTER_DAYS", "BACKEND_SERVICE_EDX_OAUTH2_KEY"):
        assert_told(result.stderr, f"^ *{name}: ")


NOT_YAML = [
    ("a list", b"- DATABASE_URL\n- LMS_URL\n"),
    ("a word", b"settings\n"),
    ("a bracket that is not closed", b"LMS_URL: [\n"),
    ("a tab", b"LMS_URL:\n\t- x\n"),
    ("an .env file", b"LMS_URL=https://courses.example.com\nUNLINK_AFTER_DAYS=90\n"),
    ("no text at all", b"\xff\xfe\x00\x80"),
]


@pytest.mark.parametrize("yaml", [pytest.param(row[1], id=row[0]) for row in NOT_YAML])
def test_a_yaml_file_that_is_none_is_refused(refused: Use, tmp_path: Path, yaml: bytes) -> None:
    path = tmp_path / "license_expiry.yml"
    path.write_bytes(yaml)
    refused(LICENSE_EXPIRY_CFG=path)
    result = license_expiry(*RUN)
    assert (result.exit_code, result.stdout) == (2, "")
    assert_told(result.stderr, "LICENSE_EXPIRY_CFG", re.escape(str(path)), "YAML")
    assert "dictionary update sequence" not in result.stderr, "that tells only whoever wrote the parser"


@pytest.mark.parametrize("name", ["", "not_there.yml"], ids=["a folder", "no file"])
def test_a_yaml_file_that_is_not_there_is_refused(refused: Use, tmp_path: Path, name: str) -> None:
    refused(LICENSE_EXPIRY_CFG=tmp_path / name)
    result = license_expiry(*RUN)
    assert (result.exit_code, result.stdout) == (2, "")
    assert_told(result.stderr, "LICENSE_EXPIRY_CFG", re.escape(str(tmp_path)), "is not a file", "existing YAML file")


# The broker: in processes, because Celery reads its settings once in each


BROKER = cases(
    Bad(
        "it is down",
        ("run",),
        ("127.0.0.1:{nowhere}", "CELERY_BROKER_URL", "--here"),
        {"CELERY_BROKER_URL": f"redis://:{PASSWORD}@127.0.0.1:{{nowhere}}/5"},
    ),
    Bad(
        "it is down, and nobody waits",
        ("run", "--no-wait", "--json"),
        ("127.0.0.1:{nowhere}", "CELERY_BROKER_URL", "--here"),
        {"CELERY_BROKER_URL": f"amqp://user:{PASSWORD}@127.0.0.1:{{nowhere}}//"},
    ),
    Bad(
        "its password has a slash that is not quoted",
        ("run", "--no-wait"),
        ("CELERY_BROKER_URL", "for example|quote|%2F"),
        {"CELERY_BROKER_URL": f"redis://:{PASSWORD}/x@127.0.0.1:{{nowhere}}/5"},
    ),
)


@BROKER
def test_a_broker_that_cannot_be_used_is_reported_and_no_run_is_opened(bad: Bad, refused: Use) -> None:
    nowhere = free_port()
    refused(**{name: value.format(nowhere=nowhere) for name, value in bad.settings.items()})
    result = process(*bad.command)
    assert_told(result.stderr, *(word.format(nowhere=nowhere) for word in bad.words))
    assert (result.returncode, result.stdout) == (2, "")


def test_a_broker_that_becomes_unreachable_while_runs_are_published_is_reported(
    engine: Engine, lms: Simulator, set_up: Use, laid: Laid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one run that is open by then is found by `reconcile`, or by the next `run --here`."""

    def publish(*_: object) -> None:
        raise OperationalError("Error 111 connecting to 127.0.0.1:6379. Connection refused.")

    set_up(CELERY_BROKER_URL="memory://")
    monkeypatch.setattr(tasks, "publish", publish)
    result = license_expiry("run", "--no-wait")
    assert result.exit_code in (1, 2)
    assert_told(
        result.output, "the broker memory://", "Connection refused", "check CELERY_BROKER_URL", "run the command again"
    )
    [run] = rows(engine, Run)
    assert (run["phase"], lms.calls()) == ("queued", [])
