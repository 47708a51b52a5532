"""The doctor on real services, as a process: Celery reads its settings once in each."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import astuple, replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import pytest
import redis
from sqlalchemy import Engine, inspect, literal, select, text
from support.database_account import Account
from support.runs import ON_EACH, ON_SERVERS, ON_SQLITE, rows
from support.services import RABBITMQ_URL, missing

from simulator.data.rows import Data
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.processes import Processes, free_port, listens
from worker.cli import doctor
from worker.cli.checks import database as database_check, findings as findings_module
from worker.cli.checks.findings import explained
from worker.cli.checks.rights import Right
from worker.db.ledger_tables import Downgrade
from worker.db.sql import Fingerprint
from worker.db.transactions import Database
from worker.errors import Unavailable
from worker.ledger import migrations
from worker.ledger.identity import set_lms
from worker.lms.client import NOBODYS_EMAIL, NOBODYS_LICENSE
from worker.settings import DatabaseSettings, Settings
from worker.settings.sources import CONFIG_FILE_VARIABLE

COMMAND = Path(sys.executable).with_name("license-expiry")
PASSWORD = "hunter2secret"
UNLINKING = "CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"

pytestmark = pytest.mark.timeout(60)


def examine(settings: dict[str, str]) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """The exit status and the findings by subject, with these settings and no others."""
    done = process(settings, "--json")
    assert done.stderr == ""
    assert PASSWORD not in done.stdout
    found: dict[str, list[dict[str, Any]]] = {}
    for each in json.loads(done.stdout)["findings"]:
        assert list(each) == ["subject", "status", "what", "remedy"]
        assert bool(each["remedy"]) == (each["status"] != "ok")
        found.setdefault(each["subject"], []).append(each)
    return done.returncode, found


def process(settings: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    others = {*Settings.model_fields, CONFIG_FILE_VARIABLE, "COLUMNS"}
    environment = {name: value for name, value in os.environ.items() if name not in others} | settings
    command = [str(COMMAND), "doctor", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=50, env=environment
    )


def told(findings: list[dict[str, Any]], status: str) -> list[tuple[str, str]]:
    return [(each["what"], each["remedy"]) for each in findings if each["status"] == status]


@pytest.fixture(scope="module")
def redis_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """The ports of a Redis as it should be, and of one that evicts keys and forgets them when it ends.

    At the first, the account `few` may not look at what the server is like.
    """
    program = shutil.which("redis-server")
    if program is None:
        missing("redis-server", "install redis")
    ports = free_port(), free_port()
    kept = ["--appendonly", "yes"]
    lost = ["--appendonly", "no", "--maxmemory-policy", "allkeys-lru"]
    with Processes(tmp_path_factory.mktemp("redis")) as processes:
        for port, options in zip(ports, (kept, lost), strict=True):
            folder = tmp_path_factory.mktemp(str(port))
            command = [program, "--port", str(port), "--dir", str(folder), "--save", "", *options]
            processes.start(f"redis-{port}", command, lambda port=port: listens(port))  # type: ignore[misc]
        with redis.Redis(port=ports[0]) as client:
            client.acl_setuser("few", enabled=True, passwords=[f"+{PASSWORD}"], keys="*", categories=["+@all"])
            client.execute_command("ACL", "SETUSER", "few", "allchannels", "-info")
        yield ports


@pytest.fixture
def settings(database_url: str, lms: Simulator, redis_servers: tuple[int, int]) -> dict[str, str]:
    """As they should be."""
    return {
        "DATABASE_URL": database_url,
        "LMS_URL": lms.url,
        "BACKEND_SERVICE_EDX_OAUTH2_KEY": lms.client_id,
        "BACKEND_SERVICE_EDX_OAUTH2_SECRET": lms.client_secret,
        "CELERY_BROKER_URL": f"redis://127.0.0.1:{redis_servers[0]}/5",
    }


@pytest.mark.parametrize("engine_kind", ["postgresql", "mariadb", "mysql", "mysql-8"], indirect=True)
def test_where_all_is_well_each_thing_is_said_to_be(
    engine: Engine, engine_kind: str, account: Account, lms: Simulator, settings: dict[str, str]
) -> None:
    """One of them with a RabbitMQ."""
    data = Data(engine)
    agreement = data.agreement(license_duration_before_purge=timedelta(days=91))
    data.flush()
    settings |= {"DATABASE_URL": account.url, UNLINKING: str(agreement.enterprise_customer_uuid)}
    lms.seed()
    if engine_kind == "mariadb":
        settings["CELERY_BROKER_URL"] = RABBITMQ_URL
        if not listens(5672):
            missing("rabbitmq", "start rabbitmq-server")
    status, found = examine(settings)
    assert status == 0
    assert list(found) == ["settings", "database", "clock", "rights", "ledger", "unlinking", "broker", "LMS"]
    assert {each["status"] for findings in found.values() for each in findings} == {"ok"}
    name, version = {
        "postgresql": ("PostgreSQL", "SHOW server_version"),
        "mariadb": ("MariaDB", "SELECT version()"),
        "mysql": ("MySQL", "SELECT version()"),
        "mysql-8": ("MySQL", "SELECT version()"),
    }[engine_kind]
    with engine.connect() as connection:
        begin = str(connection.execute(text(version)).scalar_one()).split("-")[0].split(" ")[0]
    assert found["settings"][1]["what"].endswith("in order: 120 < 300 < 3000 < 4200 s")
    assert [each["what"].rpartition(" ")[0].split()[-1] for each in found["clock"]] == ["the", "the"]
    assert found["database"][0]["what"].startswith(f"{name} {begin}")
    assert len(found["broker"]) == (1 if engine_kind == "mariadb" else 3)
    assert "guest:guest" not in found["broker"][0]["what"]
    assert [entry.kind for entry in lms.journal.entries] == ["token", "downgrade", "unlink", "learners"]
    [downgrade], [unlink] = lms.calls("downgrade"), lms.calls("unlink")
    assert (downgrade.licenses, unlink.emails) == ([str(NOBODYS_LICENSE)], [NOBODYS_EMAIL])


@ON_SQLITE
def test_wrong_settings_are_reported_all_at_once_and_what_can_be_looked_at_is(
    engine: Engine, settings: dict[str, str]
) -> None:
    nowhere = free_port()
    settings |= {
        "DATABASE_URL": f"mysql://user:{PASSWORD}@127.0.0.1:{nowhere}/license_manager",
        "CELERY_BROKER_URL": RABBITMQ_URL.replace(":guest@", f":{PASSWORD}@"),
        "LMS_URL": "courses.example.com",
        "LMS_PARALLEL_REQUESTS": "0",
    }
    del settings["BACKEND_SERVICE_EDX_OAUTH2_KEY"]
    status, found = examine(settings)
    assert status == 1
    assert list(found) == ["settings", "database", "broker"], "without its settings there is no asking the LMS"
    wrong = dict(told(found["settings"], "wrong"))
    assert {what.partition(":")[0] for what in wrong} == {
        "LMS_URL",
        "LMS_PARALLEL_REQUESTS",
        "BACKEND_SERVICE_EDX_OAUTH2_KEY",
    }
    assert wrong["BACKEND_SERVICE_EDX_OAUTH2_KEY: is not set"].startswith("Set it in the environment, ")
    [(database, remedy)] = told(found["database"], "wrong")
    assert f"127.0.0.1:{nowhere}/license_manager cannot be used" in database
    assert remedy == "check DATABASE_URL, the account's rights and the server"
    [(broker, remedy)] = told(found["broker"], "wrong")
    assert re.search(r"127\.0\.0\.1:5672// cannot be used \(.*(REFUSED|refused)", broker)
    assert remedy.startswith("correct user and password in CELERY_BROKER_URL")


@ON_SQLITE
@pytest.mark.parametrize("name", ["CELERY_BROKER_URL", "CELERY_RESULT_BACKEND"])
def test_tls_without_a_check_of_the_certificate_is_answered_with_the_remedy_that_keeps_tls(
    name: str, engine: Engine, settings: dict[str, str]
) -> None:
    status, found = examine(settings | {name: "rediss://127.0.0.1:6379/5"})
    assert status == 1
    [(what, remedy)] = told(found["settings"], "wrong")
    assert what == f"{name}: must end with ?ssl_cert_reqs=required: without it no certificate is checked"
    assert remedy.startswith("Keep TLS: rediss://:password@redis:6379/5?ssl_cert_reqs=required. ")
    assert "redis://" not in remedy.replace("rediss://", "")


@pytest.mark.long
@ON_SQLITE
def test_what_lies_in_the_way_of_a_night_is_named_with_its_remedy_in_80_columns(
    engine: Engine, settings: dict[str, str], redis_servers: tuple[int, int]
) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE subscriptions_license RENAME COLUMN renewed_to_id TO renewed"))
        connection.execute(text("UPDATE license_expiry_alembic_version SET version_num = '0001'"))
    settings |= {
        "BACKEND_SERVICE_EDX_OAUTH2_SECRET": PASSWORD,
        "CELERY_BROKER_URL": f"redis://127.0.0.1:{redis_servers[1]}/5",
    }
    done = process(settings)
    assert (done.returncode, done.stderr) == (1, "")
    assert PASSWORD not in done.stdout
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [tuple(line.split()[:2]) for line in lines if not line.startswith(" ")] == [
        *[("ok", "settings")] * 4,  # the last two say where they are from
        ("ok", "database"),
        ("ok", "clock"),
        ("wrong", "database"),
        ("wrong", "ledger"),
        ("ok", "unlinking"),
        ("ok", "broker"),
        ("wrong", "broker"),
        ("warning", "broker"),
        ("ok", "LMS"),
        ("wrong", "LMS"),
    ]
    said = " ".join(done.stdout.split())
    for sentence in (
        "table subscriptions_license lacks column renewed_to_id check that DATABASE_URL is license-manager's database",
        f"its tables are at 0001, and this release has {migrations.revisions()[0]} run license-expiry init-db",
        "(allkeys-lru), and tasks are lost with them set maxmemory-policy to noeviction in redis.conf",
        "set appendonly to yes in redis.conf",
        "the LMS gave no token: it answered 401 check BACKEND_SERVICE_EDX_OAUTH2_KEY",
    ):
        assert sentence in said


@pytest.mark.long
@ON_SERVERS
def test_all_faults_at_once_are_all_named_each_with_its_remedy(
    engine: Engine, account: Account, lms: Simulator, settings: dict[str, str], redis_servers: tuple[int, int]
) -> None:
    data = Data(engine)
    trapped, stranger = data.agreement().enterprise_customer_uuid, uuid4()
    data.flush()
    history = "subscriptions_historicalsubscriptionplan"
    with engine.begin() as connection:
        for change in (
            "ALTER TABLE subscriptions_license RENAME COLUMN renewed_to_id TO renewed",
            f"ALTER TABLE {history} ADD COLUMN colour varchar(9) NOT NULL",
            "ALTER TABLE license_expiry_run RENAME COLUMN fence TO old_fence",
        ):
            connection.execute(text(change))
    account.revoke(Right("INSERT", "subscriptions_licenseevent"))
    spare = "GRANT DELETE ON {}subscriptions_license TO {}"
    account.execute(spare.format("" if account.postgresql else "license_manager.", account.name))
    status, found = examine(
        settings
        | {
            "DATABASE_URL": account.url,
            UNLINKING: f"{trapped},{stranger}",
            "CELERY_BROKER_URL": f"redis://127.0.0.1:{redis_servers[1]}/5",
            "BACKEND_SERVICE_EDX_OAUTH2_SECRET": PASSWORD,
            "LEASE_SECONDS": "100",
        }
    )
    assert status == 1
    named = {
        "settings": ["LEASE_SECONDS: is 100, but must be more than"],
        "rights": [f"{account.name} lacks INSERT on subscriptions_licenseevent", "DELETE on"],
        "database": ["colour", "table subscriptions_license lacks column renewed_to_id"],
        "ledger": ["table license_expiry_run lacks column fence"],
        "unlinking": [str(stranger), str(trapped)],
        "broker": ["allkeys-lru", "append-only"],
    }
    for subject, faults in named.items():
        told_wrong = [(each["what"], each["remedy"]) for each in found[subject] if each["status"] != "ok"]
        assert len(told_wrong) == len(faults)
        for (what, remedy), fault in zip(told_wrong, faults, strict=True):
            assert fault in what
            assert remedy
    assert "LMS" not in found, "without all of its settings there is no asking it"


@pytest.mark.long
@ON_SQLITE
def test_what_another_release_or_another_account_hides_is_reported(
    engine: Engine, settings: dict[str, str], redis_servers: tuple[int, int]
) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE license_expiry_alembic_version SET version_num = '9999'"))
    settings |= {
        "CELERY_BROKER_URL": f"redis://few:{PASSWORD}@127.0.0.1:{redis_servers[0]}/5",
        "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT": f"http://127.0.0.1:{free_port()}",
    }
    status, found = examine(settings)
    assert status == 1
    [(ledger, remedy)] = told(found["ledger"], "wrong")
    assert ("9999" in ledger, remedy) == (True, "install the release that made it")
    [(broker, remedy)] = told(found["broker"], "warning")
    assert ("are not checked" in broker, "INFO" in remedy) == (True, True)
    [(lms, remedy)] = told(found["LMS"], "wrong")
    assert "the connection to the LMS at 127.0.0.1:" in lms
    assert remedy.startswith("check SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT")


@ON_SQLITE
def test_a_schedule_that_names_no_moment_is_a_wrong_setting_and_reported_once(
    engine: Engine, settings: dict[str, str]
) -> None:
    status, found = examine(settings | {"NIGHTLY_SCHEDULE": "0 26 * * *"})
    assert status == 1
    [(schedule, remedy)] = told(found["settings"], "wrong")
    assert (schedule.partition(":")[0], "five cron fields" in remedy) == ("NIGHTLY_SCHEDULE", True)


# The LMS's calls


def of_calls(found: dict[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    return [(each["status"], each["what"]) for each in found["LMS"]][2:]


FIREWALL = "<html>Blocked</html>"


@pytest.mark.long
@ON_SQLITE
@pytest.mark.parametrize(
    ("staff", "faults", "statuses", "words"),
    [
        pytest.param(
            True,
            [Fault("downgrade", status=403), Fault("unlink", status=403)],
            ["wrong", "wrong", "ok"],
            ["answered 403", "enterprise operator role"],
            id="the role is missing",
        ),
        pytest.param(False, [], ["ok", "wrong", "ok"], ["answered 404", "is staff"], id="the role without staff"),
        pytest.param(
            True,
            [Fault("downgrade", status=403, body=FIREWALL)],
            ["wrong", "ok", "ok"],
            ["text/html", "check LMS_URL"],
            id="a firewall in front of the LMS",
        ),
        pytest.param(
            True,
            [Fault("unlink", status=200, body="down for maintenance")],
            ["ok", "wrong", "ok"],
            ["text/plain", "check LMS_URL"],
            id="a maintenance page",
        ),
        pytest.param(
            True,
            [Fault("learners", status=403)],
            ["ok", "ok", "warning"],
            ["addresses are not checked", "is staff"],
            id="the question alone is refused",
        ),
        pytest.param(
            True,
            [Fault("downgrade", delay=1), Fault("unlink", delay=1), Fault("learners", delay=1)],
            ["ok", "ok", "ok"],
            [],
            id="an LMS that is slow",
        ),
    ],
)
def test_a_call_that_the_lms_will_not_take_is_known_before_the_night(
    engine: Engine,
    lms: Simulator,
    settings: dict[str, str],
    staff: bool,
    faults: list[Fault],
    statuses: list[str],
    words: list[str],
) -> None:
    data = Data(engine)
    known = data.agreement(license_duration_before_purge=timedelta(days=91)).enterprise_customer_uuid
    data.flush()
    lms.seed()
    lms.staff(staff)
    lms.faults(*(replace(fault, met=0, fired=0) for fault in faults))
    status, found = examine(settings | {UNLINKING: str(known)})
    assert [each for each, _ in of_calls(found)] == statuses
    assert status == (1 if "wrong" in statuses else 0)
    said = " ".join(each["what"] + " " + each["remedy"] for each in found["LMS"][2:])
    assert [word for word in words if word not in said] == []


@pytest.mark.long
@ON_SQLITE
@pytest.mark.parametrize(
    ("known", "status", "what"),
    [
        (None, "ok", "the database belongs to no LMS yet"),
        ("", "ok", "the database belongs to http"),
        ("https://courses.example.com", "wrong", "the database belongs to the LMS https://courses.example.com, but"),
    ],
)
def test_the_lms_that_the_database_belongs_to_is_reported_and_another_is_sent_nothing(
    known: str | None, status: str, what: str, engine: Engine, lms: Simulator, settings: dict[str, str]
) -> None:
    if known is not None:
        set_lms(Database(engine), known or lms.url)
    _, found = examine(settings)
    first = found["LMS"][0]
    assert (first["status"], first["what"][: len(what)]) == (status, what)
    assert ("init-db --lms-url" in first["remedy"]) == (status == "wrong")
    assert (lms.journal.entries == []) == (status == "wrong")


@pytest.mark.long
@ON_SQLITE
def test_an_unlink_call_that_has_no_enterprise_is_not_tried_and_that_is_said(
    engine: Engine, lms: Simulator, settings: dict[str, str]
) -> None:
    unknown = f"{uuid4()}"
    for listed, expected in (("", "ok"), (unknown, "warning")):
        lms.journal.clear()
        _, found = examine(settings | {UNLINKING: listed})
        [_, (status, what)] = of_calls(found)
        assert status == expected
        assert "the unlink call is not tried" in what
        assert [entry.kind for entry in lms.calls()] == ["token", "downgrade"]


# The database alone, in this process


def findings(settings: dict[str, str]) -> list[tuple[str, str, str, str]]:
    given = {name: value for name, value in settings.items() if name in DatabaseSettings.model_fields}
    found = database_check.check_database(DatabaseSettings.model_validate(given))
    return [astuple(each) for each in explained("database", found)]


@pytest.mark.long
@pytest.mark.parametrize("engine_kind", ["mariadb", "mysql"], indirect=True)
def test_a_hash_that_a_servers_settings_take_away_fails_each_question_and_is_reported(
    engine: Engine, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MD5() was under FIPS. A NULL would match nobody, and a protected learner would be unlinked."""

    class Nothing(Fingerprint):
        mysql = Fingerprint.mysql.replace("256", "1")

    monkeypatch.setattr(database_check, "Fingerprint", Nothing)
    told = [what for _, status, what, _ in findings(settings) if status == "wrong"]
    assert ["returns wrong values" in what for what in told] == [True]
    with pytest.raises(Unavailable, match="OperationalError 1690"):
        Database(engine).transact(lambda session: session.scalar(select(Nothing(literal("ann@example.org")))))


@ON_SQLITE
def test_a_ledger_that_is_not_made_or_lacks_a_column_is_reported(engine: Engine, settings: dict[str, str]) -> None:
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE license_expiry_run RENAME COLUMN fence TO fence_of_old"))
    remedy = "run license-expiry init-db"
    wrong = ("ledger", "wrong", "table license_expiry_run lacks column fence", remedy)
    assert [each for each in findings(settings) if each[0] == "ledger"] == [wrong]
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE license_expiry_alembic_version"))
    wrong = ("ledger", "wrong", "its tables do not exist", remedy)
    assert [each for each in findings(settings) if each[0] == "ledger"] == [wrong]


@ON_EACH
def test_who_may_lose_the_e_mail_before_being_unlinked_is_one_finding_with_a_count(
    engine: Engine, settings: dict[str, str]
) -> None:
    data = Data(engine)
    kept = {days: data.agreement(license_duration_before_purge=timedelta(days=days)) for days in (30, 60, 89, 90, 91)}
    data.agreement(license_duration_before_purge=timedelta(days=1))  # not on the list
    data.flush()
    nobody = UUID(int=7)
    listed = ",".join(str(each) for each in [*(each.enterprise_customer_uuid for each in kept.values()), nobody])
    wrong = [each for each in findings(settings | {UNLINKING: listed}) if each[:2] == ("unlinking", "wrong")]
    assert len(wrong) == 2
    trapped = sorted((str(kept[days].enterprise_customer_uuid), days) for days in (30, 60, 89, 90))
    _, _, what, remedy = wrong[1]
    assert what.startswith("4 of the 6 enterprises on the unlink list may have learners who are never unlinked: ")
    assert what.endswith(f"{', '.join(f'{uuid} ({days})' for uuid, days in trapped[:3])} and 1 more")
    # To unlink sooner would take the access from learners before their time.
    assert remedy == "set license_duration_before_purge of their customer agreements to more than 90 days"
    assert str(nobody) in wrong[0][2]
    assert wrong[0][3] == f"check the UUID, or remove it from {UNLINKING}"


@pytest.mark.long
@pytest.mark.parametrize(
    ("engine_kind", "other"),
    [
        ("mariadb", "char(32) COLLATE utf8mb4_bin"),
        ("mariadb", "uuid"),
        ("mariadb-uuid", "char(32)"),
        ("mysql", "char(32) COLLATE utf8mb4_bin"),
    ],
    indirect=["engine_kind"],
)
def test_a_ledger_whose_uuids_are_not_as_license_managers_is_reported_and_init_db_mends_it(
    engine: Engine, settings: dict[str, str], other: str
) -> None:
    table, columns = "license_expiry_downgrade", ("license_uuid", "run_id", "enterprise_customer_uuid")
    license, run = uuid4(), uuid4()
    form = str if other == "uuid" else (lambda uuid: uuid.hex)
    with engine.begin() as connection:
        for column in columns:
            connection.execute(text(f"ALTER TABLE {table} MODIFY {column} {other} NOT NULL"))
        row = {"license": form(license), "run": form(run)}
        connection.execute(text(f"INSERT INTO {table} VALUES (:license, :run, :run, now())"), row)
    [ledger] = [each for each in findings(settings) if each[0] == "ledger"]
    assert ledger[1:] == (
        "wrong",
        "its UUIDs are of another type or collation than subscriptions_license.uuid: "
        + ", ".join(f"{table}.{column}" for column in columns),
        "stop the workers and run license-expiry init-db",
    )
    migrations.upgrade(engine)
    assert [each[1] for each in findings(settings) if each[0] == "ledger"] == ["ok"]
    [kept] = rows(engine, Downgrade)
    assert (kept["license_uuid"], kept["run_id"]) == (license, run)
    assert not any(each["nullable"] for each in inspect(engine).get_columns(table))


@ON_SQLITE
@pytest.mark.parametrize(("seconds", "status"), [(20, "ok"), (-20, "ok"), (45, "warning"), (-45, "warning")])
def test_a_clock_that_is_far_from_the_databases_is_a_warning(
    engine: Engine, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, seconds: int, status: str
) -> None:
    class Skewed(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Self:
            return super().now(tz) + timedelta(seconds=seconds)

    monkeypatch.setattr(findings_module, "datetime", Skewed)
    lms = [astuple(each) for each in doctor._lms(Settings.model_validate(settings))]
    for whose, found in (("database", findings(settings)), ("LMS", lms)):
        [(_, each, what, _)] = [each for each in found if each[0] == "clock"]
        assert each == status
        said = re.search(rf"([0-9.]+) s {'ahead of' if seconds > 0 else 'behind'} the {whose}'s", what)
        assert said
        assert float(said[1]) == pytest.approx(abs(seconds), abs=1)


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_a_driver_that_is_not_installed_is_reported(
    engine: Engine, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    [(subject, status, what, remedy)] = findings(settings)
    assert (subject, status) == ("database", "wrong")
    assert "psycopg is not installed" in what
    assert remedy == "in the release's folder, run: pip install '.[postgresql]'"
