"""Servers of this suite's own, in a folder of its own: Redis, PostgreSQL, MariaDB, to be killed and frozen at will.

What they write goes to the machine's page cache and no further (no fsync): a killed server has kept what it confirmed,
a machine that loses its power would not have.
"""

import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import IO

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool
from support.services import missing

from simulator.processes import StartError, free_port

NAME = "license_manager"
PACKAGES = {
    "redis": ("redis-server",),
    "postgresql": ("initdb", "postgres"),
    "mariadb": ("mariadb-install-db", "mariadbd"),
}


# A process that is started through this ends when we do, however that comes about.
WITH_US = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def require(engine: str) -> None:
    """Skip, or fail in CI, when a server is not installed that the nights on this engine need."""
    for package in ("redis", engine):
        for name in PACKAGES[package]:
            if not binary(name):
                missing(package, f"install it ({name} is not found)")


def binary(name: str) -> str:
    """Where a server's program is; of PostgreSQL, the newest; empty when it is not installed."""
    newest = sorted(glob(f"/usr/lib/postgresql/*/bin/{name}"))[-1:]
    return next(iter([*newest, *filter(None, [shutil.which(name)]), *glob(f"/usr/sbin/{name}")]), "")


class Server:
    """One server process, which comes back on the same port with the same data after a kill."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / self.name
        self.folder.mkdir()
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.frozen = False

    def command(self) -> list[str]:
        """The command line of the server."""
        raise NotImplementedError

    def answers(self) -> bool:
        """Does it take a connection and answer?"""
        raise NotImplementedError

    def reset(self) -> None:
        """Break all connections to it."""
        raise NotImplementedError

    def start(self, seconds: float = 60) -> None:
        """Start it, and come back when it answers."""
        with (self.folder / "server.log").open("ab") as log:
            self.process = self._spawn(log)
        deadline = time.monotonic() + seconds
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise StartError(f"{self.name} did not start: {self.folder}/server.log")
            time.sleep(0.05)  # the condition is another process's, and gives no notice

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(), stdout=log, stderr=log, start_new_session=True, cwd=self.folder)

    def kill(self) -> None:
        """SIGKILL, to it and its children, the parent first so that it starts none anew."""
        if self.process is not None:
            for pid in self._family():
                _signal(pid, signal.SIGKILL)
            self.process.wait()
            while any(map(_runs, self._children)):  # they hold on to what a new one needs
                time.sleep(0.01)
        self.process, self.frozen = None, False

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        self.frozen = True
        for pid in self._family():
            _signal(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        for pid in self._family() if self.frozen else []:
            _signal(pid, signal.SIGCONT)
        self.frozen = False

    @property
    def up(self) -> bool:
        """Has it been started, and neither killed nor frozen since?"""
        return self.process is not None and not self.frozen

    def _family(self) -> list[int]:
        if self.process is None:
            return []
        parent = self.process.pid
        found = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True, check=False).stdout
        self._children = [int(pid) for pid in found.split()]
        return [parent, *self._children]

    _children: list[int] = []  # noqa: RUF012, replaced and never changed


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


class Redis(Server):
    """A Redis that keeps nothing."""

    name = "redis"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        never = Retry(NoBackoff(), 0)  # the driver, which thaws what is frozen, must not wait for what is frozen
        self.client = redis.Redis(port=self.port, socket_timeout=3, socket_connect_timeout=3, retry=never)
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        return [
            binary("redis-server"),
            "--port",
            str(self.port),
            "--save",
            "",
            "--appendonly",
            "no",
            "--bind",
            "127.0.0.1",
        ]

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def reset(self) -> None:
        for kind in ("normal", "pubsub"):
            with suppress(redis.RedisError):
                self.client.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "no")  # type: ignore[no-untyped-call]


class DatabaseServer(Server):
    """What the two databases have in common: an admin's connection, and one database made on it."""

    drivername = ""
    admin_database = ""

    @property
    def url(self) -> str:
        """The URL of license-manager's database."""
        return self.url_of(NAME)

    def url_of(self, database: str) -> str:
        """The URL of one of its databases."""
        return f"{self.drivername}://{self.user}@127.0.0.1:{self.port}/{database}{self.query}"

    user = query = ""

    def prepare(self) -> None:
        """Lay down its files, start it, and make the database."""
        self.install()
        self.start()
        self.run(f"CREATE DATABASE {NAME}")

    def install(self) -> None:
        """Lay down its files."""
        raise NotImplementedError

    def run(self, statement: str) -> list[int]:
        """Run one statement as the admin; give the first column when there is one."""
        engine = create_engine(
            make_url(self.url_of(self.admin_database)), isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        with engine.connect() as connection:
            result = connection.execute(text(statement))
            return [row[0] for row in result] if result.returns_rows else []

    def answers(self) -> bool:
        try:
            return self.run("SELECT 1") == [1]
        except OperationalError:
            return False


class PostgreSQL(DatabaseServer):
    """A PostgreSQL of the newest version that is installed."""

    name = "postgresql"
    drivername = "postgresql+psycopg"
    user = "postgres"
    admin_database = "postgres"

    def _as_postgres(self, *command: str) -> list[str]:
        if os.geteuid() != 0:
            return list(command)
        return [*WITH_US, "--reuid", "postgres", "--regid", "postgres", "--clear-groups", *command]

    def install(self) -> None:
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        command = [binary("initdb"), "-D", f"{self.folder}/data", "-U", "postgres", "-A", "trust", "--no-sync"]
        command += ["-E", "UTF8", "--locale=C.UTF-8"]
        subprocess.run(self._as_postgres(*command), check=True, capture_output=True, cwd=self.folder)

    def command(self) -> list[str]:
        options = ["fsync=off", "listen_addresses=127.0.0.1", f"port={self.port}", "shared_buffers=32MB"]
        options += [f"unix_socket_directories={self.folder}", "max_connections=60"]
        flags = [part for option in options for part in ("-c", option)]
        return self._as_postgres(binary("postgres"), "-D", f"{self.folder}/data", *flags)

    def reset(self) -> None:
        self.run(
            "SELECT pg_terminate_backend(pid)::int FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


class MariaDB(DatabaseServer):
    """A MariaDB."""

    name = "mariadb"
    drivername = "mysql+pymysql"
    user = "root"
    admin_database = "mysql"
    query = "?ssl_disabled=true"  # or PyMySQL reads the machine's certificates for each connection: 0.05 s

    def install(self) -> None:
        command = [binary("mariadb-install-db"), "--no-defaults", f"--datadir={self.folder}/data", "--skip-test-db"]
        command += ["--auth-root-authentication-method=normal", *self._as()]
        subprocess.run(command, check=True, capture_output=True, cwd=self.folder)

    def _as(self) -> list[str]:
        return ["--user=root"] if os.geteuid() == 0 else []

    def command(self) -> list[str]:
        options = [f"datadir={self.folder}/data", f"port={self.port}", f"socket={self.folder}/socket"]
        options += ["bind-address=127.0.0.1", "innodb-buffer-pool-size=32M", "innodb-log-file-size=16M"]
        options += ["innodb-flush-log-at-trx-commit=2", "innodb-flush-method=nosync", "skip-name-resolve"]
        options += ["character-set-server=utf8mb4", f"pid-file={self.folder}/pid"]
        return [*WITH_US, binary("mariadbd"), "--no-defaults", *(f"--{option}" for option in options), *self._as()]

    def reset(self) -> None:
        for connection in self.run(
            "SELECT id FROM information_schema.processlist WHERE id <> connection_id() AND command <> 'Daemon'"
        ):
            with suppress(OperationalError):  # it may be gone by now
                self.run(f"KILL {connection}")


DATABASES: dict[str, type[DatabaseServer]] = {"postgresql": PostgreSQL, "mariadb": MariaDB}
