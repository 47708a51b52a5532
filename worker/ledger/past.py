"""Sums up runs for the counters of /metrics, and prunes old runs and nights.

The sums of pruned runs are kept in a table of their own, so that no counter decreases.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeAlias
from uuid import UUID

from sqlalchemy import ColumnElement, case, delete, exists, false, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from worker.db.ledger_tables import LmsCall, Night, Pruned, Retry, Run
from worker.db.sql import DatabaseNow, OneOf, Rows, changed
from worker.db.transactions import Database
from worker.ledger import order
from worker.ledger.nights import MAX_TRIES

Values: TypeAlias = dict[tuple[str, ...], float]  # by a metric's name and the values of its labels
Chosen: TypeAlias = Callable[[Any], ColumnElement[bool]]  # a condition on a column of run ids

# The most runs or nights that one transaction deletes, and the most such transactions in one `reconcile`.
AT_ONCE, TRANSACTIONS = 500, 4
LICENSES = {
    "downgraded_licenses_total": Run.licenses_downgraded,
    "unlinked_licenses_total": Run.learners_unlinked,
    "protected_licenses_total": Run.learners_protected,
}
# Outcomes of an address lookup that the LMS refused. 401, 408 and 429 are not refusals: these calls are retried.
_REFUSED = re.compile(r"http_4(?!01|08|29)\d\d")


def added(one: Values, other: Values) -> Values:
    """Return both, with the values of the same series added."""
    return {key: one.get(key, 0) + other.get(key, 0) for key in one.keys() | other.keys()}


def sums_of_all(session: Session, fresh: Chosen) -> tuple[Values, Values]:
    """Return `sums` of all runs, including the pruned ones in the first part."""
    while True:
        pruned = _pruned(session)
        old, new = sums(session, None, fresh)
        if pruned == _pruned(session):  # else runs pruned meanwhile may be counted twice or not at all
            return added(old, pruned), new


def sums(session: Session, which: Chosen | None, fresh: Chosen) -> tuple[Values, Values]:
    """Sum up the runs in `which` (all if None) in two parts: those that are not `fresh`, and those that are.

    Values are numbers of runs, steps, waits, licenses or calls; the series "seconds" is the time spent in LMS calls.
    """
    new: Values = defaultdict(float)
    old: Values = defaultdict(float)

    def grouped(run_id: Any, by: Sequence[Any], *summed: Any) -> Iterator[tuple[Values, Sequence[str], Sequence[Any]]]:
        """Yield (the part that a row adds to, the values it is grouped by, its sums)."""
        settled: ColumnElement[int] = case((fresh(run_id), 0), else_=1).label("settled")
        query: Rows = select(settled, *by, *summed).group_by("settled", *by)
        for is_settled, *row in session.execute(query.where(which(run_id)) if which else query):
            yield (old if is_settled else new), row[: len(by)], row[len(by) :]

    began = {step.name: getattr(Run, step.began_at) for step in order.STEPS}
    counted = [func.sum(column) for column in LICENSES.values()] + [func.count(column) for column in began.values()]
    for into, (phase, dry_run), (count, *more) in grouped(Run.id, (Run.phase, Run.dry_run), func.count(), *counted):
        if phase not in order.ENDED or not dry_run:
            into["ended_runs_total" if phase in order.ENDED else "live_runs", phase] += count
        for name, number in zip(LICENSES, more, strict=False):
            into[name,] += 0 if dry_run else float(number)
        for step, number in zip(began, more[len(LICENSES) :], strict=True):
            into["steps_total", step] += number
    for into, labels, (count,) in grouped(Retry.run_id, (Retry.step, Retry.reason), func.count()):
        into["retries_total", *labels] += count
    buckets = (LmsCall.step, LmsCall.outcome, LmsCall.le)
    of_calls = (func.sum(LmsCall.calls), func.sum(LmsCall.seconds))
    for into, (*labels, le), (calls, seconds) in grouped(LmsCall.run_id, buckets, *of_calls):
        into["calls", *labels, le] += float(calls)
        if labels[0] == "learners" and _REFUSED.fullmatch(labels[1]):
            into["unchecked_addresses_total",] += float(calls)
        into["seconds", *labels] += seconds
    return old, new


def prune(database: Database, keep: timedelta, latest: datetime | None) -> int:
    """Delete runs that ended, and nights that began, more than `keep` ago. Return the number of runs.

    One call deletes at most AT_ONCE * TRANSACTIONS runs and AT_ONCE nights. It keeps the newest run of each enterprise,
    nights that may still begin, such as the `latest` scheduled one, and the newest opened night older than `keep`.
    """
    pruned = 0
    with suppress(IntegrityError):  # another `reconcile` has just inserted the same series
        for _ in range(TRANSACTIONS):
            count = database.transact(partial(_prune_runs, keep=keep))
            pruned += count
            if count < AT_ONCE:
                break
        if latest:
            database.transact(partial(_prune_nights, keep=keep, latest=latest))
    return pruned


def old_runs(before: datetime) -> Rows:
    """Select the ids of at most AT_ONCE runs that ended before this moment and can be deleted, oldest first."""
    later = aliased(Run)
    newer = exists().where(
        later.enterprise_customer_uuid == Run.enterprise_customer_uuid,
        later.opened_at > Run.opened_at,
        or_(later.dry_run.is_(False), Run.dry_run.is_(True)),  # `status` shows a dry run only if there is no other run
    )
    ended = (Run.opened_at < before, Run.ended_at < before, Run.live.is_(None), Run.night_after.is_(None))
    return select(Run.id).where(*ended, newer).order_by(Run.opened_at).limit(AT_ONCE)


def _prune_runs(session: Session, keep: timedelta) -> int:
    found = session.scalars(old_runs(_ago(session, keep))).all()
    # If two `reconcile` tasks run at once, the second waits here and then finds none of these runs.
    ids: Sequence[UUID] = session.scalars(select(Run.id).where(OneOf(Run.id, "ids", found)).with_for_update()).all()
    if not ids:
        return 0
    old, _ = sums(session, lambda run_id: OneOf(run_id, "ids", ids), lambda _: false())
    for key, value in sorted(old.items()):
        if value:
            _add(session, " ".join(key), value)
    for run_id in (LmsCall.run_id, Retry.run_id, Run.id):
        session.execute(delete(run_id.class_).where(OneOf(run_id, "ids", ids)))
    return len(ids)


def _add(session: Session, series: str, value: float) -> None:
    known = update(Pruned).where(Pruned.series == series)
    if not changed(session, known.values(value=Pruned.value + value)):
        session.execute(insert(Pruned).values(series=series, value=value))


def _pruned(session: Session) -> Values:
    return {tuple(series.split(" ")): value for series, value in session.execute(select(Pruned.series, Pruned.value))}


def _prune_nights(session: Session, keep: timedelta, latest: datetime) -> None:
    before = _ago(session, keep)
    whole = select(func.max(Night.scheduled_for)).where(Night.tries > 0, Night.lease_until.is_(None))
    newest = session.scalar(whole.where(Night.opened_at < before))
    if newest:
        settled = or_(Night.lease_until.is_(None), Night.tries >= MAX_TRIES)
        old = select(Night.scheduled_for).where(Night.opened_at < before, settled)
        old = old.where(Night.scheduled_for < min(newest, latest)).order_by(Night.scheduled_for).limit(AT_ONCE)
        session.execute(delete(Night).where(Night.scheduled_for.in_(session.scalars(old).all())))


def _ago(session: Session, keep: timedelta) -> datetime:
    """Return the moment `keep` ago. Read first, because PostgreSQL uses no index to compare with clock_timestamp()."""
    moment: datetime = session.execute(select(DatabaseNow(-(keep // timedelta(seconds=1))))).scalar_one()
    return moment
