"""Everything that a night leaves in the database and at the LMS, in a form in which two nights can be compared."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Engine
from support.runs import Row, rows

from simulator.lms.server import Simulator
from worker.db.ledger_tables import Downgrade, HeldLicense

Table = dict[str, list[Row]]

# Numbers that the database gives, and moments and a reason that differ by the run.
VOLATILE = ("id", "history_id", "history_date", "history_change_reason")
ADDRESSES = ("user_email",)
UUIDS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


@dataclass(frozen=True)
class Snapshot:
    """Tables by name, and what the LMS holds: for each key (a UUID as text) the rows that it has, in order.

    Kept out of the repr, because of the e-mail addresses.
    """

    tables: dict[str, Table] = field(repr=False)


def take_snapshot(engine: Engine, lms: Simulator) -> Snapshot:
    """Look at everything: license-manager's tables, the ledger's, and what the LMS holds.

    Moments are told as their distance from the moment of laying, which every agreement has; those of the night
    itself, the counts of tries, and numbers that the database gives are left out.
    """
    agreements = rows(engine, "customeragreement")
    laid = min((row["created"] for row in agreements), default=None)
    tables = {
        "plan": _table(rows(engine, "subscriptionplan"), "uuid", laid),
        "history of plan": _table(rows(engine, "historicalsubscriptionplan"), "uuid", laid),
        "license": _table(rows(engine, "license"), "uuid", laid),
        "renewal of plan": _table(rows(engine, "subscriptionplanrenewal"), "prior_subscription_plan_id", laid),
        "agreement": _table(agreements, "uuid", laid),
        "events of license": _only(rows(engine, "licenseevent"), "license_id", "event_name"),
        "confirmed downgrade of license": _only(rows(engine, Downgrade), "license_uuid"),
        "hold of license": _only(rows(engine, HeldLicense), "license_uuid", "step", "reason"),
    }
    return Snapshot(tables | _at_the_lms(engine, lms))


def difference(found: Snapshot, wanted: Snapshot) -> list[str]:
    """Name what differs, by UUIDs and columns; no e-mail address is among it."""
    return [
        f"{name} {key}: {sentence}"
        for name in sorted({*found.tables, *wanted.tables})
        for key, mine, theirs in _pairs(found.tables.get(name, {}), wanted.tables.get(name, {}))
        if mine != theirs
        for sentence in _differences(mine, theirs)
    ]


def without(snapshot: Snapshot, ids: set[UUID]) -> Snapshot:
    """All but the rows whose key names any of these UUIDs."""
    names = set(map(str, ids))
    return Snapshot(
        {
            name: {key: rows for key, rows in content.items() if not names & set(UUIDS.findall(key))}
            for name, content in snapshot.tables.items()
        }
    )


def _pairs(found: Table, wanted: Table) -> Iterator[tuple[str, list[Row], list[Row]]]:
    for key in sorted({*found, *wanted}):
        yield key, found.get(key, []), wanted.get(key, [])


def _differences(found: list[Row], wanted: list[Row]) -> Iterator[str]:
    if len(found) != len(wanted):
        yield f"{len(found)} rows, not {len(wanted)}"
        return
    for mine, theirs in zip(found, wanted, strict=True):
        for column in sorted({*mine, *theirs}):
            if mine.get(column) != theirs.get(column):
                told = column in ADDRESSES
                yield f"another {column}" if told else f"{column} is {mine.get(column)}, not {theirs.get(column)}"


def _table(found: list[Row], key: str, laid: datetime | None) -> Table:
    return _keyed(found, key, lambda row: {name: _told(row, name, laid) for name in row if name not in VOLATILE})


def _told(row: Row, name: str, laid: datetime | None) -> Any:
    value = row[name]
    if name == "modified":
        return "since it was laid" if value != row["created"] else "never"
    return value - laid if isinstance(value, datetime) and laid is not None else value


def _only(found: list[Row], key: str, *columns: str) -> Table:
    return _keyed(found, key, lambda row: {name: row[name] for name in columns})


def _keyed(found: list[Row], key: str, told: Callable[[Row], Row]) -> Table:
    table: Table = defaultdict(list)
    for row in found:
        table[str(row[key])].append(told(row))
    return {key: sorted(many, key=repr) for key, many in table.items()}


def _at_the_lms(engine: Engine, lms: Simulator) -> dict[str, Table]:
    """What the LMS holds; linked learners are named by their licenses."""
    state = lms.state.to_json()
    names = learners(engine)
    linked: Table = defaultdict(list)
    for enterprise, content in state["enterprises"].items():
        for how in ("linked", "barred"):
            for email in content[how]:
                whose = names.get((enterprise, email.strip()), ["no license"])
                linked[f"{enterprise}, learner of {', '.join(whose)}"].append({"how": how})
    return {
        "LMS: enterprise": {each: [{"active": content["active"]}] for each, content in state["enterprises"].items()},
        "LMS: link to enterprise": dict(linked),
        "LMS: enrollments of license": dict(state["licenses"]),
    }


def learners(engine: Engine) -> dict[tuple[str, str], list[str]]:
    """The licenses of each learner, by enterprise and e-mail address."""
    customers = {row["uuid"]: row["enterprise_customer_uuid"] for row in rows(engine, "customeragreement")}
    plans: dict[UUID, UUID] = {
        row["uuid"]: customers[row["customer_agreement_id"]] for row in rows(engine, "subscriptionplan")
    }
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row in sorted(rows(engine, "license"), key=lambda row: str(row["uuid"])):
        if row["user_email"] is not None:
            found[str(plans[row["subscription_plan_id"]]), row["user_email"].strip()].append(str(row["uuid"]))
    return found
