"""Database accounts with just the rights that docs/how-to/accounts.md and deploy/database give them."""

import re
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Engine

from worker.cli.checks.rights import Right

ROOT = Path(__file__).parents[2]
SECURITY = ROOT / "docs/how-to/accounts.md"
ACCOUNTS = ("license_expiry", "license_expiry_init", "license_expiry_flower", "license_expiry_serve")
_ACCOUNT = r"(?:'(license_expiry\w*)'@'%'|\b(license_expiry(?:_init|_flower|_serve)?)\b)"


def documented(dialect: str) -> tuple[list[str], list[str]]:
    """The statements that make a server's accounts and give their rights; and those for numbering by a sequence."""
    mysql, postgresql, sequences = (
        _statements(block) for block in re.findall(r"```sql\n(.+?)```", SECURITY.read_text(), re.DOTALL)
    )
    made, numbering = (postgresql, sequences) if dialect == "postgresql" else (mysql, [])
    folder = ROOT / "deploy/database" / ("postgresql" if dialect == "postgresql" else "mysql")
    return [*made, *_statements(*((folder / name).read_text() for name in ("init.sql", "rights.sql")))], numbering


def _statements(*texts: str) -> list[str]:
    lines = [line for text in texts for line in text.splitlines() if not line.startswith("--")]
    return [" ".join(statement.split()) for statement in "\n".join(lines).split(";") if statement.strip()]


def whose(statement: str) -> list[str]:
    """The documented accounts that a statement makes or gives rights to."""
    told = re.split(r" TO |^CREATE (?:USER|ROLE) ", statement, maxsplit=1)[1]
    return [one or other for one, other in re.findall(_ACCOUNT, told)]


class Account:
    """An account with the documented rights on one database, and who may give and take them.

    It is the one that is documented as `documented_as`, under a name of its own: the server has others' accounts too.
    """

    def __init__(self, engine: Engine, name: str = "few", documented_as: str = "license_expiry") -> None:
        self.engine = engine
        self.postgresql = engine.dialect.name == "postgresql"
        self.user = f"{name}_{uuid4().hex[:8]}"
        quoted = engine.dialect.identifier_preparer.quote(self.user)
        self.name = quoted if self.postgresql else "'{}'@'%'".format(self.user.replace("'", "''"))
        for statement in documented(engine.dialect.name)[0]:
            if documented_as in whose(statement):
                self.execute(re.sub(rf"( TO |^CREATE (?:USER|ROLE) ){_ACCOUNT}(, {_ACCOUNT})*", self._to_us, statement))

    def _to_us(self, found: re.Match[str]) -> str:
        return f"{found[1]}{self.name}"

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
        url = self.engine.url.set(username=self.user, password="a-password")
        return url.render_as_string(hide_password=False)

    def drop(self) -> None:
        self.execute(f"DROP OWNED BY {self.name}" if self.postgresql else "DO 0")
        self.execute(f"DROP ROLE {self.name}" if self.postgresql else f"DROP USER {self.name}")
