"""Executes the questions about what is due. Each is built once, for building takes longer than executing it."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from worker.db.sql import Rows
from worker.due.scope import Scope

# Of the whole process, and not made in the composition root: what is built depends on nothing but the code.
_built: dict[tuple[Any, ...], Rows] = {}


def fetch(session: Session, question: Callable[..., Rows], scope: Scope, **values: Any) -> Sequence[Any]:
    """Give the rows that answer a question, a plain function, for this scope and its other arguments.

    Other arguments are parameters of the query by the same names; those that make another query are of type bool.
    """
    statement = _build_once(question, question, scope, values)
    return session.connection().execute(statement, scope.values | values).all()


def fetch_count(session: Session, question: Callable[..., Rows], scope: Scope, **values: Any) -> int:
    """Give how many rows `fetch` would."""

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
