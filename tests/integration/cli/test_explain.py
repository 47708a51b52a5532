"""`license-expiry explain`: what it says, to whom it does not say it, and that it leaves all as it was."""

import logging
import os
import subprocess
import termios
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import Engine, insert
from support.command_line import COMMAND, LIST, Use, json_of
from support.database_account import Account
from support.eventually import eventually
from support.runs import ON_ALL_SERVERS, ON_EACH, Make, lay, night, open_one, rows, snapshot, unlinking

from simulator.data.rows import DAY, Data
from simulator.lms.server import Simulator
from worker.cli import explain as explaining
from worker.cli.checks.rights import RIGHTS, Right
from worker.cli.main import main
from worker.db.ledger_tables import HeldLicense
from worker.errors import Unusable
from worker.ledger import waits
from worker.ledger.runs import stop_run

ANN = "Ann.Secret@explain.example"
NEVER_AN_ARGUMENT = "An e-mail address is never an argument: --email asks for it."


@dataclass
class Person:
    """Two customers, the first on the unlink list; Ann's licenses by name."""

    listed: UUID
    other: UUID
    licenses: dict[str, UUID]


@pytest.fixture
def ann(engine: Engine, set_up: Use) -> Person:
    data = Data(engine)
    listed, other = data.agreement(), data.agreement()
    old = data.plan(listed, expires=data.now - 120 * DAY, expiration_processed=True)
    data.plan_history(old, data.now - 119 * DAY, processed=True)
    young, current = data.plan(listed, expires=data.now - 27 * DAY), data.plan(listed, expires=data.now + 60 * DAY)
    elsewhere = data.plan(other, expires=data.now - 10 * DAY)
    data.renewal(elsewhere, None, data.now - 9 * DAY)
    licenses = {
        "old": data.license(old, ANN, 7),
        "young": data.license(young, ANN.lower(), None),
        "current": data.license(current, "new@explain.example", 7),
        "elsewhere": data.license(elsewhere, f" {ANN.upper()} ", 7),
    }
    data.license(old, "bob@explain.example", 8)
    data.flush()
    set_up(**{LIST: listed.enterprise_customer_uuid})
    return Person(listed.enterprise_customer_uuid, other.enterprise_customer_uuid, licenses)


def explain(*arguments: object, given: str | None = None) -> Result:
    return CliRunner().invoke(main, ["explain", *map(str, arguments)], input=given, catch_exceptions=False)


def told(*arguments: object, given: str | None = None) -> dict[UUID, dict[str, Any]]:
    """The licenses that --json explains, in their order."""
    result = explain("--json", *arguments, given=given)
    assert (result.exit_code, result.stderr) == (0, "")
    return {UUID(one["license_uuid"]): one for one in json_of(result)["licenses"]}


def in_utc(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


@ON_EACH
def test_each_license_of_the_learner_has_a_verdict_and_its_rules(engine: Engine, ann: Person) -> None:
    found = told(ann.licenses["young"])
    assert next(iter(found)) == ann.licenses["young"]
    assert found.keys() == set(ann.licenses.values())
    states = {
        name: [found[uuid][step]["state"] for step in ("downgrade", "unlink")] for name, uuid in ann.licenses.items()
    }
    assert states == {
        "old": ["done", "later"],
        "young": ["next", "later"],
        "current": ["later", "later"],
        "elsewhere": ["never", "never"],
    }
    old = found[ann.licenses["old"]]
    assert old["protected_by"] == [str(ann.licenses["current"])]
    assert (old["unlink"]["why"], old["enterprise_customer_uuid"]) == ("protected", str(ann.listed))
    rules = {rule["rule"]: rule["value"] for rule in old["rules"]}
    assert list(rules) == [
        *("status", "plan", "renewals", "mark", "downgraded", "held"),
        *("list", "renewed as", "e-mail", "expired", "protected", "unlinked"),
    ]
    assert rules["expired"] == "120 days ago; its learner is unlinked after more than 90 days"
    elsewhere = found[ann.licenses["elsewhere"]]
    assert elsewhere["verdict"].endswith(f"will never be unlinked: the customer is not on the list {LIST}.")


@ON_EACH
def test_it_is_asked_by_license_user_or_address(ann: Person) -> None:
    by_license = told(ann.licenses["old"])
    assert told("--lms-user-id", 7).keys() == by_license.keys()
    for address in (ANN, ANN.upper(), f"  {ANN}\t\r"):
        assert told("--email", given=f"{address}\n").keys() == by_license.keys()
    assert told("--email", given=ANN).keys() == by_license.keys(), "a last line without its end"


def test_people_read_the_same_in_80_columns(ann: Person) -> None:
    result = explain(ann.licenses["old"])
    assert result.exit_code == 0
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    name = next(iter(told(ann.licenses["old"]).values()))["enterprise_customer_name"]
    assert name
    assert lines[0] == f"License {ann.licenses['old']} of enterprise {ann.listed}, {name}"
    assert max(map(len, (line for line in lines if not line.startswith("License ")))) <= 80
    text = " ".join(" ".join(lines).split())
    for one in told(ann.licenses["old"]).values():
        assert one["verdict"] in text
        for rule in one["rules"]:
            assert f"{rule['rule']} {rule['value']}" in text


def plans(engine: Engine) -> dict[UUID, datetime]:
    return {row["uuid"]: row["expiration_date"] for row in rows(engine, "subscriptionplan")}


@ON_EACH
def test_it_says_when_and_unless(engine: Engine, ann: Person) -> None:
    """By NIGHTLY_SCHEDULE, whose time zone is UTC."""
    found, expires = told(ann.licenses["old"]), plans(engine)
    [first] = {one["downgrade"]["at"] for one in found.values() if one["downgrade"]["state"] == "next"}
    night = datetime.fromisoformat(first)
    assert (night.hour, night.minute, night.tzinfo) == (2, 0, UTC)
    young = found[ann.licenses["young"]]
    due = expires[UUID(young["plan_uuid"])] + 90 * DAY
    unlinked = datetime.fromisoformat(young["unlink"]["at"])
    assert due < unlinked <= due + DAY
    until = expires[UUID(found[ann.licenses["current"]]["plan_uuid"])]
    old = found[ann.licenses["old"]]
    assert until < datetime.fromisoformat(old["unlink"]["at"]) <= until + DAY
    assert old["verdict"].endswith(", unless another license protects the learner by then.")
    assert young["verdict"].startswith(f"Will be downgraded in tonight's run, {in_utc(night)}; will be unlinked on or ")


def test_what_a_run_did_is_reported_with_its_id(
    engine: Engine, lms: Simulator, set_up: Use, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=2)
    set_up(**unlinking(laid.enterprise))
    [run] = night(make_test_deps(**unlinking(laid.enterprise))).values()
    [one] = told(laid.licenses[0]).values()
    assert one["downgrade"]["run_id"] == one["unlink"]["run_id"] == str(run.id)
    assert f"was unlinked on {in_utc(run.ended_at or run.as_of)[:10]}" in one["verdict"]
    assert f"in run {run.id}" in one["verdict"]


def notes(*arguments: object) -> str:
    [enterprise] = json_of(explain("--json", *arguments))["enterprises"]
    return "\n".join(enterprise["notes"])


def test_what_holds_the_next_night_back_is_reported(
    engine: Engine, lms: Simulator, set_up: Use, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=3)
    settings = unlinking(laid.enterprise) | {"UNLINK_LIMIT": 2}
    set_up(**settings)
    license, deps = laid.licenses[0], make_test_deps(**settings)

    assert "3 learners are due to be unlinked, UNLINK_LIMIT is 2: license-expiry run" in notes(license)
    [one] = told(license).values()
    assert one["verdict"].endswith(" UTC, but only once somebody has approved the number of unlinks.")
    waits.pause(deps.database, "ops on host", "an upgrade")
    assert json_of(explain("--json", license))["paused"]["reason"] == "an upgrade"
    [one] = told(license).values()
    assert "UTC, but only once the pause is over; will be unlinked" in one["verdict"]
    assert explain(license).stdout.count("an upgrade") == 1
    waits.resume(deps.database)
    run_id = open_one(deps, laid.enterprise)
    assert f"run {run_id} is queued since " in notes(license)
    stop_run(deps.database, run_id, "ops on host", "a wrong list")
    assert f"its newest run {run_id} is stopped: stopped by ops on host: a wrong list" in notes(license)


def test_a_held_license_is_reported_with_its_reason(engine: Engine, ann: Person) -> None:
    now = Data(engine).now
    held: dict[str, Any] = {
        "license_uuid": ann.licenses["young"],
        "enterprise_customer_uuid": ann.listed,
        "run_id": UUID(int=1),
    }
    held |= {"step": "downgrade", "reason": "http_422", "tries": 3, "first_held_at": now - 3 * DAY, "as_of": now}
    with engine.begin() as connection:
        connection.execute(insert(HeldLicense).values(held))
    found = told(ann.licenses["young"])
    one = found[ann.licenses["young"]]
    rules = {rule["rule"]: rule["value"] for rule in one["rules"]}
    since, again = in_utc(now - 3 * DAY), in_utc(now + timedelta(hours=12))
    assert rules["held"] == f"downgrade refused since {since} (http_422, 3 tries), tried again not before {again}"
    refused = "Not downgraded because the LMS refused the downgrade (http_422)"
    assert one["verdict"].startswith(f"{refused}; tried again not before {again} (night of ")
    assert one["verdict"].endswith(" What to do: the run-book LicenseExpiryHeldGrowing.")


def test_a_refused_unlink_is_reported_as_why_the_learner_is_still_linked(engine: Engine, ann: Person) -> None:
    now, [bob] = Data(engine).now, told("--lms-user-id", 8)
    held: dict[str, Any] = {"license_uuid": bob, "enterprise_customer_uuid": ann.listed, "run_id": UUID(int=1)}
    held |= {"step": "unlink", "reason": "http_400", "tries": 1, "first_held_at": now}
    held["as_of"] = now - timedelta(hours=2)
    with engine.begin() as connection:
        connection.execute(insert(HeldLicense).values(held))
    one = told(bob)[bob]
    again, night = in_utc(now + timedelta(hours=10)), in_utc(datetime.fromisoformat(one["unlink"]["at"]))
    refused = "; still linked because the LMS refused the unlink (http_400)"
    assert f"{refused}; tried again not before {again} (night of {night})." in one["verdict"]


def test_a_plan_is_reported_from_a_license(engine: Engine, ann: Person) -> None:
    plan = next(iter(plans(engine)))
    result = explain(plan)
    assert result.exit_code == 2
    assert f"{plan} is a plan, not a license" in result.stderr


@ON_ALL_SERVERS
def test_the_rights_to_read_are_enough_and_nothing_is_written(
    engine: Engine, ann: Person, set_up: Use, account: Account
) -> None:
    for table, verbs in RIGHTS.items():
        for verb in verbs:
            if verb != "SELECT":
                account.revoke(Right(verb, table))
    set_up(**{LIST: ann.listed}, DATABASE_URL=account.url)
    before = snapshot(engine)
    assert told("--email", given=f"{ANN}\n").keys() == set(ann.licenses.values())
    assert snapshot(engine) == before
    account.revoke(Right("SELECT", "subscriptions_historicallicense"))
    assert told(ann.licenses["old"]).keys() == set(ann.licenses.values())


def test_on_sqlite_nothing_is_written_either(engine: Engine, ann: Person) -> None:
    before = snapshot(engine)
    told("--lms-user-id", 7)
    explain(ann.licenses["old"])
    assert snapshot(engine) == before


def test_no_address_is_printed_or_logged(ann: Person, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for options in (("--email",), ("--email", "--json")):
        result = explain(*options, given=f"{ANN}\n")
        assert result.exit_code == 0
        assert "@" not in result.stdout + result.stderr + caplog.text


WRONG: dict[str, tuple[tuple[object, ...], str | None, str]] = {
    "nothing": ((), None, "Give one of LICENSE_UUID, --lms-user-id N and --email."),
    "two ways": (("--email", "--lms-user-id", 7), f"{ANN}\n", "Give one of LICENSE_UUID, --lms-user-id N and --email."),
    "two licenses": ((UUID(int=1), UUID(int=2)), None, "Give one of LICENSE_UUID, --lms-user-id N and --email."),
    "an unknown license": ((UUID(int=1),), None, f"There is no license {UUID(int=1)}: check it"),
    "an unknown user": (("--lms-user-id", 99), None, "No license has LMS user id 99: check it"),
    "an unknown address": (("--email",), f"other.{ANN}\n", "No license has this e-mail address: check it"),
    "no address": (("--email",), "\n", "--email: no address was given."),
    "no standard input": (("--email",), "", "--email: no address was given."),
    "a control character": (("--email",), f"x\0{ANN}\n", "--email: no address was given."),
    "bytes that are no text": (("--email",), "\udcff{ANN}\n", "No license has this e-mail address"),
    "not a UUID": (("license",), None, f"must be a UUID. {NEVER_AN_ARGUMENT}"),
    "an address as the argument": ((ANN,), None, f"must be a UUID. {NEVER_AN_ARGUMENT}"),
    "an address after --email": (("--email", ANN), None, f"must be a UUID. {NEVER_AN_ARGUMENT}"),
    "an address as the value of --email": ((f"--email={ANN}",), None, "Option '--email' does not take a value."),
    "an address as a user id": (
        ("--lms-user-id", ANN),
        None,
        f"must be the number of an LMS user. {NEVER_AN_ARGUMENT}",
    ),
    "no user id": (("--lms-user-id", -7), None, "must be the number of an LMS user."),
    "a user id beyond the column": (("--lms-user-id", 2**31), None, "must be the number of an LMS user."),
}


@pytest.mark.parametrize("why", WRONG)
def test_what_is_wrong_is_reported_in_a_sentence_and_no_address_with_it(ann: Person, why: str) -> None:
    arguments, given, sentence = WRONG[why]
    runner = CliRunner()
    raw = None if given is None else given.encode(errors="surrogateescape")
    result = runner.invoke(main, ["explain", *map(str, arguments)], input=raw, catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (2, "")
    assert sentence in " ".join(result.stderr.split())
    assert "@" not in result.stderr


def test_a_database_that_repeats_the_address_is_not_repeated(ann: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **values: Any) -> None:
        raise Unusable(f"Cannot convert string '{values['address']}'", "see it")

    monkeypatch.setattr(explaining, "fetch", fail)
    result = explain("--email", given=f"{ANN}\n")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "The database could not look up the address: run license-expiry doctor\n"


def test_on_a_terminal_the_address_is_asked_for_and_not_echoed(ann: Person) -> None:
    ours, its = os.openpty()
    with subprocess.Popen([COMMAND, "explain", "--email"], stdin=its, stdout=its, stderr=its, start_new_session=True):
        os.close(its)
        eventually(lambda: not termios.tcgetattr(ours)[3] & termios.ECHO)
        os.write(ours, f"{ANN}\n".encode())
        shown = b""
        with suppress(OSError):  # the other side is closed
            while part := os.read(ours, 65536):
                shown += part
    os.close(ours)
    text = shown.decode()
    assert "E-mail" in text
    assert str(ann.licenses["old"]) in text
    assert "@" not in text
