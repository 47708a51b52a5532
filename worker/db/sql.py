"""SQL that differs by dialect, and select and update helpers that several packages use."""

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
    """SQL that differs by dialect: `usual`, unless the dialect has a template of its own. {0} is the first argument."""

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
    """The database's clock (UTC), plus `seconds`. Leases and `as_of` use no other clock."""

    type = UTCDateTime()
    usual = "replace(strftime('%Y-%m-%d %H:%M:%f000', 'now', {0} || ' seconds'), '.000000', '')"  # SQLite, as Django
    postgresql = "(clock_timestamp() + make_interval(secs => {0}))"
    mysql = "(UTC_TIMESTAMP(6) + INTERVAL {0} SECOND)"

    def __init__(self, seconds: int = 0) -> None:
        super().__init__(literal(seconds))


class Digits(_Written):
    """A UUID column's value without dashes: a MariaDB database can have UUIDs as `uuid` and as text."""

    type = DjangoUUID()
    mysql = "replace({0}, '-', '')"


class OneOf(_Written):
    """Condition: the column is one of the UUIDs in the parameter `name` (`uuids`, unless given at execution).

    SQLite and PostgreSQL get all UUIDs as one parameter: they allow 32,766 and 65,535 parameters, and many are slow.
    """

    type = NullType()  # a Boolean is compared with 1, which keeps MariaDB from using the index
    usual = "{0}"
    postgresql = "{1}"
    mysql = "{2}"

    def __init__(self, column: Any, name: str, uuids: Iterable[UUID] | None = None) -> None:
        given = None if uuids is None else list(uuids)
        at_once = bindparam(name, given, UUIDList())
        listed = select(func.json_each(at_once).table_valued("value").c.value)
        each = bindparam(name, given, DjangoUUID(), expanding=True)
        super().__init__(column.in_(listed), column == func.any(at_once), column.in_(each))


# The characters that the LMS strips from both ends of an address, as Python's str.strip does.
_SPACES = "\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
_SPACES += "".join(map(chr, range(0x2000, 0x200B)))


def _stripped(column: str) -> str:
    """Return SQL that strips _SPACES on MySQL and MariaDB, whose TRIM takes no set of characters.

    Only the few addresses that begin or end in such a character need the slow regular expression.
    """
    plain = f"ascii({column}) BETWEEN 33 AND 126 AND ascii(right({column}, 1)) BETWEEN 33 AND 126"
    slow = f"regexp_replace({column}, '^[{_SPACES}]+|[{_SPACES}]+$', '')"
    return f"CASE WHEN {plain} THEN {column} ELSE {slow} END"


class Mailbox(_Written):
    """An e-mail address in the form that is compared: trimmed as the LMS does, in lower case, with accents.

    Compared byte by byte, whatever the column's collation. A to Z are lowered on every database and in every locale
    (even Turkish); other letters too, except on SQLite and in PostgreSQL's locale C. The difference is harmless:
    lowering more letters only protects more learners, and the LMS accepts only ASCII before the @.
    """

    type = String()
    usual = f"lower(trim({{0}}, '{_SPACES}'))"
    postgresql = f'lower(lower(btrim({{0}}, \'{_SPACES}\') COLLATE "C") COLLATE "default")'
    mysql = f"lower(CONVERT({_stripped('CONVERT({0} USING utf8mb4)')} USING utf8mb4) COLLATE utf8mb4_bin)"


class ReadMailbox(_Written):
    """A Mailbox to select and pass to `folded`. MySQL and MariaDB lower slowly, so they return ASCII unchanged."""

    type = String()
    usual = Mailbox.usual
    postgresql = Mailbox.postgresql
    mysql = f"CASE WHEN length(CONVERT({{0}} USING utf8mb4)) = char_length({{0}}) THEN {{0}} ELSE {Mailbox.mysql} END"


def folded(address: str | None) -> str:
    """Return the Mailbox of a ReadMailbox's value; "" for NULL."""
    address = address or ""
    return address.strip().lower() if address.isascii() else address


class Fingerprint(_Written):
    """A Mailbox as a lookup key. MySQL and MariaDB cannot index sets of long text, so they compare its SHA-256.

    A server's settings can disable a hash function: MD5() is NULL or constant under FIPS, and MySQL 9.6 has removed it.
    A NULL key would match no license, and a protected learner would be unlinked. So if the hash of an address is NULL,
    exp() overflows and the query fails.
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
    """EXPLAIN of a select: returns the database's plan without executing it."""

    inherit_cache = False

    def __init__(self, rows: Rows) -> None:
        self.rows = rows


@compiles(Explain)
def _explain(element: Explain, compiler: Any, **kw: Any) -> str:
    return f"EXPLAIN {compiler.process(element.rows, **kw)}"


def any_of(rows: Rows) -> ColumnElement[bool]:
    """Return EXISTS of these rows. The OFFSET makes databases probe by key instead of reading the whole table."""
    return rows.limit(1).offset(0).exists()


def by_key(rows: Rows, table: Any) -> Rows:
    """Make MySQL and MariaDB look this table's rows up by primary key instead of scanning an index."""
    for dialect in ("mysql", "mariadb"):
        rows = rows.with_hint(table, "FORCE INDEX (PRIMARY)", dialect)
    return rows


def of_licenses(*columns: Any) -> Select[Any]:
    """Select the UUID and these columns for each license in the parameter `licenses`.

    Used for INSERT ... SELECT, because drivers are slow to insert many rows of values.
    """
    return by_key(select(Digits(License.uuid), *columns).where(OneOf(License.uuid, "licenses")), License)


def changed(session: Session, statement: Any, values: dict[str, Any] | None = None) -> bool:
    """Execute an UPDATE with these parameters; return whether it changed any row."""
    return rows_changed(session, statement, values) > 0


def rows_changed(session: Session, statement: Any, values: dict[str, Any] | None = None) -> int:
    """Execute an UPDATE with these parameters; return how many rows it changed."""
    result = session.connection().execute(statement, values)  # takes half the time of Session.execute
    assert isinstance(result, CursorResult)  # noqa: S101, for the type checker
    return result.rowcount
