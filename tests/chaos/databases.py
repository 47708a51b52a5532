"""PostgreSQL and MariaDB of this suite's own."""

import os
import shutil
import subprocess
from contextlib import suppress

from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from chaos.servers import WITH_US, Server, binary

NAME = "license_manager"


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
