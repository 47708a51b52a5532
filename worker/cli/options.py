"""Shared by all commands: options, exit statuses, the database, and the operator's name."""

import functools
import logging
import os
import re
from collections.abc import Callable, Sequence
from getpass import getuser
from socket import gethostname
from typing import Any
from uuid import UUID

import click

from worker import logs
from worker.cli import tables
from worker.db.engine import make_engine
from worker.db.ledger_tables import HeldLicense, Run
from worker.db.transactions import Database
from worker.due.enterprises import names_of
from worker.errors import BadArgument, LicenseExpiryError
from worker.runs.request import Request
from worker.settings import DatabaseSettings
from worker.settings.sources import load

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_NARROWING = (
    click.option("--enterprise", "enterprises", multiple=True, type=click.UUID, help="Only this customer; repeatable."),
    click.option("--plan", "plans", multiple=True, type=click.UUID, help="Only this plan, in both steps; repeatable."),
    click.option("--expired-after", help="Only plans that expired at or after this date-time (UTC)."),
    click.option("--expired-before", help="Only plans that expired at or before this date-time (UTC)."),
)
# A trigger's arguments as options of the command. Quoted text is a value.
_TYPED = {name: f"--{name.replace('_', '-')}" for name in Request.model_fields} | {"plan_uuids": "--plan"}
_ARGUMENT = re.compile(rf"'[^']*'|\b({'|'.join(_TYPED)})\b")


def narrowing(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that narrow a night: as `enterprises`, and `asked` for parse_request."""

    @functools.wraps(command)
    def wrapped(plans: tuple[UUID, ...], expired_after: str | None, expired_before: str | None, **others: Any) -> None:
        window = {"expired_after": expired_after, "expired_before": expired_before}
        command(asked={"plan_uuids": plans or None, **window}, **others)

    return functools.reduce(lambda done, option: option(done), reversed(_NARROWING), wrapped)


def exiting(command: Callable[..., int]) -> Callable[..., None]:
    """End a command with its exit status: 2 with our error's message, 1 with the traceback of any other."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            status = command(*args, **kwargs)
        except LicenseExpiryError as error:
            told = _as_typed(str(error)) if isinstance(error, BadArgument) else str(error)
            tables.err.print(told, style="red", markup=False, highlight=False, soft_wrap=True)
            status = 2
        except click.ClickException:
            raise
        except Exception as error:
            told = logs.places((type(error), error, error.__traceback__))
            tables.err.print(
                f"Unexpected error in license-expiry. Report it with this traceback.\n{told}",
                markup=False,
                highlight=False,
            )
            status = 1
        raise SystemExit(status)

    return wrapped


def _as_typed(text: str) -> str:
    return _ARGUMENT.sub(lambda found: _TYPED.get(found[0], found[0]), text)


def open_database(ledger: bool = True, level: int = logging.WARNING) -> tuple[DatabaseSettings, Database]:
    """The settings and the database of a command that sends nothing; its schema is checked, and it closes with it."""
    settings = load(DatabaseSettings)
    logs.configure(settings.LOG_FORMAT, level)
    database = Database(make_engine(settings.DATABASE_URL))
    click.get_current_context().call_on_close(database.engine.dispose)
    database.require_schema(ledger)
    return settings, database


def names_for(database: Database, of: Sequence[Run | HeldLicense]) -> dict[UUID, str]:
    """The names of the enterprises of these runs or held licenses, by UUID."""
    return database.transact(lambda session: names_of(session, [one.enterprise_customer_uuid for one in of]))


def with_names(database: Database, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """These rows, each with the name of its enterprise as `enterprise_customer_name`; None where it has none."""
    uuids = [UUID(row["enterprise_customer_uuid"]) for row in rows]
    names = database.transact(lambda session: names_of(session, uuids))
    return [row | {"enterprise_customer_name": names.get(uuid)} for row, uuid in zip(rows, uuids, strict=True)]


def operator() -> str:
    """The user of this command and its host, for the ledger."""
    try:
        user = getuser()
    except (KeyError, OSError):  # a container's user that has no name
        user = f"user {os.getuid()}"
    return f"{user} on {gethostname()}"[:255]
