"""Who is the same learner, and how a database is brought to look licenses up by key: parts of the policy's selects."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Select, String, and_, case, or_, select, tuple_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import aliased
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from worker.db.ledger_tables import License
from worker.db.ledger_tables import SubscriptionPlan as Plan

Rows: TypeAlias = Select[*tuple[Any, ...]]

KNOWN_BY = ("user_email", "lms_user_id")  # what makes two licenses the same learner's: either of these
_TRIMMED = "trim(replace(replace(replace({}, '\t', ' '), '\n', ' '), '\r', ' '))"


class Mailbox(FunctionElement[str]):
    """An e-mail as it is compared: the LMS trims white space, and case does not make another learner; an accent does.

    What it gives is compared byte by byte, whatever the column's collation, and A to Z are folded on every database
    and under every locale (Turkish too). Other letters are folded where the database can, which is everywhere but on
    SQLite and under PostgreSQL's locale C: that protects more, and before the @ the LMS takes no such letter.
    """

    type = String()
    inherit_cache = True


@compiles(Mailbox)
def _mailbox(element: Mailbox, compiler: Any, **kw: Any) -> str:
    return f"lower({_TRIMMED.format(compiler.process(element.clauses, **kw))})"


@compiles(Mailbox, "postgresql")
def _postgresql_mailbox(element: Mailbox, compiler: Any, **kw: Any) -> str:
    trimmed = _TRIMMED.format(compiler.process(element.clauses, **kw))
    return f'lower(lower({trimmed} COLLATE "C") COLLATE "default")'


@compiles(Mailbox, "mysql")
@compiles(Mailbox, "mariadb")
def _mysql_mailbox(element: Mailbox, compiler: Any, **kw: Any) -> str:
    email = f"CONVERT({compiler.process(element.clauses, **kw)} USING utf8mb4) COLLATE utf8mb4_bin"
    return f"lower({_TRIMMED.format(email)})"


class Fingerprint(FunctionElement[str]):
    """A Mailbox as a key of a set: on MySQL and MariaDB its MD5, for they look no set of such long texts up by key."""

    type = String()
    inherit_cache = True


@compiles(Fingerprint)
def _fingerprint(element: Fingerprint, compiler: Any, **kw: Any) -> str:
    return str(compiler.process(element.clauses, **kw))


@compiles(Fingerprint, "mysql")
@compiles(Fingerprint, "mariadb")
def _mysql_fingerprint(element: Fingerprint, compiler: Any, **kw: Any) -> str:
    return f"unhex(md5({compiler.process(element.clauses, **kw)}))"


class Among(FunctionElement[Any]):
    """Is this column, the key of an index, one of the values that a select of few finds?

    On PostgreSQL those become an array first, and each of it is looked up. Else it reckons with so many licenses that
    it reads their whole table, or makes no hash table of a set that it believes too big, and goes through all of that
    for each license.
    """

    type = NullType()  # a Boolean would be compared with 1, and MariaDB then look no further
    inherit_cache = True

    def __init__(self, column: Any, few: Rows) -> None:
        super().__init__(column, few.correlate(None).scalar_subquery())


@compiles(Among)
def _among(element: Among, compiler: Any, **kw: Any) -> str:
    column, few = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{column} IN {few}"


@compiles(Among, "postgresql")
def _postgresql_among(element: Among, compiler: Any, **kw: Any) -> str:
    column, few = (compiler.process(clause, **kw) for clause in element.clauses)
    return f"{column} = ANY (ARRAY{few})"


def by_key(rows: Rows, table: Any) -> Rows:
    """Let MySQL and MariaDB look this table's rows up by its primary key, and not read the whole of an index."""
    for dialect in ("mysql", "mariadb"):
        rows = rows.with_hint(table, "FORCE INDEX (PRIMARY)", dialect)
    return rows


def learner_among(other: Any, which: ColumnElement[bool], known_by: Sequence[str] = KNOWN_BY) -> ColumnElement[bool]:
    """Is the learner of the License and Plan at hand that of an `other` license, an alias, of the same customer?

    Asked of sets that do not depend on the license at hand, so that they are read once and not once for each: the
    OFFSET, and a CASE that hides them, keep databases from doing otherwise. What is not known matches nothing.
    """
    plan = aliased(Plan)

    def among(name: str, key: Callable[[Any], Any]) -> ColumnElement[bool]:
        mine, theirs = getattr(License, name), getattr(other, name)
        those = select(plan.customer_agreement_id, key(theirs).label("learner"))
        those = those.join_from(other, plan, plan.uuid == other.subscription_plan_id).where(theirs.is_not(None), which)
        customer_and_learner = tuple_(Plan.customer_agreement_id, key(mine))
        return and_(mine.is_not(None), customer_and_learner.in_(select(those.offset(0).subquery())))

    keys: dict[str, Callable[[Any], Any]] = {
        "user_email": lambda column: Fingerprint(Mailbox(column)),
        "lms_user_id": lambda column: column,
    }
    either = or_(*(among(name, keys[name]) for name in known_by))
    return case((either, 1), else_=0) == 1  # never NULL: for a NOT IN that might be, SQLite reads the set every time
