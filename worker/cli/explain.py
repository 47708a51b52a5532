"""`license-expiry explain`: why a learner still has access, or was unlinked, and when that will change."""

import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any
from uuid import UUID

import click
from rich.table import Table
from rich.text import Text
from sqlalchemy.orm import Session

from worker.cli import broker, tables
from worker.cli.options import as_json, exiting, open_database
from worker.cli.verdicts import Blocked, rules, verdict
from worker.db.ledger_tables import Wait
from worker.db.license_manager_tables import SubscriptionPlan
from worker.db.transactions import Database
from worker.due import explain as explaining, outlook, unlinks
from worker.due.explain import Explained, Outcome
from worker.due.scope import Scope, scope_of
from worker.due.statements import fetch
from worker.errors import BadArgument, Unavailable, Unusable
from worker.ledger import waits
from worker.ledger.runs import newest_runs

NEVER_AN_ARGUMENT = "An e-mail address is never an argument: --email asks for it"
MOST_ID = 2**31 - 1  # license-manager's column holds no more


def _uuids(_context: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> tuple[UUID, ...]:
    try:
        return tuple(map(UUID, given))
    except ValueError:  # it may be an address, so it is not repeated
        raise click.BadParameter(f"must be a UUID. {NEVER_AN_ARGUMENT}.") from None


def _user_id(_context: click.Context, _option: click.Parameter, given: str | None) -> int | None:
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 10 and int(given) <= MOST_ID):
        raise click.BadParameter(f"must be the number of an LMS user. {NEVER_AN_ARGUMENT}.")
    return int(given)


@click.command()
@click.argument("licenses", metavar="[LICENSE_UUID]", nargs=-1, callback=_uuids)
@click.option("--lms-user-id", metavar="N", callback=_user_id, help="All licenses of this LMS user.")
@click.option("--email", is_flag=True, help="All licenses of an e-mail address, read from a prompt or standard input.")
@as_json
@exiting
def explain(licenses: tuple[UUID, ...], lms_user_id: int | None, email: bool, as_json: bool) -> int:
    """Explain why a learner still has access or was unlinked, and when that will change. Changes nothing.

    For each license of the learner, at each customer, it shows what the next nights will do. It lists the rules behind
    that in their order, each with its value.

    \b
    By a license:          license-expiry explain 5b1c8d7e-3f0a-4c52-9a3e-0d4b6f1c2e77
    By an LMS user id:     license-expiry explain --lms-user-id 4711
    By an e-mail address:  license-expiry explain --email
    """  # noqa: D301, click's own mark
    if [len(licenses) == 1, lms_user_id is not None, email].count(True) != 1 or len(licenses) > 1:
        raise click.UsageError(f"Give one of LICENSE_UUID, --lms-user-id N and --email. {NEVER_AN_ARGUMENT}.")
    address = _read_address() if email else None
    settings, database = open_database()
    following = broker.next_night()
    scope = scope_of(database, settings, database.now())
    named = _named(database, scope, licenses, lms_user_id, address)
    night = partial(_at_or_after, following)
    explained, left_out = database.transact(lambda session: explaining.explain(session, scope, named, night))
    first = outlook.at(scope, night(scope.as_of))
    pause, outage = (database.transact(standing) for standing in (waits.standing_pause, waits.standing_outage))
    looked = partial(_blocked, first=first, explained=explained, pause=pause, limit=settings.UNLINK_LIMIT)
    told = _Told(explained, left_out, scope, first.as_of, database.transact(looked))
    if as_json:
        paused = {"paused": tables.describe_pause(pause)} if pause else {}
        tables.show_json(paused | told.as_json())
    else:
        tables.show_pause(pause)
        tables.show_outage(outage)
        told.show()
    return 0


def _at_or_after(following: Callable[[datetime], datetime], moment: datetime) -> datetime:
    return following(moment - outlook.TICK)


def _read_address() -> str:
    """The address, from the terminal without echo, or the first line of standard input. Raises UsageError."""
    if sys.stdin.isatty():
        given: str = click.prompt("E-mail", hide_input=True, err=True)
    else:
        given = sys.stdin.buffer.readline().decode(errors="replace")
    address = given.strip()
    if not address or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in address):
        raise click.UsageError("--email: no address was given. Give one, on a line of its own.")
    return address


def _named(
    database: Database, scope: Scope, licenses: Sequence[UUID], lms_user_id: int | None, address: str | None
) -> list[UUID]:
    """The licenses of the person or UUID given. Raises BadArgument when there are none."""

    def work(session: Session) -> Sequence[Any]:
        if address is not None:
            return fetch(session, unlinks.licenses_of_address, scope, address=address, folded=address.lower())
        if lms_user_id is not None:
            return fetch(session, explaining.licenses_of_user, scope, lms_user_id=lms_user_id)
        return fetch(session, explaining.licenses_by_uuid, scope, licenses=licenses)

    try:
        found = [uuid for (uuid,) in database.transact(work)]
    except (Unusable, Unavailable):
        if address is None:
            raise
        # A server that cannot compare the address may quote it in its error.
        raise Unusable("The database could not look up the address", "run license-expiry doctor") from None
    if not found:
        who = "this e-mail address" if address is not None else f"LMS user id {lms_user_id}"
        what = f"There is no license {licenses[0]}" if licenses else f"No license has {who}"
        plan = database.transact(lambda session: session.get(SubscriptionPlan, licenses[0])) if licenses else None
        if plan:
            raise BadArgument(f"{licenses[0]} is a plan, not a license", "give the UUID of a license of it")
        raise BadArgument(what, "check it, and that DATABASE_URL points to the right database")
    return found


def _blocked(
    session: Session, first: Scope, explained: Sequence[Explained], pause: Wait | None, limit: int
) -> dict[UUID, Blocked]:
    """For each of these enterprises, the obstacles to its next run."""
    found = {}
    for enterprise in dict.fromkeys(one.facts.enterprise for one in explained):
        theirs = [one for one in explained if one.facts.enterprise == enterprise]
        of_it = replace(first, enterprise=enterprise)
        due = limit and any(one.unlink.state == "next" for one in theirs)
        too_many = explaining.unlinks_over_limit(session, of_it, limit) if due else 0
        runs = [run for run in newest_runs(session, enterprise) if not run.dry_run]
        found[enterprise] = Blocked(enterprise, pause, runs[0] if runs else None, too_many, limit)
    return found


class _Told:
    """The answer about a learner's licenses, for people or as JSON."""

    def __init__(
        self,
        explained: Sequence[Explained],
        left_out: int,
        scope: Scope,
        first: datetime,
        blocked: dict[UUID, Blocked],
    ) -> None:
        self._explained, self._left_out, self._scope, self._first = explained, left_out, scope, first
        self._blocked = blocked

    def show(self) -> None:
        """Print each license's verdict and table, then notes on the enterprises."""
        for number, one in enumerate(self._explained):
            shown = Table(box=None, pad_edge=False, padding=(0, 1, 0, 2), show_header=False)
            shown.add_column(no_wrap=True, style="dim")
            for name, value in rules(one, self._scope):
                shown.add_row(name, Text(value))
            if number:
                tables.out.print()
            whose = ", ".join(filter(None, (str(one.facts.enterprise), tables.flattened(one.facts.name or ""))))
            head = Text.assemble((f"License {one.facts.uuid}", "bold"), f" of enterprise {whose}")
            tables.out.print(head, soft_wrap=True)
            tables.out.print(Text(self._verdict(one), "bold"))
            tables.out.print(shown)
        if self._left_out:
            tables.out.print(f"{self._left_out} more licenses of this learner are not shown.")
        for enterprise, blocked in self._blocked.items():
            for note in blocked.notes():
                said = tables.flattened(f"Enterprise {enterprise}: {note}")
                tables.out.print(said, markup=False, highlight=False, soft_wrap=True)

    def as_json(self) -> dict[str, Any]:
        """The same as one object."""
        return {
            "as_of": self._scope.as_of.isoformat(),
            "next_night": self._first.isoformat(),
            "enterprises": [
                {"enterprise_customer_uuid": str(enterprise), "notes": blocked.notes()}
                for enterprise, blocked in self._blocked.items()
            ],
            "licenses": [self._described(one) for one in self._explained],
            "left_out": self._left_out,
        }

    def _verdict(self, one: Explained) -> str:
        return verdict(one, self._scope, self._blocked[one.facts.enterprise])

    def _described(self, one: Explained) -> dict[str, Any]:
        ids = {"license_uuid": one.facts.uuid, "plan_uuid": one.facts.plan}
        ids |= {"enterprise_customer_uuid": one.facts.enterprise}
        return {name: str(uuid) for name, uuid in ids.items()} | {
            "enterprise_customer_name": one.facts.name,
            "verdict": self._verdict(one),
            "downgrade": _outcome(one.downgrade),
            "unlink": _outcome(one.unlink),
            "held_by": [str(row.uuid) for row in one.held_by or ()],
            "protected_by": [str(row.uuid) for row in one.protected_by or ()],
            "rules": [{"rule": name, "value": value} for name, value in rules(one, self._scope)],
        }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    run, at = outcome.run and str(outcome.run), outcome.at and outcome.at.isoformat()
    return {"state": outcome.state, "at": at, "run_id": run, "why": outcome.why or None}
