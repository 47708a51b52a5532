"""The command line: `python -m simulator serve` and `python -m simulator make-data`."""

import asyncio
import signal
from datetime import UTC, datetime
from pathlib import Path

import click
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from simulator.data.rows import Data
from simulator.data.schema import UuidForm, create_tables, table
from simulator.data.showcase import CASES, bulk, demo, read_demo
from simulator.lms.core import Lms
from simulator.lms.server import serve as serve_lms
from worker.settings import urls
from worker.settings.sources import WrongValue

NO_SECRET = "not-a-secret"


def _or_file(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Click callback: an option's value, or with @ the content of the file that it names."""
    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text().strip()
    except OSError as error:
        raise click.BadParameter(f"{value[1:]} cannot be read: {error.strerror}") from None


database_option = click.option(
    "--database",
    metavar="URL",
    callback=_or_file,
    help="A URL as DATABASE_URL takes it: sqlite:////tmp/try.db, postgresql://user@host/name, mysql://user@host/name; "
    "or @ and the name of a file that contains it.",
)


@click.group()
def main() -> None:
    """Simulate an LMS, and make license-manager data for it.

    \b
    Try it:
      python -m simulator make-data --database sqlite:////tmp/try.db --demo
      python -m simulator serve --database sqlite:////tmp/try.db

    Not for production: the data is invented, and the LMS forgets everything when it stops.
    """  # noqa: D301  # click reads \b as one character


@main.command()
@database_option
@click.option("--port", default=8000, show_default=True, help="Port to listen on; 0 takes any free one.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--latency", default=0.0, show_default=True, metavar="SECONDS", help="How long each call takes.")
@click.option("--client-id", default="license-expiry", show_default=True, help="The client id that gets a token.")
@click.option(
    "--client-secret",
    default=NO_SECRET,
    show_default=True,
    callback=_or_file,
    help="Its secret, or @ and the name of a file that contains it.",
)
@click.option("--demo", "is_demo", is_flag=True, help="First make the demo's data, unless the database has it.")
@click.option("--staff/--not-staff", default=True, show_default=True, help="Whether the service user is staff.")
@click.option(
    "--throttle", type=click.Choice(["service", "other"]), help="Throttle calls as the LMS does for such a user."
)
def serve(
    database: str | None,
    port: int,
    host: str,
    latency: float,
    client_id: str,
    client_secret: str,
    is_demo: bool,
    staff: bool,
    throttle: str | None,
) -> None:
    """Serve the LMS's token endpoint, its two enterprise calls and its list of learners until Ctrl-C.

    With --database it knows the licenses and learners of that database. Without, it knows nobody until it is seeded.

    \b
    Control it while it runs (JSON in, JSON out), under /_simulator/:
      GET  journal, counts, state, faults
      POST faults [{"kind": "downgrade", "nth": 2, "status": 503}]    replaces all faults
      POST faults [{"containing": "a@x.example", "status": 403, "body": "<html>"}]   like a firewall
      POST faults [{"longer_than": 2000, "status": 413}]
      POST throttle {"calls": 60, "seconds": 60}, or null             429 with Retry-After
      POST throttle {"whom": "service"}, or "other"                   the LMS's own limits
      POST atomic {"atomic": false}                                   a 500 keeps the work done before it
      POST latency {"seconds": 0.5}
      POST staff {"staff": false}                                     downgrades work, unlinks get 404
      POST change-email {"user_id": 7, "email": "new@x.example"}      licenses keep the old address
      POST forget-tokens, release, reseed, reset                      no body
    """  # noqa: D301
    if is_demo and not database:
        raise click.UsageError("name the database for the demo: --database URL")
    try:
        engine = _engine(database) if database else None
        if engine and is_demo and read_demo(engine) is None:
            _refuse_full(engine, "char32")
            _make_demo(Data(engine))
        lms = Lms(client_id, client_secret, latency, engine=engine, staff=staff)
        lms.throttle(whom=throttle or "")
        asyncio.run(_serve(lms, host, port))
    except SQLAlchemyError as error:
        raise click.ClickException(
            f"cannot read license-manager's tables: {_reason(error)}. Make them with make-data first."
        ) from None
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}:{port}: {error.strerror}") from None


@main.command("make-data")
@database_option
@click.option("--demo", "is_demo", is_flag=True, help=f"{len(CASES)} enterprises that show every rule.")
@click.option("--enterprises", type=click.IntRange(1), help="Number of plain enterprises to make instead.")
@click.option("--licenses", type=click.IntRange(0), help="Their number of licenses in all; half are due.")
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same UUIDs.")
@click.option(
    "--uuid-form",
    type=click.Choice(["char32", "native"]),
    default="char32",
    show_default=True,
    help="Type of UUID columns on MySQL and MariaDB: native is MariaDB 10.7 and later.",
)
def make_data(
    database: str | None,
    is_demo: bool,
    enterprises: int | None,
    licenses: int | None,
    seed: int,
    uuid_form: UuidForm,
) -> None:
    """Make license-manager's tables in an empty database and fill them: with --demo, or by numbers."""
    if database is None:
        raise click.UsageError("name the database to fill: --database URL")
    numbers = enterprises is not None and licenses is not None
    if is_demo == numbers or (is_demo and (enterprises is not None or licenses is not None)):
        raise click.UsageError("give either --demo, or both --enterprises and --licenses")
    engine = _engine(database)
    try:
        _refuse_full(engine, uuid_form)
        data = Data(engine, seed, datetime.now(UTC))
        if is_demo:
            _make_demo(data)
        else:
            bulk(data, enterprises or 0, licenses or 0)
            click.echo(f"{enterprises} enterprises with {licenses} licenses made.")
    except SQLAlchemyError as error:
        raise click.ClickException(f"cannot fill the database: {_reason(error)}") from None


def _make_demo(data: Data) -> None:
    made = demo(data, data.now)
    for enterprise in made.enterprises:
        click.echo(f"{enterprise.uuid}  {enterprise.name:<20}  {enterprise.shows}")
    listed = ",".join(map(str, made.unlink_enabled))
    click.echo(f"\nCUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED={listed}")


def _refuse_full(engine: Engine, uuid_form: UuidForm) -> None:
    create_tables(engine, uuid_form)
    with engine.connect() as connection:
        there = connection.execute(select(func.count()).select_from(table(engine, "customeragreement"))).scalar()
    if there:
        what = "the demo already" if read_demo(engine) else f"{there} customer agreements already"
        raise click.ClickException(f"this database has {what}: use an empty one")


def _engine(database: str) -> Engine:
    try:
        return create_engine(urls.database(database))
    except WrongValue as error:
        raise click.ClickException(f"--database {error}. {error.remedy}") from None
    except (ArgumentError, ImportError, ValueError) as error:
        raise click.ClickException(f"--database cannot be used: {error}") from None


def _reason(error: SQLAlchemyError) -> str:
    """Return the driver's own message, without the statement and its parameters."""
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


async def _serve(lms: Lms, host: str, port: int) -> None:
    stopping = asyncio.Event()
    for one in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(one, stopping.set)

    def ready(listening: int) -> None:
        click.echo(f"LMS_URL=http://{host}:{listening}")
        click.echo(f"BACKEND_SERVICE_EDX_OAUTH2_KEY={lms.client_id}")
        if lms.client_secret == NO_SECRET:  # another secret is known already, and must not reach a log
            click.echo(f"BACKEND_SERVICE_EDX_OAUTH2_SECRET={lms.client_secret}")

    await serve_lms(lms, stopping.wait(), ready, port, host)


if __name__ == "__main__":
    main(prog_name="python -m simulator")
