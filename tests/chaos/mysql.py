"""A MySQL of this suite's own, of the programs that `make mysql` fetches. It is played on when asked for by name."""

from support import mysql_server

from chaos.databases import DATABASES, DatabaseServer, MariaDB
from chaos.servers import WITH_US

# A server that is killed must keep what it confirmed, and may be in the middle of writing a page.
SURE = ("innodb-flush-log-at-trx-commit=2", "innodb-doublewrite=ON")


class MySQL(MariaDB):
    """A MySQL as 9.7 comes, with the accounts, the URL and the statements of a MariaDB."""

    name = "mysql"

    def install(self) -> None:
        self._server.prepare()

    def command(self) -> list[str]:
        return [*WITH_US, *self._server.command()]

    @property
    def _server(self) -> mysql_server.MySQL:
        return mysql_server.MySQL(self.folder, self.port, options=SURE)


ENGINES: dict[str, type[DatabaseServer]] = {**DATABASES, "mysql": MySQL}
