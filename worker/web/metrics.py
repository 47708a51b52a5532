"""Prometheus metrics: sums and ages from the ledger, and the work due now. docs/reference/metrics.md lists them.

Runs that ended long ago are summed up once in each process. A scrape reads only the runs since then.
"""

import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from importlib.metadata import version
from itertools import accumulate

from prometheus_client import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from sqlalchemy import func, select
from sqlalchemy.orm import Session, aliased

from worker.db.ledger_tables import Heartbeat, HeldLicense, Night, Run, Wait
from worker.db.sql import DatabaseNow, Rows
from worker.db.transactions import Database
from worker.due.forecast import due_rows, plan_rows
from worker.due.scope import scope_of
from worker.errors import LicenseExpiryError
from worker.ledger import lms_calls, order, past, runs, waits
from worker.ledger.past import Values, added
from worker.logs import get_logger
from worker.settings import DatabaseSettings
from worker.web import matters
from worker.web.history import read_once

log = get_logger(__name__)

# A run that was opened this long ago and is not live does not change any more: a commit takes far less.
SETTLED = timedelta(hours=1)
DUE_SECONDS = 300.0

_METRICS: dict[str, tuple[tuple[str, ...], str]] = {
    "build_info": (("version",), "1, with the version of license-expiry."),
    "last_finished_night_timestamp_seconds": ((), "When the newest finished scheduled night finished; 0: none has."),
    "first_night_timestamp_seconds": ((), "When the first scheduled night was recorded; absent if none was."),
    "last_reconcile_timestamp_seconds": ((), "When reconcile, sent by beat, last succeeded."),
    "paused_since_timestamp_seconds": ((), "When an operator paused everything; 0: no pause."),
    "live_runs": (("phase",), "Runs that have not ended."),
    "oldest_live_run_age_seconds": ((), "Seconds since the oldest live run was opened; 0: there is none."),
    "oldest_queued_run_age_seconds": ((), "Seconds since the oldest queued run was opened; 0: there is none."),
    "waiting_runs": (("reason",), "Live runs that wait before a step is retried."),
    "outage_since_timestamp_seconds": ((), "When the present outage or throttling of the LMS began; 0: none."),
    "outage_next_try_timestamp_seconds": ((), "When the LMS is probed next; 0: it has no outage."),
    "ended_runs_total": (("phase",), "Runs that have ended, without dry runs."),
    "failed_enterprises": (("reason",), "Enterprises whose newest ended run failed or was abandoned."),
    "steps_total": (("step",), "Steps that began."),
    "retries_total": (("step", "reason"), "Waits of steps before a retry; one outage counts as one wait."),
    "downgraded_licenses_total": ((), "Licenses whose downgrade the LMS confirmed."),
    "unlinked_licenses_total": ((), "Licenses whose learner was unlinked."),
    "protected_licenses_total": ((), "Licenses whose learner another license protected; each run counts them again."),
    "unchecked_addresses_total": ((), "Address lookups that the LMS refused; the licenses' addresses were used."),
    "held_licenses": (("step", "reason"), "Licenses on the held list."),
    "due_enterprises": ((), "Enterprises with work due, as last counted."),
    "due_downgrades": ((), "Licenses to be downgraded, as last counted."),
    "due_unlinks": ((), "Licenses whose learner is to be unlinked, as last counted."),
    "due_without_email": ((), "Licenses whose learner cannot be unlinked without an e-mail address, as last counted."),
    "plans_waiting_for_renewal": ((), "Expired plans with an overdue, unprocessed renewal, as last counted."),
    "due_counted_timestamp_seconds": ((), "When the work due was last counted."),
}
_CALLS = "HTTP calls to the LMS by duration; stored when their step ends or the run is released."
_BOUNDS = [lms_calls.bucket(bound) for bound in lms_calls.BUCKETS]


_LIVE = select(func.min(Run.opened_at)).where(Run.live.is_not(None))
_MOMENTS: Rows = select(
    DatabaseNow(),
    _LIVE.scalar_subquery(),
    _LIVE.where(Run.phase == order.Phase.QUEUED).scalar_subquery(),
    select(Heartbeat.reconciled_at).scalar_subquery(),
    select(func.min(Night.opened_at)).scalar_subquery(),
    select(Wait.since).where(Wait.kind == waits.PAUSE).scalar_subquery(),
)
_UNDONE = select(Run.scheduled_for).where(Run.live.is_not(None), Run.scheduled_for.is_not(None))
_FINISHED_NIGHT = (
    select(Night.scheduled_for, Night.opened_at)
    .where(Night.tries > 0, Night.lease_until.is_(None), Night.scheduled_for.not_in(_UNDONE))
    .order_by(Night.scheduled_for.desc())
    .limit(1)
)


class _Due:
    """Counts the work due in the background, at most once in DUE_SECONDS, and only if somebody scrapes."""

    def __init__(self, database: Database, settings: DatabaseSettings) -> None:
        self._database, self._settings = database, settings
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._again_at = 0.0
        self._counted: Values = {}
        self._error = ""

    def latest(self) -> Values:
        """Return the last counts at once, {} before the first. Starts a new count if the last is too old."""
        with self._lock:
            counting = self._thread and self._thread.is_alive()
            if not counting and time.monotonic() >= self._again_at:
                self._thread = threading.Thread(target=self._count, name="due", daemon=True)
                self._thread.start()
        return self._counted

    def _count(self) -> None:
        try:
            now = self._database.now()
            plans = plan_rows(self._database, scope_of(self._database, self._settings, now), detailed=False)
            rows = due_rows(plans)
            self._counted = {
                ("due_enterprises",): len(rows),
                ("due_downgrades",): sum(row["downgrades"] for row in rows),
                ("due_unlinks",): sum(row["unlinks"] for row in rows),
                ("plans_waiting_for_renewal",): sum(plan.waiting_since is not None for plan in plans),
                ("due_without_email",): sum(plan.without_email for plan in plans),
                ("due_counted_timestamp_seconds",): now.timestamp(),
            }
        except LicenseExpiryError as error:
            if str(error) != self._error:  # log a lasting error, such as a missing privilege, only once
                log.warning("the work due could not be counted", error=str(error))
            self._error = str(error)
        finally:
            self._again_at = time.monotonic() + DUE_SECONDS


class Metrics:
    """The metrics of one ledger, as a collector for prometheus_client."""

    def __init__(self, database: Database, settings: DatabaseSettings) -> None:
        self._database, self._due = database, _Due(database, settings)
        self._lock = threading.Lock()
        # `_past` has the sums of the runs opened before `_until`; none of these runs changes any more.
        self._until: datetime | None = None
        self._past: Values = {}

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus's text format. The work due may be up to 5 minutes old.

        The first call reads the whole history. Raises Unavailable or Unusable if the ledger cannot be read.
        """
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Read the ledger and yield every metric (prometheus_client's hook)."""
        with self._lock:  # else parallel scrapes would all read the whole history at first
            since = self._until
            self._until, settled, fresh, values = read_once(self._database, lambda session: _read(session, since))
            self._past = added(self._past, settled)
            sums = added(added(_zeros(), self._past), fresh)
        values |= sums | self._due.latest() | {("build_info", version("license-expiry")): 1}
        yield from _families(values)


def _read(session: Session, since: datetime | None) -> tuple[datetime, Values, Values, Values]:
    """Return (until when all runs are settled, sums of those opened from `since` to then, later sums, gauges)."""
    now, live, queued, reconciled, first, paused = session.execute(_MOMENTS).one()
    until = min(now - SETTLED, live or now)
    until = max(until, since or until)  # does not go back if the clock does
    values: Values = {
        ("last_finished_night_timestamp_seconds",): _last_finished_night(session),
        ("last_reconcile_timestamp_seconds",): reconciled.timestamp(),
        ("paused_since_timestamp_seconds",): paused.timestamp() if paused else 0,
        ("oldest_live_run_age_seconds",): (now - live).total_seconds() if live else 0,
        ("oldest_queued_run_age_seconds",): (now - queued).total_seconds() if queued else 0,
    }
    if first:
        values["first_night_timestamp_seconds",] = first.timestamp()
    held = select(HeldLicense.step, HeldLicense.reason, func.count()).group_by(HeldLicense.step, HeldLicense.reason)
    values |= {("held_licenses", step, reason): count for step, reason, count in session.execute(held)}
    failed = matters.by_reason(matters.failed_enterprises(session, now))
    values |= {("failed_enterprises", reason): len(of_reason) for reason, of_reason in failed.items()}
    values |= _waits(session)
    return until, *_sums(session, since, until), values


def _waits(session: Session) -> Values:
    waiting = session.execute(select(Run.waits_for, func.count()).where(*runs.WAITING).group_by(Run.waits_for))
    values: Values = {("waiting_runs", str(reason)): count for reason, count in waiting}
    outage = waits.standing_outage(session)
    since, again = (outage.since, outage.again_at) if outage else (None, None)
    return values | {
        ("outage_since_timestamp_seconds",): since.timestamp() if since else 0,
        ("outage_next_try_timestamp_seconds",): again.timestamp() if again else 0,
    }


def _last_finished_night(session: Session) -> float:
    night = session.execute(_FINISHED_NIGHT).one_or_none()
    if night is None:
        return 0.0
    last = session.scalar(select(func.max(Run.ended_at)).where(Run.scheduled_for == night.scheduled_for))
    opened: datetime = night.opened_at
    return max(opened, last or opened).timestamp()


def _sums(session: Session, since: datetime | None, until: datetime) -> tuple[Values, Values]:
    """Return the sums of the runs opened from `since` (None: the start) to `until`, and of those opened later."""

    def opened_since(moment: datetime) -> past.Chosen:
        other = aliased(Run)
        return lambda run_id: run_id.in_(select(other.id).where(other.opened_at >= moment))

    if since is None:
        return past.sums_of_all(session, opened_since(until))
    return past.sums(session, opened_since(since), opened_since(until))


def _zeros() -> Values:
    """Series exported as 0 before their first event, so that rate() sees the first increase."""
    phases = {("ended_runs_total" if phase in order.ENDED else "live_runs", phase): 0.0 for phase in order.Phase}
    steps = {("steps_total", step.name): 0.0 for step in order.STEPS}
    return phases | steps | {(name,): 0.0 for name in (*past.LICENSES, "unchecked_addresses_total")}


def _families(values: Values) -> Iterator[Metric]:
    for name, (labels, text) in _METRICS.items():
        kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
        family = kind(f"license_expiry_{name}", text, labels=labels)
        for key in sorted(key for key in values if key[0] == name):
            family.add_metric(key[1:], values[key])
        yield family
    durations = HistogramMetricFamily("license_expiry_lms_call_duration_seconds", _CALLS, labels=("step", "outcome"))
    for key in sorted(key for key in values if key[0] == "seconds"):
        calls = accumulate(values.get(("calls", *key[1:], le), 0) for le in _BOUNDS)
        durations.add_metric(key[1:], list(zip(_BOUNDS, calls, strict=True)), values[key])
    yield durations
