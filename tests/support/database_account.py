"""Database accounts with just the rights that docs/security.md gives them."""

import re
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Engine

from worker.cli.checks.rights import Right

SECURITY = Path(__file__).parents[2] / "docs" / "security.md"


def documented(dialect: str) -> tuple[list[str], list[str]]:
    """The statements that docs/security.md has for this kind of server; and those for numbering by a sequence."""
    mysql, postgresql, sequences = (
        [line for line in re.split(r";\n", block) if line]
        for block in re.findall(r"```sql\n(.+?)```", SECURITY.read_text(), re.DOTALL)
    )
    return (postgresql, sequences) if dialect == "postgresql" else (mysql, [])


class Account:
    """An account with the documented rights on one database, and who may give and take them."""

    def __init__(self, engine: Engine, name: str = "few") -> None:
        self.engine = engine
        self.postgresql = engine.dialect.name == "postgresql"
        self.user = f"{name}_{uuid4().hex[:8]}"
        quoted = engine.dialect.identifier_preparer.quote(self.user)
        self.name = quoted if self.postgresql else "'{}'@'%'".format(self.user.replace("'", "''"))
        for statement in documented(engine.dialect.name)[0]:
            self.execute(statement)

    def execute(self, statement: str) -> None:
        """Execute what the documentation or doctor says, for this account and this database."""
        statement = statement.replace("license_manager.", f"{self.engine.url.database}.")
        ours = r"(TO|ROLE|USER) ('license_expiry'@'%'|license_expiry\b)"
        statement = re.sub(ours, lambda found: f"{found[1]} {self.name}", statement)
        with self.engine.begin() as connection:
            connection.exec_driver_sql(statement.replace("%", "%%") if not self.postgresql else statement)

    def revoke(self, right: Right) -> None:
        where = right.table if self.postgresql else f"license_manager.{right.table}"
        self.execute(f"REVOKE {right.verb} ON {where} FROM {self.name}")

    @property
    def url(self) -> str:
        url = self.engine.url.set(username=self.user, password="a password")
        return url.render_as_string(hide_password=False)

    def drop(self) -> None:
        self.execute(f"DROP OWNED BY {self.name}" if self.postgresql else "DO 0")
        self.execute(f"DROP ROLE {self.name}" if self.postgresql else f"DROP USER {self.name}")
