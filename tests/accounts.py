"""Database accounts with just the rights that docs/security.md gives them."""

import re
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Engine

from worker.rights import Right

SECURITY = Path(__file__).parents[1] / "docs" / "security.md"


def documented(dialect: str) -> tuple[list[str], list[str]]:
    """The statements that docs/security.md has for this kind of server; and those for numbering by a sequence."""
    mysql, postgresql, sequences = (
        [line for line in re.split(r";\n", block) if line]
        for block in re.findall(r"```sql\n(.+?)```", SECURITY.read_text(), re.DOTALL)
    )
    return (postgresql, sequences) if dialect == "postgresql" else (mysql, [])


class Account:
    """An account with the documented rights on one database, and who may give and take them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.postgresql = engine.dialect.name == "postgresql"
        self.user = f"few_{uuid4().hex[:8]}"
        self.name = self.user if self.postgresql else f"'{self.user}'@'%'"
        for statement in documented(engine.dialect.name)[0]:
            self.execute(statement)

    def execute(self, statement: str) -> None:
        """Execute what the documentation or doctor says, for this account and this database."""
        statement = statement.replace("license_manager.", f"{self.engine.url.database}.")
        statement = statement.replace("TO license_expiry", f"TO {self.user}").replace(
            "'license_expiry'", f"'{self.user}'"
        )
        statement = statement.replace("ROLE license_expiry", f"ROLE {self.user}")
        with self.engine.begin() as connection:
            connection.exec_driver_sql(statement.replace("%", "%%") if not self.postgresql else statement)

    def revoke(self, right: Right) -> None:
        grant = right.grant(self.engine.dialect.name, str(self.engine.url.database), self.name)
        self.execute(grant.replace("GRANT", "REVOKE").replace(" TO ", " FROM "))

    @property
    def url(self) -> str:
        url = self.engine.url.set(username=self.user, password="a password")
        return url.render_as_string(hide_password=False)

    def drop(self) -> None:
        self.execute(f"DROP OWNED BY {self.user}" if self.postgresql else "DO 0")
        self.execute(f"DROP ROLE {self.user}" if self.postgresql else f"DROP USER {self.name}")
