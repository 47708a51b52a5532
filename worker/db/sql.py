"""SQL that differs by dialect, and the few forms of select and update that more than one package uses."""

import re
from collections.abc import Iterable
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import (
    ClauseElement,
    ColumnElement,
    CursorResult,
    Executable,
    Select,
    String,
    bindparam,
    func,
    literal,
    select,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from worker.db.license_manager_tables import License
from worker.db.types import DjangoUUID, UTCDateTime, UUIDList

Rows: TypeAlias = Select[*tuple[Any, ...]]


class _Written(FunctionElement[Any]):
    """SQL that differs by dialect: written as `usual` unless a dialect has its own. {0} is the first argument."""

    usual = "{0}"
    postgresql = mysql = ""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.inherit_cache = True


@compiles(_Written)
def _write(element: _Written, compiler: Any, **kw: Any) -> str:
    own = {"postgresql": element.postgresql, "mysql": element.mysql, "mariadb": element.mysql}
    arguments = list(element.clauses)
    template = own.get(compiler.dialect.name) or element.usual
    return re.sub(r"{(\d)}", lambda found: compiler.process(arguments[int(found[1])], **kw), template)


class DatabaseNow(_Written):
    """The database's own clock, UTC, `seconds` from now: the only clock that leases and `as_of` go by."""

    type = UTCDateTime()
    usual = "replace(strftime('%Y-%m-%d %H:%M:%f000', 'now', {0} || ' seconds'), '.000000', '')"  # SQLite, as Django
    postgresql = "(clock_timestamp() + make_interval(secs => {0}))"
    mysql = "(UTC_TIMESTAMP(6) + INTERVAL {0} SECOND)"

    def __init__(self, seconds: int = 0) -> None:
        super().__init__(literal(seconds))


class Digits(_Written):
    """A UUID column's value as any UUID column takes it: one MariaDB server can hold both forms of UUID."""

    type = DjangoUUID()
    mysql = "replace({0}, '-', '')"


class OneOf(_Written):
    """Is this column one of the UUIDs of the parameter `name` (`uuids` unless given when executed)?

    SQLite and PostgreSQL get them as one parameter: they take 32,766 and 65,535 at most, and are slow with many.
    """

    type = NullType()  # a Boolean would be compared with 1, which keeps MariaDB from using the index
    usual = "{0}"
    postgresql = "{1}"
    mysql = "{2}"

    def __init__(self, column: Any, name: str, uuids: Iterable[UUID] | None = None) -> None:
        given = None if uuids is None else list(uuids)
        at_once = bindparam(name, given, UUIDList())
        listed = select(func.json_each(at_once).table_valued("value").c.value)
        each = bindparam(name, given, DjangoUUID(), expanding=True)
        super().__init__(column.in_(listed), column == func.any(at_once), column.in_(each))


# What the LMS strips from around an address: what Python's str.strip does.
_SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
_SPACES += "".join(map(chr, range(0x2000, 0x200B)))


def _stripped(column: str) -> str:
    """For MySQL and MariaDB, whose TRIM knows no set of characters. Few addresses need the slow way."""
    plain = f"ascii({column}) BETWEEN 33 AND 126 AND ascii(right({column}, 1)) BETWEEN 33 AND 126"
    slow = f"regexp_replace({column}, '^[{_SPACES}]+|[{_SPACES}]+$', '')"
    return f"CASE WHEN {plain} THEN {column} ELSE {slow} END"


class Mailbox(_Written):
    """An e-mail address in the form that is compared: trimmed as the LMS does it, in lower case, accents kept.

    It is compared byte by byte, whatever the column's collation. A to Z are folded on every database and under every
    locale (Turkish too). Other letters are folded except on SQLite and under PostgreSQL's locale C. Folding more only
    protects more, and the LMS takes no such letter before the @.
    """

    type = String()
    usual = f"lower(trim({{0}}, '{_SPACES}'))"
    postgresql = f'lower(lower(btrim({{0}}, \'{_SPACES}\') COLLATE "C") COLLATE "default")'
    mysql = f"lower(CONVERT({_stripped('CONVERT({0} USING utf8mb4)')} USING utf8mb4) COLLATE utf8mb4_bin)"


class ReadMailbox(_Written):
    """A Mailbox that is read, and then `folded`. MySQL and MariaDB fold slowly, so they give plain ASCII as it is."""

    type = String()
    usual = Mailbox.usual
    postgresql = Mailbox.postgresql
    mysql = f"CASE WHEN length(CONVERT({{0}} USING utf8mb4)) = char_length({{0}}) THEN {{0}} ELSE {Mailbox.mysql} END"


def folded(address: str | None) -> str:
    """Make of a ReadMailbox, as it was read, the Mailbox; "" of NULL."""
    address = address or ""
    return address.strip().lower() if address.isascii() else address


class Fingerprint(_Written):
    """A Mailbox as a lookup key. MySQL and MariaDB cannot index sets of long text, so they compare its SHA-256.

    A server's settings can take a hash function's answer away: MD5() is NULL or constant under FIPS, and gone from
    MySQL 9.6. A NULL would match nobody, and a protected learner would be unlinked; so where the hash of an address is
    NULL, exp() overflows, and the query fails.
    """

    type = String()
    mysql = "coalesce(unhex(sha2({0}, 256)), exp(710 + length({0})))"


class Among(_Written):
    """`column IN (subquery)` for a small subquery and an indexed column.

    PostgreSQL gets `= ANY(ARRAY(...))`: with IN it overestimates the subquery and scans the license table.
    """

    type = NullType()  # as OneOf's
    usual = "{0} IN {1}"
    postgresql = "{0} = ANY (ARRAY{1})"

    def __init__(self, column: Any, few: Rows) -> None:
        super().__init__(column, few.correlate(None).scalar_subquery())


class Explain(Executable, ClauseElement):
    """Asks the database how it would answer these rows, which it does not."""

    inherit_cache = False

    def __init__(self, rows: Rows) -> None:
        self.rows = rows


@compiles(Explain)
def _explain(element: Explain, compiler: Any, **kw: Any) -> str:
    return f"EXPLAIN {compiler.process(element.rows, **kw)}"


def any_of(rows: Rows) -> ColumnElement[bool]:
    """EXISTS, looked up by key. The OFFSET keeps databases from reading the whole table once instead."""
    return rows.limit(1).offset(0).exists()


def by_key(rows: Rows, table: Any) -> Rows:
    """Make MySQL and MariaDB look this table's rows up by primary key instead of scanning an index."""
    for dialect in ("mysql", "mariadb"):
        rows = rows.with_hint(table, "FORCE INDEX (PRIMARY)", dialect)
    return rows


def of_licenses(*columns: Any) -> Select[Any]:
    """Select these columns for each license of the parameter `licenses`, after its UUID.

    For insert-from-select: drivers are slow with many rows of values.
    """
    return by_key(select(Digits(License.uuid), *columns).where(OneOf(License.uuid, "licenses")), License)


def changed(session: Session, statement: Any, values: dict[str, Any] | None = None) -> bool:
    """Execute an UPDATE with these parameters; return whether it changed any row."""
    return rows_changed(session, statement, values) > 0


def rows_changed(session: Session, statement: Any, values: dict[str, Any] | None = None) -> int:
    """Execute an UPDATE with these parameters; return how many rows it changed."""
    result = session.connection().execute(statement, values)  # which costs half of what the session's own does
    assert isinstance(result, CursorResult)  # noqa: S101, for the type checker
    return result.rowcount
