"""Executes the queries for due work. Caches each query, because building it takes longer than executing it."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from worker.db.sql import Rows
from worker.due.scope import Scope

# Global to the process, not made in the composition root: its entries depend on nothing but the code.
_built: dict[tuple[Any, ...], Rows] = {}


def fetch(session: Session, question: Callable[..., Rows], scope: Scope, **values: Any) -> Sequence[Any]:
    """Build or reuse the query of `question`, a plain function, and return its rows for this scope and these `values`.

    The values become parameters of the same names. A value that changes the SQL text must be a bool.
    """
    statement = _build_once(question, question, scope, values)
    return session.connection().execute(statement, scope.values | values).all()


def fetch_count(session: Session, question: Callable[..., Rows], scope: Scope, **values: Any) -> int:
    """Return the number of rows that `fetch` would return."""

    def counted(*arguments: Any, **more: Any) -> Rows:
        return select(func.count()).select_from(question(*arguments, **more).subquery())

    statement = _build_once((fetch_count, question), counted, scope, values)
    return int(session.connection().execute(statement, scope.values | values).scalar_one())


def _build_once(name: Any, question: Callable[..., Rows], scope: Scope, values: dict[str, Any]) -> Rows:
    shape = tuple((key, value if isinstance(value, bool) else value is None) for key, value in values.items())
    key = (name, scope.shape, shape)
    if key not in _built:
        _built[key] = question(scope, **values)
    return _built[key]
