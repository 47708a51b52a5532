"""`license-expiry stop`, `pause` and `resume`."""

from uuid import UUID

import click

from worker.cli import tables
from worker.cli.options import as_json, exiting, names_for, open_database, operator
from worker.cli.watch import watch_runs
from worker.errors import BadArgument
from worker.ledger import waits
from worker.ledger.order import ENDED, Phase
from worker.ledger.runs import stop_live_runs, stop_run
from worker.logs import get_logger
from worker.runs.request import parse_reason

log = get_logger(__name__)

ENDING = "The runs end after their calls in flight"


def _sentence(_context: click.Context, _option: click.Parameter, text: str) -> str:
    try:
        return parse_reason(text)
    except BadArgument as error:
        raise click.BadParameter(f"{error}.") from None


reason = click.option("--reason", required=True, metavar="TEXT", callback=_sentence, help="Why; kept in the ledger.")


@click.command()
@click.argument("run_id", metavar="[RUN]", required=False, type=click.UUID)
@click.option("--enterprise", type=click.UUID, help="The live run of this customer.")
@click.option("--all", "every", is_flag=True, help="All live runs.")
@reason
@click.option("--no-wait", is_flag=True, help="Do not wait for the runs to end.")
@as_json
@exiting
def stop(run_id: UUID | None, enterprise: UUID | None, every: bool, reason: str, no_wait: bool, as_json: bool) -> int:
    """Stop live runs, and wait until they have ended. It asks for no confirmation.

    Calls in flight are finished and recorded, and nothing is sent after them. The next night does the rest. Exit
    status: 0 all have ended, 1 some still end.

    \b
    One run:         license-expiry stop RUN --reason "wrong plan"
    An enterprise's: license-expiry stop --enterprise UUID --reason "contract extended"
    A whole night:   license-expiry pause --reason "wrong list"
                     license-expiry stop --all --reason "wrong list"
                     license-expiry resume
    """  # noqa: D301, click's own mark
    if [run_id is not None, enterprise is not None, every].count(True) != 1:
        raise click.UsageError("Give one of RUN, --enterprise UUID and --all.")
    _, database = open_database()
    if run_id is not None:
        runs = stop_run(database, run_id, operator(), reason)
    else:
        runs = stop_live_runs(database, enterprise, operator(), reason)
    runs = watch_runs(database, [run.id for run in runs], wait=not no_wait, quiet=as_json, afterwards=ENDING)
    names = names_for(database, runs)
    if as_json:
        why = ("stopped_by", "stop_reason")
        tables.show_json(
            {"runs": [tables.described(run, names) | {name: getattr(run, name) for name in why} for run in runs]}
        )
    else:
        tables.show_runs(runs, as_json, "No run is live.", names)
        for run in (run for run in runs if run.phase not in ENDED):
            said = tables.flattened(f"Run {run.id} is stopped by {run.stopped_by}: {run.stop_reason}")
            tables.err.print(f"{said}. {ENDING}.", markup=False, highlight=False, soft_wrap=True)
        for run in (run for run in runs if run.phase in ENDED and run.phase != Phase.STOPPED):
            tables.err.print(f"Run {run.id} is already {run.phase}: there is nothing to stop.", soft_wrap=True)
    return 0 if all(run.phase in ENDED for run in runs) else 1


@click.command()
@reason
@as_json
@exiting
def pause(reason: str, as_json: bool) -> int:
    """Pause all runs until `resume`: no step continues, no run starts, scheduled nights wait.

    Steps at work stop before their next LMS call. If already paused, it changes nothing and shows who paused.

    For example: license-expiry pause --reason "the LMS is upgraded"
    """
    _, database = open_database()
    standing = waits.pause(database, operator(), reason)
    tables.show_json({"paused": tables.describe_pause(standing)}) if as_json else tables.show_pause(standing)
    return 0


@click.command()
@as_json
@exiting
def resume(as_json: bool) -> int:
    """End the pause. Runs resume within about a minute. The newest night that was held back begins within five.

    For example: license-expiry resume
    """
    _, database = open_database()
    ended = waits.resume(database)
    log.warning("pause ended", by=operator(), pause=ended and waits.told_of_pause(ended))
    if as_json:
        tables.show_json({"paused": None, "ended": ended and tables.describe_pause(ended)})
    elif ended:
        told = tables.flattened(waits.told_of_pause(ended)).removeprefix("everything is paused")
        tables.out.print(f"Resumed. Everything was paused{told}", markup=False, highlight=False, soft_wrap=True)
    else:
        tables.out.print("Nothing is paused.")
    return 0
