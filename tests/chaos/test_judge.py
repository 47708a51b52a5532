"""The judge finds nothing wrong with a night that nothing disturbed, and each promise broken in a forged one."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Update, delete, insert, update
from support.runs import rows

from chaos.evidence import Step, named
from chaos.forged import AT, Night, assert_found, unlink_events
from chaos.judge import requests_since, scan
from simulator.data.schema import table
from simulator.data.showcase import MALFORMED_EMAIL
from worker.db.ledger_tables import HeldLicense, Run
from worker.db.license_manager_tables import DOWNGRADED_EVENT
from worker.ledger.order import Phase


def test_nothing_is_wrong_with_an_undisturbed_night(night: Night) -> None:
    assert night.verdict() == []
    assert requests_since(night.lms, night.lms.journal.entries[-1].start) == []


# Forgeries


def first_unlink(night: Night, name: str) -> int:
    return night.calls(name, "unlink")[0].start


def a_late_downgrade(night: Night) -> None:
    night.add("large", "downgrade", night.calls("large", "downgrade")[0].licenses, status=503, worked=False)


def a_downgrade_in_flight(night: Night) -> None:
    night.calls("large", "downgrade")[-1].end = first_unlink(night, "large") + 1


def a_downgrade_in_flight_whose_client_left_later(night: Night) -> None:
    entry = night.calls("large", "downgrade")[-1]
    entry.gone, entry.end = first_unlink(night, "large") + 1, first_unlink(night, "large") + 2


def given_up_and_not_made_good(night: Night) -> None:
    entry = night.calls("large", "downgrade")[-1]
    entry.gone, entry.end = entry.start + 1, None


def never_confirmed(night: Night) -> None:
    night.calls("large", "downgrade")[3].status = 503


def never_refused_alone(night: Night) -> None:
    for each in night.calls("no history", "downgrade"):
        each.status = 503 if len(each.licenses) == 1 else each.status


def a_confirmation(**fields: Any) -> Callable[[Night], None]:
    def forge(night: Night) -> None:
        for key, value in fields.items():
            setattr(night.calls("recent", "downgrade")[0], key, value)

    return forge


def somebody_current(night: Night) -> None:
    of = night.enterprise("current")
    night.add("current", "unlink", sorted(night.lms.state.linked[of])[:1])


def a_held_learner(night: Night) -> None:
    [email] = [each for each in night.lms.state.linked[night.enterprise("locked")] if each.startswith("two.plans@")]
    night.add("locked", "unlink", [email])


def an_unlink_before_the_downgrade(night: Night) -> None:
    """Of a learner in another spelling of the address."""
    [email] = [each for each in night.lms.state.linked[night.enterprise("protected")] if each.startswith("bob")]
    first = night.calls("protected", "downgrade")[0]
    night.add("protected", "unlink", [email.upper()], start=first.start - 9)


def change(of: str, **values: Any) -> Callable[[Night], None]:
    def forge(night: Night) -> None:
        night.execute(update(table(night.engine, of)).values(**values))

    return forge


def an_event_lost(night: Night) -> None:
    event = table(night.engine, "licenseevent")
    night.execute(delete(event).where(event.c.id == unlink_events(night, "large")[0]["id"]))


def an_event_moved(night: Night) -> None:
    event = table(night.engine, "licenseevent")
    found = unlink_events(night, "large")[0]
    moved = update(event).where(event.c.id == found["id"])
    night.execute(moved.values(created=found["created"] - timedelta(minutes=1)))


def an_event_of_a_downgrade_moved(night: Night) -> None:
    event = table(night.engine, "licenseevent")
    night.execute(update(event).where(event.c.event_name == DOWNGRADED_EVENT).values(created=AT))


def an_event_twice(night: Night) -> None:
    row = {name: value for name, value in unlink_events(night, "large")[0].items() if name != "id"}
    night.execute(insert(table(night.engine, "licenseevent")).values(**row))


def of_run(night: Night, name: str) -> Update:
    return update(Run).where(Run.enterprise_customer_uuid == night.enterprise(name))


def a_live_run(night: Night) -> None:
    live = {"live": night.enterprise("large"), "phase": Phase.UNLINKING, "ended_at": None}
    night.execute(of_run(night, "large").values(**live))


def another_run(apart: timedelta) -> Callable[[Night], None]:
    """One more run, so long after the end of the first."""

    def forge(night: Night) -> None:
        [row] = [
            each for each in rows(night.engine, Run) if each["enterprise_customer_uuid"] == night.enterprise("large")
        ]
        opened = row["ended_at"] + apart
        more = row | {"id": uuid4(), "opened_at": opened, "ended_at": opened + timedelta(seconds=1)}
        more |= {"licenses_downgraded": 0, "learners_unlinked": 0, "licenses_held": 0}
        night.execute(insert(Run).values(**more))

    return forge


def an_unfinished_run(night: Night) -> None:
    night.execute(of_run(night, "large").values(phase=Phase.FAILED))


def an_enrollment(night: Night) -> None:
    license = UUID(night.calls("recent", "downgrade")[0].licenses[0])
    night.lms.state.downgraded.discard(license.int)


def a_linked_learner(night: Night) -> None:
    night.lms.state.linked[night.enterprise("large")].add(night.calls("large", "unlink")[0].emails[0])


def three_in_flight(night: Night) -> None:
    calls = night.calls("large", "downgrade")[:3]
    for each in calls:
        each.end = calls[2].start + 5


def again(step: Step, *numbers: int) -> Callable[[Night], None]:
    """Send these confirmed requests again, right after they were answered."""

    def forge(night: Night) -> None:
        calls = night.calls("large", step)
        for number in numbers:
            end = calls[number].end
            assert end is not None
            night.add("large", step, named(calls[number]), start=end + 5, ended_at=calls[number].ended_at)

    return forge


def a_count(name: str) -> Callable[[Night], None]:
    return lambda night: night.execute(of_run(night, "large").values(**{name: getattr(Run, name) + 1}))


CASES: dict[str, tuple[Callable[[Night], None], str]] = {
    "a late downgrade": (a_late_downgrade, r"Order: enterprise UUID: downgrade #\d+ began after unlink #\d+$"),
    "in flight": (a_downgrade_in_flight, r"Order: .*: downgrade #\d+ was in flight when unlink #\d+ began$"),
    "given up too late": (a_downgrade_in_flight_whose_client_left_later, r"Order: .*#\d+ was in flight when"),
    "given up": (given_up_and_not_made_good, r"Order: .*#\d+ was given up, and license UUID not made good before"),
    "never confirmed": (never_confirmed, r"Order: .*: license UUID was neither confirmed nor held when unlink #\d+"),
    "held later": (never_refused_alone, r"Order: .*: license UUID was neither confirmed nor held when unlink #\d+"),
    "somebody current": (somebody_current, r"Learner .*: unlink #\d+ holds somebody without an expired license"),
    "a held learner": (a_held_learner, r"Learner .*: unlink #\d+ holds the learner of license UUID, not confirmed"),
    "too early": (an_unlink_before_the_downgrade, r"Learner .*: unlink #\d+ holds the learner of license UUID, not"),
    "a plan changed": (
        change("subscriptionplan", is_active=False),
        r"Nothing lost: plan UUID: is_active is False, not",
    ),
    "an event lost": (an_event_lost, r"Nothing lost: events of license UUID: 0 rows, not 1"),
    "something due": (an_event_lost, r"Nothing lost: 1 enterprises still have something due"),
    "a live run": (a_live_run, r"Nothing lost: run UUID is still live, unlinking"),
    "an enrollment": (
        an_enrollment,
        r"Nothing invented: license UUID is recorded as downgraded, but is not at the LMS",
    ),
    "a 503": (a_confirmation(status=503), r"Nothing invented: license UUID .* downgraded, which no request had conf"),
    "a cut answer": (a_confirmation(dropped="truncated"), r"Nothing invented: .* which no request had confirmed"),
    "nobody there": (a_confirmation(gone=1), r"Nothing invented: .* which no request had confirmed"),
    "no work done": (a_confirmation(worked=False), r"Nothing invented: .* which no request had confirmed"),
    "still linked": (a_linked_learner, r"Nothing invented: license UUID is recorded as unlinked, but its learner is"),
    "an early event": (an_event_moved, r"Nothing invented: event unlinked of license UUID was not confirmed by any"),
    "an early downgrade": (an_event_of_a_downgrade_moved, r"Nothing invented: event downgraded of license UUID was"),
    "an event twice": (an_event_twice, r"Nothing invented: license UUID has event .*unlinked 2 times"),
    "two runs": (another_run(timedelta(seconds=-1)), r"One at a time: enterprise UUID: runs UUID and UUID overlap"),
    "three in flight": (three_in_flight, r"One at a time: .*: #\d+, #\d+, #\d+ in flight at once, 2 are allowed"),
    "a second run": (another_run(timedelta(seconds=1)), r"Isolation: .* had these runs: finished, finished$"),
    "a failed run": (an_unfinished_run, r"Isolation: enterprise UUID, which nothing struck, had these runs: failed$"),
    "sent again": (again("downgrade", 2), r"Isolation: .* was sent again what was confirmed: #\d+$"),
    "a downgrade again": (again("downgrade", 2), r"Repeats: .*: 1 confirmed requests \(#\d+\) again; 2 for each of 0 "),
    "an unlink again": (again("unlink", 1, 2), r"Repeats: .*: 2 confirmed requests \(#\d+, #\d+\) again"),
    "one more downgraded": (a_count("licenses_downgraded"), r"Counts: .*have licenses_downgraded 61, its records 60"),
    "one more unlinked": (a_count("learners_unlinked"), r"Counts: .*have learners_unlinked 61, its records 60"),
    "one more held": (a_count("licenses_held"), r"Counts: .*have licenses_held 1, its records 0"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_promise_is_found(case: str, night: Night) -> None:
    forge, sentence = CASES[case]
    forge(night)
    assert MALFORMED_EMAIL not in assert_found(night, sentence)


# What is no breach


def given_up_and_made_good(night: Night) -> None:
    """A child is killed with a downgrade in flight, which the LMS works on for as long as the night lasts."""
    night.strike("kill_child", "large")
    entry = night.calls("large", "downgrade")[2]
    lost = {"status": None, "end": None, "ended_at": None, "gone": entry.start - 8}
    night.add("large", "downgrade", entry.licenses, start=entry.start - 9, **lost)


def one_crash(night: Night) -> None:
    night.strike("database_reset", "large")
    again("downgrade", 0, 1)(night)


def a_crash_of_a_worker(night: Night) -> None:
    """It was at another enterprise that it reached the point; its other child was at this one."""
    night.strike("kill_worker", "recent")
    again("unlink", 3, 4)(night)


def two_crashes_of_anybody(night: Night) -> None:
    night.strike("kill_child", None)
    night.strike("commit_lost", None)
    again("unlink", 1, 2, 3, 4)(night)


def another_run_of_the_struck(night: Night) -> None:
    night.strike("lms_refuses", "large")
    another_run(timedelta(seconds=1))(night)


def a_probe(night: Night) -> None:
    """It concerns nobody, and may come at any time."""
    night.add("large", "unlink", ["nobody@license-expiry.invalid"], start=1)


LEGAL = [given_up_and_made_good, one_crash, a_crash_of_a_worker, two_crashes_of_anybody]
LEGAL += [another_run_of_the_struck, a_probe]


@pytest.mark.parametrize("forge", LEGAL)
def test_what_faults_explain_is_no_breach(forge: Callable[[Night], None], night: Night) -> None:
    forge(night)
    assert night.verdict() == []


def test_no_crash_explains_more_in_flight_than_are_allowed(night: Night) -> None:
    night.strike("freeze_child", "large")
    night.strike("kill_child", "large")
    three_in_flight(night)
    [sentence] = night.verdict()
    assert "in flight at once, 2 are allowed" in sentence


def test_crashes_explain_so_many_repeats_and_no_more(night: Night) -> None:
    night.strike("kill_child", "large")
    night.strike("kill_child", "recent")
    night.strike("lms_reset", "large")
    again("downgrade", 0, 1, 2)(night)
    [sentence] = night.verdict()
    assert "3 confirmed requests" in sentence
    assert "2 for each of 1 crashes, 2, are allowed" in sentence


def test_a_learner_of_two_licenses_may_be_sent_twice(night: Night) -> None:
    emails = [email for call in night.calls("twice", "unlink") for email in call.emails]
    assert any(email.startswith("twice-") for email in emails), "or nothing is tried"
    night.add("twice", "unlink", [next(email for email in emails if email.startswith("twice-"))])
    assert night.verdict() == []


def test_a_request_with_nothing_due_is_reported(night: Night) -> None:
    last = max(each.end or 0 for each in night.lms.journal.entries)
    entry = night.add("large", "downgrade", ["x"])
    [sentence] = requests_since(night.lms, last)
    assert f"downgrade #{entry.start} was sent for {night.enterprise('large')}" in sentence


def test_the_scan_finds_addresses_in_texts_and_in_the_ledger(night: Night) -> None:
    texts = {"a log": "To: someone@large.example", "another": f"To: {MALFORMED_EMAIL}", "a third": "license=1"}
    assert scan(texts, night.engine) == ["a log", "another"]
    night.execute(update(Run).values(error="refused: someone@large.example"))
    night.execute(update(HeldLicense).values(reason="bob@large.example"))
    assert sorted(scan({}, night.engine)) == ["license_expiry_held", "license_expiry_run"]
