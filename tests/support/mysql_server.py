"""A real MySQL beside this machine's own packages: `make mysql` starts the two servers that the tests use.

Of Debian's releases only unstable has MySQL. Its packages are unpacked into a folder together with the C library that
they are built for, and that library's loader starts the server: no root is needed, and nothing of the machine changes.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pymysql  # type: ignore[import-untyped]

# By name: Django, which is told that this is its MySQLdb, puts another module with classes of its own at `pymysql.err`.
from pymysql.err import OperationalError  # type: ignore[import-untyped]

HOME = Path(os.environ.get("MYSQL_HOME") or Path.home() / ".cache" / "license-expiry-mysql")
PROGRAMS = HOME / "programs"
NEW = HOME / "new"  # the files of a server that was never started: copied, they save each new one 5 s
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Tests need no data after a crash of the machine, and two of these servers run beside all the others.
CHEAP = [
    "innodb-flush-log-at-trx-commit=0",
    "innodb-doublewrite=OFF",
    "innodb-flush-method=nosync",
    "innodb-redo-log-capacity=256M",
    "innodb-buffer-pool-size=512M",
    "performance-schema=OFF",
    "skip-log-bin",
    "skip-name-resolve=OFF",
    "mysqlx=0",
    "secure-file-priv=NULL",
    "log-error-verbosity=1",
    "bind-address=127.0.0.1",
]
# What MySQL 8.0 and 8.4 have and 9.7 has not unless it is asked: EXPLAIN's older forms; and, by a component, MD5().
AS_8 = ["explain-format=TRADITIONAL", "explain-json-format-version=1"]
HASHES = "file://component_classic_hashing"


class CannotBeHad(Exception):
    """This machine cannot get or start a MySQL; the message says why."""


@dataclass
class MySQL:
    """One server: its folder, its port, and the options of mysqld that it has beside the cheap ones."""

    folder: Path
    port: int
    as_8: bool = False
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)  # when we have started it

    @property
    def url(self) -> str:
        """Leads to the server as root, without TLS and without a database."""
        return f"mysql+pymysql://root@127.0.0.1:{self.port}/?ssl_disabled=true"

    def prepare(self) -> None:
        """Lay down its files, unless they are there."""
        if not (self.folder / "data").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.copytree(NEW, self.folder / "copy")
            (self.folder / "copy").rename(self.folder / "data")

    def command(self) -> list[str]:
        """The command line of the server."""
        options = [*CHEAP, *(AS_8 if self.as_8 else []), f"datadir={self.folder}/data", f"port={self.port}"]
        options += [f"socket={self.folder}/socket", f"pid-file={self.folder}/pid"]
        return mysqld(*options, *self.options)

    def start(self, seconds: float = 60) -> None:
        """Start it, and come back when it answers. It goes on when this process ends."""
        with (self.folder / "server.log").open("wb") as log:
            process = subprocess.Popen(self.command(), stdout=log, stderr=log, start_new_session=True, cwd=self.folder)
        self.process = process
        deadline = time.monotonic() + seconds
        while not self.answers():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise CannotBeHad(f"MySQL did not start: {(self.folder / 'server.log').read_text()[-2000:]}")
            time.sleep(0.1)
        if self.as_8 and not self.ask("SELECT 1 FROM mysql.component WHERE component_urn = %s", HASHES):
            self.ask(f"INSTALL COMPONENT '{HASHES}'")

    def stop(self, seconds: float = 60) -> None:
        """Shut it down, and come back when it has ended."""
        with suppress(OperationalError):  # none runs
            self.ask("SHUTDOWN")
        if self.process:
            self.process.wait(seconds)
        deadline = time.monotonic() + seconds
        while (self.folder / "pid").exists() and time.monotonic() < deadline:
            time.sleep(0.1)

    def answers(self) -> bool:
        """Does it take a connection, and is it this one?"""
        try:
            return bool(self.ask("SELECT 1 WHERE @@datadir = %s", f"{self.folder}/data/"))
        except OperationalError:
            return False

    def connect(self) -> Any:
        """Connect as root, who has no password."""
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user="root", autocommit=True, ssl_disabled=True, connect_timeout=5
        )

    def ask(self, statement: str, *values: str) -> Any:
        """Run one statement as root; give the rows."""
        with closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return cursor.fetchall()


# On ports of their own, so that nothing need be set for the tests to find them.
MYSQL = MySQL(HOME / "mysql", int(os.environ.get("MYSQL_PORT") or 33197))
MYSQL_8 = MySQL(HOME / "mysql-8", int(os.environ.get("MYSQL_8_PORT") or 33108), as_8=True)


def installed() -> bool:
    """Have the programs been fetched, and the files of a new server made?"""
    return PROGRAMS.exists() and NEW.exists()


def mysqld(*options: str) -> list[str]:
    """The command line of mysqld, by the loader and with the libraries that came with it."""
    usr = PROGRAMS / "usr"
    loader = next(usr.glob("lib*/ld-linux-*.so.*"))
    libraries = next(usr.glob("lib/*/libc.so.6")).parent
    places = [f"basedir={usr}", f"plugin-dir={usr}/lib/mysql/plugin", f"lc-messages-dir={usr}/share/mysql"]
    places += [f"character-sets-dir={usr}/share/mysql/charsets"]
    user = ["user=root"] if os.geteuid() == 0 else []
    flags = [f"--{option}" for option in ("no-defaults", *places, *user, *options)]
    return [str(loader), "--library-path", str(libraries), str(usr / "sbin" / "mysqld"), *flags]


def install() -> None:
    """Fetch the programs (50 MB) and make the files of a new server, unless they are there."""
    if not PROGRAMS.exists():
        fetched = HOME / "fetched"
        shutil.rmtree(fetched, ignore_errors=True)
        _unpack(_fetch(fetched), fetched / "programs")
        (fetched / "programs").rename(PROGRAMS)
        shutil.rmtree(fetched)
    if not NEW.exists():
        made = HOME / "made"
        shutil.rmtree(made, ignore_errors=True)
        _run(mysqld("initialize-insecure", *CHEAP, f"datadir={made}"))
        made.rename(NEW)


def _fetch(folder: Path) -> list[Path]:
    """Download the packages of mysqld and of all that it needs, from the mirror that this machine's apt is set to."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb") and KEYRING.exists()):
        raise CannotBeHad("it is fetched from Debian's archive, and this machine is not a Debian")
    mirrors = _run(["apt-get", "indextargets", "--format", "$(SITE)", "Identifier: Packages"]).split()
    mirror = next((each for each in mirrors if "security" not in each), None)
    if mirror is None:
        raise CannotBeHad("apt knows of no mirror of Debian: apt-get update, then try again")
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True)
    (folder / "status").touch()  # as if nothing were installed: the C library is fetched, too
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {mirror} unstable main\n")
    settings = {
        "Dir::State::lists": folder / "lists",
        "Dir::State::status": folder / "status",
        "Dir::Cache": folder,
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Debug::NoLocking": "true",
    }
    options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
    _run(["apt-get", "-qq", *options, "update"])
    _run(["apt-get", "-qq", "-y", *options, "--download-only", "install", "mysql-server-core"])
    return sorted((folder / "archives").glob("*.deb"))


def _unpack(packages: list[Path], folder: Path) -> None:
    for package in packages:
        if not package.name.startswith("perl"):  # is for a script beside the server
            _run(["dpkg-deb", "-x", str(package), str(folder)])
    for unused in [folder / "etc", folder / "usr/bin", *(folder / "usr/share").iterdir()]:
        if unused.name != "mysql":
            shutil.rmtree(unused, ignore_errors=True)


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise CannotBeHad(f"{command[0]} failed: {' '.join((done.stderr or done.stdout).split())[-1000:]}")
    return done.stdout


def main(action: str) -> None:
    """Start or stop the two servers of the tests."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two at once, the second finds all done
        if action == "start":
            install()
        for server in (MYSQL, MYSQL_8):
            if action == "stop":
                server.stop()
                continue
            if not server.answers():
                server.prepare()
                server.start()
            [[version]] = server.ask("SELECT version()")
            print(f"{server.folder.name}: MySQL {version} on port {server.port}")  # noqa: T201, a person reads it


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except CannotBeHad as error:
        sys.exit(f"No MySQL here: {error}")
