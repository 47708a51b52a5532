"""The command license-expiry."""

import logging
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any
from uuid import UUID

import click
from sqlalchemy.exc import DBAPIError

from worker import logs
from worker.cli import broker, in_process, tables
from worker.cli.explain import explain
from worker.cli.options import as_json, exiting, names_for, narrowing, open_database, operator, with_names
from worker.cli.stop import pause, resume, stop
from worker.cli.watch import live_runs, watch_runs
from worker.db.engine import cannot_be_used
from worker.deps import Deps, make_deps
from worker.due import forecast
from worker.due.scope import scope_of
from worker.errors import Unusable
from worker.ledger import migrations, order, waits
from worker.ledger.held import held_licenses
from worker.ledger.identity import set_lms
from worker.ledger.runs import newest_runs
from worker.runs.request import check_against_database, parse_request, unknown_enterprises
from worker.runs.start import start_runs
from worker.settings import load_settings
from worker.settings.urls import http as http_address


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="license-expiry")
def main() -> None:
    """Downgrade the enrollments of expired licenses, then unlink their learners, enterprise by enterprise.

    Settings come from the environment, or from the YAML file that LICENSE_EXPIRY_CFG names. Exit status: 0 all
    done, 1 something failed or is held, 2 wrong usage or settings.

    \b
    First time:      license-expiry init-db
    Check the setup: license-expiry doctor
    What is due:     license-expiry due
    Why, or when:    license-expiry explain LICENSE_UUID
    A night, now:    license-expiry run
    What happened:   license-expiry status; license-expiry held
    Stop it:         license-expiry pause; license-expiry stop; license-expiry resume
    As pages:        license-expiry serve
    As a file:       license-expiry report --html night.html
    Tab completion:  eval "$(_LICENSE_EXPIRY_COMPLETE=bash_source license-expiry)"   (or zsh_source)
    """  # noqa: D301, click's own mark


for command in (explain, stop, pause, resume):
    main.add_command(command)


@main.command("init-db")
@click.option("--lms-url", metavar="URL", help="The LMS that this database belongs to from now on.")
@as_json
@exiting
def init_db(lms_url: str | None, as_json: bool) -> int:
    """Create or upgrade the ledger's tables in license-manager's database.

    It creates or changes only tables named license_expiry_…. Running it again is harmless. The first night records the
    LMS that the database belongs to. Workers with another LMS_URL refuse to work there; --lms-url changes that.

    For example: license-expiry init-db && license-expiry due
    """
    _, database = open_database(ledger=False)
    try:
        address = None if lms_url is None else http_address(lms_url)
    except ValueError as error:
        raise click.UsageError(f"--lms-url {error}") from None
    try:
        migrations.upgrade(database.engine)
        if address:
            set_lms(database, address)
    except DBAPIError as error:
        raise Unusable(*cannot_be_used(database.engine, error)) from error
    tables.show_json({"ledger": "ready"}) if as_json else tables.out.print("The ledger's tables are ready.")
    return 0


@main.command()
@click.option("--for", "process", type=click.Choice(["serve"]), help="Check only what this process needs.")
@as_json
@exiting
def doctor(process: str | None, as_json: bool) -> int:
    """Check everything a night needs, and say how to fix what is missing. Changes nothing.

    It checks settings, database, ledger, clocks, broker and each LMS call. The calls it sends concern no learner. Exit
    status: 0 when nothing is wrong, else 1.

    For example: license-expiry doctor --json
    """
    from worker.cli.doctor import examine, examine_serve

    logs.configure("keyvalue", logging.ERROR)
    return tables.show_findings(examine_serve() if process else examine(), as_json)


@main.command()
@narrowing
@click.option("--csv", "as_csv", is_flag=True, help="Print a line for each plan, as CSV.")
@as_json
@exiting
def due(enterprises: tuple[UUID, ...], asked: dict[str, Any], as_csv: bool, as_json: bool) -> int:
    """Show what a night would do if it began now, by enterprise and plan. Changes nothing, sends nothing.

    \b
    The next night:                    license-expiry due
    For a spreadsheet:                 license-expiry due --csv > due.csv
    A first night on an old database:  license-expiry due --expired-after 2026-01-01
    """  # noqa: D301, click's own mark
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other.")
    settings, database = open_database()
    request = parse_request(**asked)
    as_of = database.now()
    check_against_database(database, request, frozenset(enterprises), as_of)
    scope = scope_of(database, settings, as_of, request)
    scopes = [replace(scope, enterprise=enterprise) for enterprise in sorted(set(enterprises))] or [scope]
    with tables.counting(quiet=as_json) as progress:
        by_plan = [row for scope in scopes for row in forecast.plan_rows(database, scope, progress=progress)]
    for error in unknown_enterprises(settings, database).values():
        tables.err.print(f"Warning: {error}", markup=False, soft_wrap=True)
    by_enterprise = with_names(database, forecast.due_rows(by_plan))
    if as_csv:
        tables.show_csv([field.name for field in fields(forecast.PlanRow)], map(asdict, by_plan))
    elif as_json:
        tables.show_json({"enterprises": by_enterprise, "plans": list(map(asdict, by_plan))})
    else:
        tables.show_due(by_enterprise, by_plan, settings.UNLINK_LIMIT)
    return 0


FROM_FLOWER = """\b
From a browser: Runs, in Flower. From Flower's API; curl asks for the password of `operator`:
  flower=http://127.0.0.1:5555/api/task/async-apply/license_expiry
  curl -u operator $flower.run_nightly -d '{}'
  curl -u operator $flower.run_nightly -d '{"kwargs": {"dry_run": true}}'
  curl -u operator $flower.run_enterprise -d '{"kwargs": {"enterprise_customer_uuid": "UUID"}}'
  curl -u operator $flower.run_enterprise -d \\
    '{"kwargs": {"enterprise_customer_uuid": "UUID", "force": true, "reason": "why"}}'
"""


@main.command(epilog=FROM_FLOWER)
@narrowing
@click.option("--force", is_flag=True, help="Send the licenses of processed plans, and held ones, again.")
@click.option(
    "--approve-unlinks",
    type=click.IntRange(1),
    metavar="N",
    help="Unlink up to N learners in this run, even above UNLINK_LIMIT.",
)
@click.option("--reason", help="Why; kept in the ledger. --force and --approve-unlinks need it.")
@click.option("--dry-run", is_flag=True, help="Send nothing; count what would be done.")
@click.option("--here", is_flag=True, help="Run in this process, without broker and worker.")
@click.option("--no-wait", is_flag=True, help="Do not wait for the runs to end.")
@as_json
@exiting
def run(
    enterprises: tuple[UUID, ...],
    asked: dict[str, Any],
    force: bool,
    approve_unlinks: int | None,
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
    Sending nothing:       license-expiry run --dry-run
    A plan, once more:     license-expiry run --plan UUID --force --reason "restored from backup"
    More than UNLINK_LIMIT:
      license-expiry run --enterprise UUID --approve-unlinks 1200 --reason "contract ended"
    """  # noqa: D301, click's own mark
    if approve_unlinks and len(enterprises) != 1:
        raise click.UsageError("--approve-unlinks is for one enterprise: name it with --enterprise.")
    deps = _deps(with_broker=not here)
    asked |= {"dry_run": dry_run, "force": force, "approve_unlinks": approve_unlinks}
    request = parse_request(**asked, reason=reason, triggered_by=operator())
    started = start_runs(deps, request, enterprises, (lambda *_: None) if here else broker.publisher(deps.ledger))
    for other in (run for run in started if not run.new):
        tables.err.print(f"Enterprise {other.enterprise} has a live run already: {other.run_id}", soft_wrap=True)
    if here:
        in_process.run_all(deps, started, request)
    waiting = not no_wait and not here
    runs = watch_runs(deps.database, [run.run_id for run in started], wait=waiting, quiet=as_json)
    status = tables.show_runs(runs, as_json, "Nothing is due.", names_for(deps.database, runs))
    undone = any(run.phase == order.Phase.STOPPED or (here and run.phase not in order.ENDED) for run in runs)
    return 1 if undone else status


@main.command()
@click.option("--enterprise", type=click.UUID, help="The runs of this customer, dry runs too, the newest first.")
@click.option("--watch", is_flag=True, help="Show live runs, including new ones, until all have ended.")
@as_json
@exiting
def status(enterprise: UUID | None, watch: bool, as_json: bool) -> int:
    """Show the newest run of each enterprise, or the runs of one.

    A dry run is shown only where there was no other, or with --enterprise.

    For example: license-expiry status --watch
    """
    _, database = open_database()
    pause = database.transact(waits.standing_pause)
    paused: dict[str, Any] = {"paused": tables.describe_pause(pause)} if pause else {}
    if not as_json:
        tables.show_pause(pause)
    if watch:
        watch_runs(database, (), wait=True, quiet=as_json, joining=live_runs(enterprise))
    runs = database.transact(lambda session: newest_runs(session, enterprise))
    if not as_json:
        tables.show_outage(database.transact(waits.standing_outage))
    hint = "" if enterprise else "All runs of one: status --enterprise UUID"
    none = f"Enterprise {enterprise} had no runs yet." if enterprise else "There were no runs yet."
    return tables.show_runs(runs, as_json, none, names_for(database, runs), hint, paused)


@main.command()
@as_json
@exiting
def held(as_json: bool) -> int:
    """List the licenses that the LMS refuses, with the reason and how often they were tried.

    They are tried again after 12 hours. Their plan stays unprocessed and their learner linked. Others are not affected.

    For example: license-expiry held --json
    """
    _, database = open_database()
    licenses = database.transact(held_licenses)
    names = names_for(database, licenses)
    if as_json:
        tables.show_json({"held": [tables.describe_held(license, names) for license in licenses]})
    elif licenses:
        tables.show_held(licenses, names)
    else:
        tables.out.print("No license is held.")
    return 1 if licenses else 0


@main.command()
@click.option("--address", default="127.0.0.1", show_default=True, help="Where to listen.")
@click.option("--port", default=8001, show_default=True, type=click.IntRange(1, 65535))
@exiting
def serve(address: str, port: int) -> int:
    """Serve the nights as web pages, with /metrics for Prometheus and /healthz, until stopped.

    Let only your proxy reach it: it asks for no password. It only reads the database.

    For example: license-expiry serve --port 8001
    """
    from worker.web import server

    settings, database = open_database(level=logging.INFO)
    server.serve(database, settings, address, port, broker.next_night())
    return 0


@main.command("report")
@click.option("--html", "file", required=True, metavar="FILE", help="Where to write it; - is standard output.")
@click.option("--night", metavar="KEY", help="As in the address of its page; else the newest.")
@exiting
def report_night(file: str, night: str | None) -> int:
    """Write a night as one HTML file to send around.

    \b
    The newest:  license-expiry report --html night.html
    Another:     license-expiry report --html night.html --night 2026-11-24T020000Z
    """  # noqa: D301, click's own mark
    from worker.web import html

    text = html.night_file(open_database()[1], night)
    if file == "-":
        click.echo(text)
        return 0
    tables.write_file(Path(file), text)
    tables.out.print(f"{file} is written.", markup=False, highlight=False, soft_wrap=True)
    return 0


def _deps(*, with_broker: bool) -> Deps:
    """Check the database, then make the command's dependencies; they are closed when the command ends."""
    settings = load_settings(broker=with_broker)
    logs.configure(settings.LOG_FORMAT, logging.WARNING)
    deps = make_deps(settings)
    click.get_current_context().call_on_close(deps.close)
    deps.database.require_schema()
    return deps
