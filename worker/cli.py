"""The command license-expiry."""

import functools
import logging
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import click
from sqlalchemy.exc import DBAPIError

from worker import dispatch, migrations, records, report, steps, waits
from worker.database import Database, cannot_be_used, make_engine
from worker.deps import Deps, make_deps
from worker.errors import LicenseExpiryError, Unusable
from worker.ledger import Step
from worker.models import ENDED, Run
from worker.scope import scope_of
from worker.settings import load_settings

log = logging.getLogger(__name__)

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def _sentences(command: Callable[..., int]) -> Callable[..., None]:
    """End a command with its exit status, and an error that we know as a sentence with exit status 2."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            status = command(*args, **kwargs)
        except LicenseExpiryError as error:
            report.err.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
            status = 2
        raise SystemExit(status)

    return wrapped


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="license-expiry")
def main() -> None:
    """Downgrade the enrolments of expired licenses, then unlink their learners, enterprise by enterprise.

    Settings come from the environment, or from the YAML file that LICENSE_EXPIRY_CFG names. Exit status: 0 all
    done, 1 something failed or is held, 2 wrong usage or settings.

    \b
    First time:      license-expiry init-db
    What would be:   license-expiry due
    A night, now:    license-expiry run
    What happened:   license-expiry status; license-expiry held
    """  # noqa: D301, click's own mark


@main.command("init-db")
@as_json
@_sentences
def init_db(as_json: bool) -> int:
    """Make the ledger's tables in license-manager's database, or bring them up to date.

    Only tables named license_expiry_… are made or changed. Doing it again does no harm.

    For example: license-expiry init-db && license-expiry due
    """
    database = Database(make_engine(load_settings().DATABASE_URL))
    click.get_current_context().call_on_close(database.engine.dispose)
    database.check(ledger=False)
    try:
        migrations.upgrade(database.engine)
    except DBAPIError as error:
        raise Unusable(cannot_be_used(database.engine, error)) from error
    report.show_json({"ledger": "ready"}) if as_json else report.out.print("The ledger's tables are ready.")
    return 0


@main.command()
@as_json
@_sentences
def due(as_json: bool) -> int:
    """Show what a night would do if it began now. Changes nothing, sends nothing.

    For example: license-expiry due --json
    """
    deps = _deps()
    scope = scope_of(deps.settings, dispatch.Request(), deps.database.now(), None)
    rows = report.due_rows(deps.database, scope)
    for sentence in dispatch.strangers(deps).values():
        report.err.print(f"Warning: {sentence}", markup=False, soft_wrap=True)
    if as_json:
        report.show_json({"enterprises": rows})
    elif rows:
        columns = ("enterprise", "plans", "downgrades", "unlinks", "protected")
        report.out.print(report.table(columns, [tuple(row.values()) for row in rows]))
    else:
        report.out.print("Nothing is due.")
    return 0


@main.command()
@click.option("--enterprise", "enterprises", multiple=True, type=click.UUID, help="Only this customer; repeatable.")
@click.option("--plan", "plans", multiple=True, type=click.UUID, help="Only this plan, in both steps; repeatable.")
@click.option("--expired-after", help="Only plans that expired at or after this date-time (UTC).")
@click.option("--expired-before", help="Only plans that expired at or before this date-time (UTC).")
@click.option("--force", is_flag=True, help="Send the licenses of processed plans, and held ones, again.")
@click.option("--reason", help="Why --force; kept in the ledger.")
@click.option("--dry-run", is_flag=True, help="Go through it all, but send nothing and count what would be done.")
@click.option("--here", is_flag=True, help="Do it in this process, with no broker and no worker.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the runs to end.")
@as_json
@_sentences
def run(
    enterprises: tuple[UUID, ...],
    plans: tuple[UUID, ...],
    expired_after: str | None,
    expired_before: str | None,
    force: bool,
    reason: str | None,
    dry_run: bool,
    here: bool,
    no_wait: bool,
    as_json: bool,
) -> int:
    """Start a run for each enterprise with work due, and wait for the runs to end.

    \b
    The whole night:       license-expiry run
    One enterprise:        license-expiry run --enterprise 378d5bf0-f67d-4bf7-8b2a-cbbc53d0f772
    A rehearsal:           license-expiry run --dry-run
    A plan, once more:     license-expiry run --plan UUID --force --reason "restored from backup"
    """  # noqa: D301, click's own mark
    deps = _deps(broker=not here)
    request = dispatch.parse_request(
        dry_run=dry_run,
        plan_uuids=plans or None,
        expired_after=expired_after,
        expired_before=expired_before,
        force=force,
        reason=reason,
    )
    started = dispatch.start(deps, request, enterprises, (lambda *_: None) if here else publisher())
    for other in (each for each in started if not each.new):
        report.err.print(f"Enterprise {other.enterprise} has a live run already: {other.run_id}", soft_wrap=True)
    if here:
        _run_all_here(deps, started, request)
    waiting = not no_wait and not here
    runs = report.watch(deps.database, [each.run_id for each in started], wait=waiting, quiet=as_json)
    status = report.show_runs(runs, as_json, "Nothing is due.")
    return 1 if here and any(each.phase not in ENDED for each in runs) else status


@main.command()
@click.option("--enterprise", type=click.UUID, help="The runs of this customer, the newest first.")
@click.option("--watch", is_flag=True, help="Show live runs until they have ended.")
@as_json
@_sentences
def status(enterprise: UUID | None, watch: bool, as_json: bool) -> int:
    """Show the newest run of each enterprise, or the runs of one.

    For example: license-expiry status --watch
    """
    deps = _deps()

    def read() -> Sequence[Run]:
        return deps.database.transact(lambda session: records.newest_runs(session, enterprise))

    runs = read()
    if watch:
        live = [each.id for each in runs if each.phase not in ENDED]
        report.watch(deps.database, live, wait=True, quiet=as_json)
        runs = read()
    return report.show_runs(
        runs, as_json, "There were no runs yet." if enterprise is None else f"Enterprise {enterprise} had no runs yet."
    )


@main.command()
@as_json
@_sentences
def held(as_json: bool) -> int:
    """List the licenses that the LMS refuses, with the reason and how often they were tried.

    They are tried again next night. Their plan stays unprocessed and their learner linked; nobody else is held up.

    For example: license-expiry held --json
    """
    licenses = _deps().database.transact(records.held_licenses)
    rows = [
        {
            "license_uuid": str(each.license_uuid),
            "enterprise_customer_uuid": str(each.enterprise_customer_uuid),
            "step": each.step,
            "reason": each.reason,
            "tries": each.tries,
            "first_held_at": each.first_held_at.isoformat(),
        }
        for each in licenses
    ]
    if as_json:
        report.show_json({"held": rows})
    elif rows:
        columns = ("license", "step", "reason", "tries", "first held (UTC)")
        cells = [
            (each.license_uuid, each.step, each.reason, each.tries, f"{each.first_held_at:%Y-%m-%d %H:%M}")
            for each in licenses
        ]
        report.out.print(report.table(columns, cells))
    else:
        report.out.print("No license is held.")
    return 1 if rows else 0


def _deps(broker: bool = False) -> Deps:
    """The command's own wiring, closed when the command ends; the database is looked at first."""
    deps = make_deps(load_settings(broker=broker))
    click.get_current_context().call_on_close(deps.close)
    deps.database.check()
    return deps


def publisher() -> dispatch.Publish:
    """Return tasks.publish, once the broker has answered; raises Unusable. Celery is loaded only here."""
    from kombu.exceptions import OperationalError

    from tasks import publish
    from worker.celery import app

    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
    except (OperationalError, OSError) as error:
        raise Unusable(
            f"The broker {connection.as_uri()} does not answer ({error}): check CELERY_BROKER_URL and the broker; or "
            "use --here, which needs none"
        ) from None

    def checked(enterprise: UUID, run_id: UUID) -> None:
        try:
            publish(enterprise, run_id)
        except OperationalError as error:
            raise Unusable(
                f"The broker went away ({error}): check CELERY_BROKER_URL and the broker. Run {run_id} stays queued: "
                "reconcile publishes it again. For the enterprises after it, start anew"
            ) from None

    return checked


def _stop_here(*_: Any) -> None:
    said = "Ending after the calls in flight. What is left stays live: run --here again goes on with it."
    report.err.print(said, soft_wrap=True)
    waits.stop()


def _run_all_here(deps: Deps, started: Sequence[dispatch.Started], request: dispatch.Request) -> None:
    for end in (signal.SIGINT, signal.SIGTERM):
        signal.signal(end, _stop_here)
    for each in started:
        _run_here(deps, each, request)


def _run_here(deps: Deps, started: dispatch.Started, request: dispatch.Request) -> None:
    """Do both steps of a run in this process; take up another's only when it asks for the same."""
    run = deps.database.transact(lambda session: session.get_one(Run, started.run_id))
    if run.phase in ENDED:  # refused as it was opened
        return
    asked, live = (scope_of(deps.settings, each, run.as_of, started.enterprise) for each in (request, run))
    if (asked, request.dry_run) != (live, run.dry_run):
        report.err.print(f"Run {run.id} asks for something else: not taken up.", soft_wrap=True)
        return
    owner = f"{socket.gethostname()}, process {os.getpid()}"
    for step in Step:
        more = True
        while more and not waits.stopping():
            try:
                outcome = steps.attempt(deps, run.id, started.enterprise, step, owner, lambda _: None)
            except Exception as error:
                if not isinstance(error, LicenseExpiryError):
                    log.exception("run %s", run.id)
                return  # the ledger has it, and the report shows it; the next enterprise is not to suffer
            if outcome.skipped and step is Step.UNLINK:
                report.err.print(f"Not done here: {outcome.skipped}. Try again then.", soft_wrap=True)
            more = outcome.more
