"""`make run`: it stops all that it starts, and reaches no real service, whatever the environment says."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Thread

import pytest
from sqlalchemy import Engine, func, inspect, select, text
from support.eventually import eventually
from support.services import new_database

from simulator.data.mark import MARK
from simulator.data.rows import Data
from simulator.data.schema import create_tables, table
from simulator.data.showcase import CASES, bulk
from worker.db.engine import make_engine
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
DEMO = [sys.executable, "-m", "simulator.demo"]
ELSEWHERE = {
    "DATABASE_URL": "postgresql://real:secret@127.0.0.1:PORT/license_manager",
    "CELERY_BROKER_URL": "redis://127.0.0.1:PORT/5",
    "CELERY_RESULT_BACKEND": "redis://127.0.0.1:PORT/6",
    "CELERY_BROKER_READ_URL": "redis://127.0.0.1:PORT/5",
    "CELERY_BROKER_WRITE_URL": "redis://127.0.0.1:PORT/5",
    "LMS_URL": "http://127.0.0.1:PORT",
    "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT": "http://127.0.0.1:PORT",
    "BACKEND_SERVICE_EDX_OAUTH2_KEY": "real-key",
    "BACKEND_SERVICE_EDX_OAUTH2_SECRET": "real-secret",
    "BACKEND_SERVICE_EDX_OAUTH2_SECRET_FILE": "/real/secret",
    "FLOWER_BASIC_AUTH": "real:real",
    "FLOWER_URL": "http://127.0.0.1:PORT",
    "SERVE_URL": "http://127.0.0.1:PORT",
    "FLOWER_BROKER_API": "http://127.0.0.1:PORT/api/",
    "SEGMENT_KEY": "real-key",
    "CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED": "",
    "UNLINK_AFTER_DAYS": "36500",
    "LICENSE_EXPIRATION_BATCH_SIZE": "wrong",
    "PGHOST": "127.0.0.1",
    "PGPORT": "PORT",
    **dict.fromkeys(("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy"), "http://127.0.0.1:PORT"),
}


@pytest.fixture
def elsewhere() -> Iterator[int]:
    """The port of a listener that stands for all real services. No test may connect to it."""
    called = []

    def listen() -> None:
        with suppress(OSError):
            while True:
                called.append(place.accept()[1])

    with socket.create_server(("127.0.0.1", 0)) as place:
        Thread(target=listen, daemon=True).start()
        yield place.getsockname()[1]
        place.shutdown(socket.SHUT_RDWR)
    assert called == []


@pytest.fixture
def real(tmp_path: Path, elsewhere: int) -> dict[str, str]:
    """An environment with all settings of a real installation; the processes of the demo are known by its TMPDIR."""
    assert {name for name in Settings.model_fields if name.endswith(("_URL", "_URL_ROOT"))} <= {*ELSEWHERE}
    settings = {name: value.replace("PORT", str(elsewhere)) for name, value in ELSEWHERE.items()}
    config, folder = tmp_path / "real.yaml", tmp_path / "tmp"
    config.write_text("".join(f"{name}: '{value}'\n" for name, value in settings.items()))
    folder.mkdir()
    return {**os.environ, **settings, "LICENSE_EXPIRY_CFG": str(config), "TMPDIR": str(folder)}


def left_behind(mark: Path) -> list[str]:
    """The commands of this test's demo and of the processes it started."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={mark}/tmp\0".encode() in (process / "environ").read_bytes():
                left.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return left


def test_a_first_night_does_everything_and_a_second_has_nothing_due(tmp_path: Path, real: dict[str, str]) -> None:
    nights = [
        subprocess.run([*DEMO, "--once"], cwd=tmp_path, env=real, capture_output=True, text=True, timeout=120)
        for _ in range(2)
    ]
    assert [night.returncode for night in nights] == [0, 0], nights[0].stdout + nights[0].stderr
    first, second = (night.stdout for night in nights)
    for case in CASES:  # all that are announced are shown
        assert case.name in first
    assert f"data of {len(CASES)} enterprises" in first
    for shown in ("Juniper Thousand", "1000", "Katsura Large", "450", "Held: license", "http_400"):
        assert shown in first
    assert "Nothing is due" in second
    assert left_behind(tmp_path) == []


@pytest.mark.long
def test_it_stays_until_ctrl_c_and_leaves_nothing_behind(tmp_path: Path, real: dict[str, str]) -> None:
    with (tmp_path / "out").open("w+") as out:
        demo = subprocess.Popen(DEMO, cwd=tmp_path, env=real, stdout=out, stderr=out, start_new_session=True)
        eventually(lambda: "async-apply/license_expiry.run_enterprise" in (tmp_path / "out").read_text(), seconds=120)
        eventually(lambda: "Ctrl-C stops everything" in (tmp_path / "out").read_text())
        assert len(left_behind(tmp_path)) >= 6, "broker, LMS, Flower, worker, beat and the demo itself"
        second = run_once(tmp_path, real)
        assert (second.returncode, f"kill {demo.pid}" in second.stderr) == (2, True)
        plain = {name: value for name, value in real.items() if name not in {*ELSEWHERE, "LICENSE_EXPIRY_CFG"}}
        sourced = f"set -a; . .demo/env; set +a; {Path(sys.executable).parent}/license-expiry status --json"
        status = subprocess.run(["sh", "-c", sourced], cwd=tmp_path, env=plain, capture_output=True, check=False)
        assert len(json.loads(status.stdout)["runs"]) == 13
        demo.send_signal(signal.SIGINT)
        time.sleep(0.5)
        for again in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            demo.send_signal(again)
        assert demo.wait(200) == 130
    assert "Stopping ..." in (tmp_path / "out").read_text()
    eventually(lambda: left_behind(tmp_path) == [], what="every process ended")


@pytest.mark.long
@pytest.mark.parametrize("said", ["Making the data", "Starting worker", "The night begins"])
def test_two_signals_while_it_starts_leave_nothing_behind(said: str, tmp_path: Path, real: dict[str, str]) -> None:
    with (tmp_path / "out").open("w+") as out:
        demo = subprocess.Popen(DEMO, cwd=tmp_path, env=real, stdout=out, stderr=out, start_new_session=True)
        eventually(lambda: said in (tmp_path / "out").read_text(), seconds=120)
        time.sleep(random.random() * 3)
        for _ in range(2):
            demo.send_signal(signal.SIGINT)
            time.sleep(random.random())
        assert demo.wait(200) in (130, -signal.SIGINT)  # the second may meet Python's own end
    eventually(lambda: left_behind(tmp_path) == [], what="every process ended")


def test_a_port_that_is_taken_is_refused_with_its_option(tmp_path: Path, real: dict[str, str], elsewhere: int) -> None:
    demo = run_once(tmp_path, real, f"--flower-port={elsewhere}")
    assert demo.returncode == 2
    assert f"Port {elsewhere} is taken. Give another one: --flower-port, or FLOWER_PORT" in demo.stderr


def run_once(folder: Path, env: dict[str, str], *options: str) -> "subprocess.CompletedProcess[str]":
    command = [*DEMO, "--once", *options]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=400, check=False)


def foreign(engine: Engine) -> None:
    """What license-manager has in a database."""
    create_tables(engine)
    bulk(Data(engine, now=datetime.now(UTC)), 1, 4)


def foreign_and_marked(engine: Engine) -> None:
    """The demo made this database, and then somebody used it for a license-manager."""
    foreign(engine)
    MARK.create(engine)


def an_empty_license_manager(engine: Engine) -> None:
    create_tables(engine)


def a_ledger(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE license_expiry_run (id INTEGER)"))


def in_another_schema(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA production"))
        connection.execute(text("CREATE TABLE production.subscriptions_license (id INTEGER)"))


def rows(engine: Engine) -> dict[str, int]:
    """The number of rows of each table."""
    with engine.connect() as connection:
        return {
            name: connection.execute(text(f"SELECT count(*) FROM {name}")).scalar_one()
            for name in inspect(engine).get_table_names()
        }


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "lay"),
    [
        ("sqlite", foreign),
        ("sqlite", foreign_and_marked),
        ("sqlite", an_empty_license_manager),
        ("sqlite", a_ledger),
        ("postgresql", foreign),
        ("postgresql", in_another_schema),
        ("mariadb", foreign),
    ],
)
def test_a_database_that_is_not_the_demos_is_refused_before_anything_is_written(
    kind: str, lay: Callable[[Engine], None], tmp_path: Path, real: dict[str, str]
) -> None:
    with new_database(kind, tmp_path) as url:
        engine = make_engine(url)
        lay(engine)
        before = rows(engine)
        demo = run_once(tmp_path, real, f"--database={url}")
        assert demo.returncode == 2
        assert "that the demo did not make; it has changed nothing. Name an empty database" in demo.stderr
        assert rows(engine) == before
        engine.dispose()


@pytest.mark.long
def test_a_database_of_the_user_is_used_and_recognized(tmp_path: Path, real: dict[str, str]) -> None:
    with new_database("postgresql", tmp_path) as url:
        nights = [run_once(tmp_path, real, f"--database={url}")]
        with socket.socket() as taken:
            with suppress(OSError):  # somebody else has it, which does as well
                taken.bind(("127.0.0.1", 8000))
                taken.listen()
            nights.append(run_once(tmp_path, real, f"--database={url}"))  # whose LMS gets another port
        assert [night.returncode for night in nights] == [0, 0], nights[0].stdout + nights[0].stderr
        assert "Juniper Thousand" in nights[0].stdout
        assert "Nothing is due" in nights[1].stdout
        engine = make_engine(url)
        with engine.connect() as connection:
            assert connection.execute(select(func.count()).select_from(table(engine, "licenseevent"))).scalar_one() > 0
        engine.dispose()


def test_incomplete_data_of_the_demo_is_refused(tmp_path: Path, real: dict[str, str]) -> None:
    """A demo was killed while it made its data."""
    url = f"sqlite:///{tmp_path}/own.db"
    engine = make_engine(url)
    create_tables(engine)
    MARK.create(engine)
    demo = run_once(tmp_path, real, f"--database={url}")
    assert demo.returncode == 2
    assert "make clean" in demo.stderr


def test_another_lms_is_refused(tmp_path: Path, real: dict[str, str]) -> None:
    demo = run_once(tmp_path, real, f"--lms={real['LMS_URL']}")
    assert demo.returncode == 2
    assert "the demo never calls an LMS but its own simulator" in demo.stderr


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], []),
        (["ONCE=1"], ["--once"]),
        (["-e"], []),
        (["DATABASE_URL=sqlite:///x.db"], ["--database=sqlite:///x.db"]),
        (["CELERY_BROKER_URL=redis://b"], ["--broker=redis://b"]),
        (["LMS_URL=http://lms"], ["--lms=http://lms"]),
        (["SERVE_PORT=8002", "LMS_PORT=8003"], ["--lms-port=8003", "--serve-port=8002"]),
        (["FLOWER_PORT=5556", "PROMETHEUS_PORT=9091"], ["--flower-port=5556", "--prometheus-port=9091"]),
        (['DATABASE_URL=mysql://u:it\'s$HOME "x"@h/d'], ['--database=mysql://u:it\'s$HOME "x"@h/d']),
    ],
    ids=str,
)
def test_make_passes_on_only_variables_of_its_command_line(
    given: list[str], wanted: list[str], tmp_path: Path, real: dict[str, str]
) -> None:
    """A password may hold what means something to a shell or to make."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/.ready").touch()
    python = tmp_path / ".venv/bin/python"
    python.write_text('#!/bin/sh\nfor argument in "$@"; do echo "$argument"; done\n')
    python.chmod(0o755)
    made = subprocess.run(
        ["make", "-o", ".venv/.ready", "run", *given],
        cwd=tmp_path,
        env={name: value for name, value in real.items() if not name.startswith("MAKE")},  # of the make that runs us
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.splitlines() == ["-m", "simulator.demo", *wanted]
