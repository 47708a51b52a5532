"""Carrying out the policy's queries: each is built once, for that takes longer than its execution."""

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from worker.due.learners import Rows
from worker.due.scope import Scope

_built: dict[tuple[Any, ...], Rows] = {}


def read(session: Session, query: Callable[..., Rows], scope: Scope, **values: Any) -> Sequence[Any]:
    """Give the rows of a query of the policy, a plain function, for this scope and its other arguments.

    Other arguments are parameters of the query by the same names; those that make another query are of type bool.
    """
    statement = _once(query, query, scope, values)
    return session.connection().execute(statement, scope.values | values).all()


def count(session: Session, query: Callable[..., Rows], scope: Scope, **values: Any) -> int:
    """Give how many rows `read` would."""

    def counted(*arguments: Any, **more: Any) -> Rows:
        return select(func.count()).select_from(query(*arguments, **more).subquery())

    statement = _once((count, query), counted, scope, values)
    return int(session.connection().execute(statement, scope.values | values).scalar_one())


def _once(name: Any, query: Callable[..., Rows], scope: Scope, values: dict[str, Any]) -> Rows:
    shape = tuple((each, value if isinstance(value, bool) else value is None) for each, value in values.items())
    key = (name, scope.shape, shape)
    if key not in _built:
        _built[key] = query(scope, **values)
    return _built[key]
