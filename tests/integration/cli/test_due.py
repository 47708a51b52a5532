"""`license-expiry due` as the rehearsal of a first night on an old database."""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from io import StringIO
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, insert
from support.runs import ON_EACH, ON_SQLITE, rows

from simulator.data.rows import DAY, Data
from worker.cli.main import main
from worker.db.ledger_tables import Downgrade, HeldLicense
from worker.settings import Settings

COUNTS = ("downgrades", "unlinks", "protected", "protected_by_user_email", "protected_by_lms_user_id", "waiting")


@dataclass
class Laid:
    """The customers, and their plans by name."""

    large: UUID
    small: UUID
    patient: UUID
    plans: dict[str, UUID]


@pytest.fixture
def laid(engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Laid:
    data = Data(engine)
    large, small, patient = (data.agreement() for _ in range(3))
    current = data.plan(large)
    old = data.plan(large, expires=data.now - 120 * DAY)
    waiting = data.plan(large, expires=data.now - 110 * DAY)
    processed = data.plan(large, expires=data.now - 100 * DAY, expiration_processed=True)
    data.renewal(waiting, None, data.now + DAY)
    data.license(processed, user_email=None)
    for plan, count in ((old, 1), (waiting, 2), (processed, 1)):
        for _ in range(count):
            data.license(plan)
    for number, shared in enumerate(("user_email", "lms_user_id", "both")):
        email, other = f"own{number}@due.example", f"other{number}@due.example"
        data.license(old, user_email=email, lms_user_id=9000 + number)
        data.license(
            current,
            user_email=other if shared == "lms_user_id" else email,
            lms_user_id=None if shared == "user_email" else 9000 + number,
        )
    new = data.plan(small, expires=data.now - 10 * DAY)
    data.license(new)
    patience = data.plan(patient, expires=data.now - 5 * DAY)
    data.renewal(patience, None, data.now - 40 * DAY)  # as license-manager makes them for trials
    for _ in range(3):
        data.license(patience)
    data.license(patience, status="unassigned")
    nobody = data.plan(patient, expires=data.now - 4 * DAY)
    data.renewal(nobody, None, data.now + DAY)
    data.flush()
    for name in Settings.model_fields:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED", str(large.enterprise_customer_uuid))
    plans = {"old": old, "waiting": waiting, "processed": processed, "new": new, "patience": patience, "nobody": nobody}
    return Laid(large.enterprise_customer_uuid, small.enterprise_customer_uuid, patient.enterprise_customer_uuid, plans)


def due(*options: Any) -> Result:
    return CliRunner().invoke(main, ["due", *map(str, options)])


def plans_of(laid: Laid, *options: Any) -> dict[str, dict[str, Any]]:
    """The plans that `due --json` has, by name."""
    names = {str(uuid): name for name, uuid in laid.plans.items()}
    result = due("--json", *options)
    assert (result.exit_code, result.stderr) == (0, "")
    return {names[row["plan_uuid"]]: row for row in json.loads(result.stdout)["plans"]}


@ON_EACH
def test_each_plan_is_counted_with_whom_it_protects_and_what_waits(laid: Laid) -> None:
    told = plans_of(laid)
    expected = {
        "old": ("due", 120, 4, 1, 3, 2, 3, 0),
        "waiting": ("waiting", 20, 2, 2, 0, 0, 0, 2),
        "processed": ("processed", 10, 0, 1, 0, 0, 0, 0),
        "new": ("due", 10, 1, 0, 0, 0, 0, 0),
        "patience": ("waiting", 0, 0, 0, 0, 0, 0, 3),
        "nobody": ("waiting", 0, 0, 0, 0, 0, 0, 0),
    }
    assert {
        name: (row["state"], row["nights_back"], *(row[count] for count in COUNTS)) for name, row in told.items()
    } == expected
    overdue = {name: row["waiting_since"] for name, row in told.items() if row["waiting_since"]}
    assert overdue.keys() == {"patience"}, "a renewal of tomorrow is to be processed yet"
    assert {name: row["without_email"] for name, row in told.items() if row["without_email"]} == {"processed": 1}
    assert told["patience"]["enterprise_customer_uuid"] == str(laid.patient)
    enterprises = {row.pop("enterprise_customer_uuid"): row for row in json.loads(due("--json").stdout)["enterprises"]}
    assert {row.pop("enterprise_customer_name")[:11] for row in enterprises.values()} == {"Enterprise "}
    assert enterprises == {
        str(laid.large): {"plans": 1, "downgrades": 6, "unlinks": 4, "protected": 3},
        str(laid.small): {"plans": 1, "downgrades": 1, "unlinks": 0, "protected": 0},
    }


@ON_SQLITE
def test_as_csv_it_has_the_same_lines(laid: Laid) -> None:
    result = due("--csv")
    lines = list(csv.DictReader(StringIO(result.stdout)))
    assert (result.exit_code, lines) == (
        0,
        [
            {name: "" if value is None else str(value) for name, value in row.items()}
            for row in json.loads(due("--json").stdout)["plans"]
        ],
    )


@ON_SQLITE
def test_people_see_the_plans_beneath_their_enterprise_in_80_columns(laid: Laid, engine: Engine) -> None:
    lines = due().stdout.splitlines()
    assert max(map(len, lines)) <= 80
    cells = [line.split() for line in lines]
    large = cells.index([str(laid.large), "1", "6", "4", "3"])
    assert cells[large + 1][0] == "Enterprise", "its name"
    assert [row[0] for row in cells[large + 2 : large + 5]] == [
        str(laid.plans[name]) for name in ("old", "waiting", "processed")
    ]
    assert [row[2:] for row in cells[large + 2 : large + 5]] == [["4", "1", "3"], ["2", "2", "0"], ["0", "1", "0"]]
    assert cells[cells.index([str(laid.small), "1", "1", "0", "0"]) + 2][0] == str(laid.plans["new"])
    since = f"{Data(engine).now - 40 * DAY:%Y-%m-%d}"
    assert lines[-8:] == [
        "Protected by another license: 3 (0 by e-mail, 1 by LMS user id, 2 by both).",
        "Waiting for a renewal: plans 3, their licenses 5.",
        f"  {laid.plans['patience']}: waiting for a renewal since {since}",
        "Nobody has processed these renewals.",
        "Process them in license-manager, or treat such a chain as ended:",
        "  license-expiry run --plan UUID --force --reason TEXT",
        "Licenses that cannot be unlinked, because they have no e-mail: 1.",
        "Nights since the oldest became due: 120; --expired-after leaves older plans out.",
    ]
    assert lines[-9].split() == ["all", "2", "2", "7", "4", "3"]
    assert str(laid.patient) not in due().stdout


@ON_SQLITE
def test_it_can_be_narrowed_as_a_run_can(laid: Laid, engine: Engine) -> None:
    now = Data(engine).now

    def day(days: int) -> str:
        return (now - timedelta(days=days)).isoformat()

    narrowed: dict[str, tuple[tuple[Any, ...], set[str]]] = {
        "a first night": (("--expired-after", day(105)), {"processed", "new", "patience", "nobody"}),
        "what is old": (("--expired-before", day(105)), {"old", "waiting"}),
        "a window": (("--expired-after", day(115), "--expired-before", day(105)), {"waiting"}),
        "a plan": (("--plan", laid.plans["old"]), {"old"}),
        "an enterprise": (("--enterprise", laid.large), {"old", "waiting", "processed"}),
        "two": (("--enterprise", laid.small, "--enterprise", laid.patient), {"new", "patience", "nobody"}),
    }
    assert {why: set(plans_of(laid, *options)) for why, (options, _) in narrowed.items()} == {
        why: plans for why, (_, plans) in narrowed.items()
    }


BAD: dict[str, tuple[Callable[[Laid], tuple[Any, ...]], str]] = {
    "unknown enterprise": (lambda _: ("--enterprise", UUID(int=7)), "has no customer agreement"),
    "another's plan": (lambda laid: ("--enterprise", laid.small, "--plan", laid.plans["old"]), "is not a plan of"),
    "no date": (lambda _: ("--expired-after", "yesterday"), "must be a date-time such as"),
    "the future": (lambda _: ("--expired-before", "2199-01-01"), "is in the future"),
    "two forms": (lambda _: ("--csv", "--json"), "--csv and --json exclude each other"),
}


@ON_SQLITE
@pytest.mark.parametrize("why", BAD)
def test_a_wrong_option_is_reported_in_one_sentence(laid: Laid, why: str) -> None:
    options, sentence = BAD[why]
    result = due(*options(laid))
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in result.stderr


@ON_SQLITE
def test_a_plan_of_which_the_held_are_left_is_not_called_processed(laid: Laid, engine: Engine) -> None:
    """One of its licenses is held, and one is confirmed: that one is to be unlinked, and the plan is not done."""
    first, *others = [
        row["uuid"] for row in rows(engine, "license") if row["subscription_plan_id"] == laid.plans["old"]
    ]
    now = Data(engine).now
    of = {"run_id": UUID(int=1), "enterprise_customer_uuid": laid.large}
    held = {"step": "downgrade", "reason": "http_422", "tries": 1, "first_held_at": now, "as_of": now}
    with engine.begin() as connection:
        connection.execute(insert(Downgrade), [{"license_uuid": each, "confirmed_at": now, **of} for each in others])
        connection.execute(insert(HeldLicense).values({"license_uuid": first, **of, **held}))
    told = plans_of(laid)["old"]
    assert (told["state"], told["downgrades"]) == ("held", 0)
