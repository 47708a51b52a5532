"""Databases with every table, made once and emptied for each test: to make one takes a server a second and more."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, event, insert, inspect, text

from simulator.data.schema import create_tables
from simulator.processes import free_port
from support.mysql_server import MySQL, installed
from support.services import missing, new_database
from worker.db.engine import make_engine
from worker.db.ledger_tables import Heartbeat, Identity, Throttle
from worker.db.sql import DatabaseNow
from worker.ledger import migrations

CHANGES = ("ALTER", "CREATE", "DROP", "GRANT", "RENAME", "REVOKE", "TRUNCATE")
# On MySQL and MariaDB these are kept beside all databases, and go with the account.
OF_ACCOUNTS = re.compile(r"GRANT |REVOKE |(CREATE|ALTER|DROP) USER ")
# So that nobody of the test before is still at work, and rows may go in any order.
FIRST: dict[str, list[str]] = {
    "sqlite": [],
    "postgresql": [
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        "SET LOCAL session_replication_role = replica",
    ],
    "mysql": ["SET SESSION foreign_key_checks = 0"],
    "mariadb": ["SET SESSION foreign_key_checks = 0"],
}
# What the migrations put in.
ROWS: list[tuple[Any, dict[str, Any]]] = [
    (Throttle, {"id": 1, "next_call_at": datetime(2000, 1, 1, tzinfo=UTC)}),
    (Throttle, {"id": 2, "next_call_at": datetime(2000, 1, 1, tzinfo=UTC)}),
    (Heartbeat, {"id": 1, "reconciled_at": DatabaseNow()}),
    (Identity, {"id": 1, "uuid": UUID(int=1)}),
]


@dataclass(frozen=True)
class Ready:
    """A database with every table: the names of those that tests write to, and what drops it."""

    engine: Engine
    tables: list[str]
    drop: Callable[[], None]

    @property
    def name(self) -> str:
        """The database's name, or the path of its file."""
        return str(self.engine.url.database)

    def empty(self) -> None:
        """Delete all rows but the migrations'."""
        with self.engine.begin() as connection:
            for statement in FIRST[connection.dialect.name]:
                connection.execute(text(statement))
            for name in self.tables:
                connection.execute(text(f"DELETE FROM {name}"))
            for model, row in ROWS:
                connection.execute(insert(model).values(row))
        self.engine.dispose()


@contextmanager
def private_mysql(folder: Path, *options: str) -> Iterator[MySQL]:
    """Give a running MySQL with these options of mysqld, its files in this folder, and stop it at the end."""
    if not installed():
        missing("mysql", "make mysql")
    server = MySQL(folder, free_port(), options=options)
    server.prepare()
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def with_tables(url: str) -> Iterator[Engine]:
    """Make every table in an empty database, with UUIDs in char(32); give its engine, and close it at the end."""
    engine = make_engine(url)
    try:
        create_tables(engine)
        migrations.upgrade(engine)
        yield engine
    finally:
        engine.dispose()


class Shelf:
    """One database of each kind, lent to one test at a time. One whose tables this process has changed is not again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ready: dict[str, Ready] = {}
        self._lent = ""
        self._changed = False
        event.listen(Engine, "before_cursor_execute", self._note)

    def close(self) -> None:
        """Drop all of them."""
        event.remove(Engine, "before_cursor_execute", self._note)
        for ready in self._ready.values():
            ready.drop()

    @contextmanager
    def lend(self, kind: str, folder: Path) -> Iterator[str]:
        """Give the URL of a database with every table and only the migrations' rows; SQLite's is in this folder."""
        if kind not in self._ready:
            self._ready[kind] = make_ready(kind, self._folder)
        ready = self._ready[kind]
        ready.empty()
        url = ready.engine.url
        if kind == "sqlite":
            url = url.set(database=str(shutil.copy(ready.name, folder)))
        self._lent, self._changed = ready.name, False
        yield url.render_as_string(hide_password=False)
        if self._changed:
            self._ready.pop(kind).drop()

    def _note(self, connection: Connection, _: Any, statement: str, *__: Any) -> None:
        of_account = connection.dialect.name != "postgresql" and OF_ACCOUNTS.match(statement)
        if statement.lstrip()[:8].upper().startswith(CHANGES) and not of_account:
            self._changed |= connection.engine.url.database == self._lent or self._lent in statement


def make_ready(kind: str, folder: Path) -> Ready:
    """Make a database of this kind with every table."""
    with ExitStack() as made:
        engine = make_engine(made.enter_context(new_database(kind, folder)))
        made.callback(engine.dispose)
        create_tables(engine, "native" if kind == "mariadb-uuid" else "char32")
        migrations.upgrade(engine)
        tables = [name for name in inspect(engine).get_table_names() if name != migrations.VERSION_TABLE]
        with engine.connect() as connection:
            full = {name for name in tables if connection.execute(text(f"SELECT 1 FROM {name}")).first()}
        assert full == {model.__tablename__ for model, _ in ROWS}, "ROWS is to have what the migrations put in"
        engine.dispose()
        # SQLite's is only copied.
        return Ready(engine, sorted(full) if kind == "sqlite" else tables, made.pop_all().close)
