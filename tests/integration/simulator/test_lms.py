"""The simulator answers as the LMS was observed to: facts/lms_api.md, row by row, over HTTP."""

import json
import subprocess
import sys
import threading
from typing import Any
from uuid import UUID, uuid4

import pytest
import requests
from sqlalchemy import create_engine
from support.plain_client import GOOD, Client, enroll

from simulator.data.rows import Data
from simulator.data.schema import create_tables
from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from simulator.lms.state import Enrollment

PAST = "2025-01-01T00:00:00Z"


def modes(lms: Simulator, *licenses: UUID) -> list[list[str]]:
    return [[one.mode for one in lms.state.enrollments(license)] for license in licenses]


# The token


def test_a_token_is_given_for_the_right_credentials(client: Client) -> None:
    answer = client.token()
    assert answer.status_code == 200
    assert answer.json()["expires_in"] == 3600


@pytest.mark.parametrize("wrong", [{"client_id": "x"}, {"client_secret": "x"}, {"client_secret": ""}])
def test_wrong_credentials_get_no_token(client: Client, wrong: dict[str, str]) -> None:
    answer = client.token(**wrong)
    assert (answer.status_code, answer.json()) == (401, {"error": "invalid_client"})


def test_only_client_credentials_are_a_grant(client: Client) -> None:
    assert client.token(grant_type="password").status_code == 400


@pytest.mark.parametrize(
    ("scheme", "status"),
    [
        ("JWT {}", 200),
        ("Bearer {}", 401),  # what general OAuth libraries send
        ("JWT x{}", 401),
        ("", 401),
    ],
)
def test_calls_need_the_token_as_jwt(
    client: Client, lms: Simulator, enterprise: UUID, scheme: str, status: int
) -> None:
    client.session.headers["Authorization"] = scheme.format(client.token().json()["access_token"])
    assert client.unlink(enterprise, [GOOD]).status_code == status
    assert (GOOD in lms.state.linked[enterprise]) == (status == 401)


def test_a_token_of_another_type_is_refused(client: Client, enterprise: UUID) -> None:
    token = client.token(token_type="bearer").json()["access_token"]
    client.session.headers["Authorization"] = f"JWT {token}"
    assert client.unlink(enterprise, [GOOD]).status_code == 401


def test_a_forgotten_token_is_refused_and_a_new_one_is_accepted(
    client: Client, lms: Simulator, enterprise: UUID
) -> None:
    lms.forget_tokens()
    assert client.unlink(enterprise, [GOOD]).status_code == 401
    client.sign_in()
    assert client.unlink(enterprise, [GOOD]).status_code == 200


def test_a_token_expires(enterprise: UUID) -> None:
    with Simulator(token_seconds=0) as lms:
        client = Client(lms)
        assert client.unlink(enterprise, [GOOD]).status_code == 401
        client.session.close()


# The downgrade


def test_all_enrollments_of_a_batch_are_downgraded(client: Client, lms: Simulator, enterprise: UUID) -> None:
    one, two = enroll(lms, enterprise), enroll(lms, enterprise, Enrollment(), Enrollment())
    answer = client.downgrade(one, two)
    assert (answer.status_code, answer.content) == (200, b"")
    assert modes(lms, one, two) == [["audit"], ["audit", "audit"]]


def test_unknown_licenses_and_audit_enrollments_are_skipped(client: Client, lms: Simulator, enterprise: UUID) -> None:
    license = enroll(lms, enterprise, Enrollment("audit", fault="locked"))
    assert client.downgrade(license, license, uuid4()).status_code == 200
    assert client.downgrade(license).status_code == 200


def test_a_locked_enrollment_is_a_422_and_the_others_are_downgraded(
    client: Client, lms: Simulator, enterprise: UUID
) -> None:
    batch = [
        enroll(lms, enterprise),
        enroll(lms, enterprise, Enrollment(fault="locked")),
        enroll(lms, enterprise),
    ]
    answer = client.downgrade(*batch)
    assert (answer.status_code, answer.content) == (422, b"")
    assert modes(lms, *batch) == [["audit"], ["verified"], ["audit"]]


@pytest.mark.parametrize(("atomic", "first"), [(True, ["verified"]), (False, ["audit"])])
def test_a_course_without_an_overview_is_a_500_halfway(
    client: Client, lms: Simulator, enterprise: UUID, atomic: bool, first: list[str]
) -> None:
    lms.atomic(atomic)
    batch = [
        enroll(lms, enterprise),
        enroll(lms, enterprise, Enrollment(fault="no_overview")),
        enroll(lms, enterprise),
    ]
    assert client.downgrade(*batch).status_code == 500
    assert modes(lms, *batch) == [first, ["verified"], ["verified"]]


@pytest.mark.parametrize(("after", "status"), [(None, 200), (PAST, 500)])
def test_missing_history_matters_only_with_a_date(
    client: Client, lms: Simulator, enterprise: UUID, after: str | None, status: int
) -> None:
    license = enroll(lms, enterprise, Enrollment(fault="no_history"))
    assert client.downgrade(license, after=after).status_code == status


def test_an_enrollment_upgraded_since_is_left_alone(client: Client, lms: Simulator, enterprise: UUID) -> None:
    seeded = {
        "enterprise": str(enterprise),
        "uuid": str(uuid4()),
        "enrollments": [{"modified": "2025-02-01T00:00:00+00:00"}, {"modified": "2024-12-01T00:00:00+00:00"}],
    }
    assert client.post("/_simulator/seed", {"licenses": [seeded]}).status_code == 200
    license = UUID(str(seeded["uuid"]))
    assert client.downgrade(license, after=PAST).status_code == 200
    assert modes(lms, license) == [["verified", "audit"]]


def test_a_malformed_uuid_is_a_500_with_nothing_done(client: Client, lms: Simulator, enterprise: UUID) -> None:
    license = enroll(lms, enterprise)
    assert client.downgrade(license, "not-a-uuid").status_code == 500
    assert modes(lms, license) == [["verified"]]


def test_an_empty_list_and_a_bad_date_are_400(client: Client, lms: Simulator, enterprise: UUID) -> None:
    license = enroll(lms, enterprise)
    assert client.downgrade().status_code == 400
    assert client.downgrade(license, after="yesterday").status_code == 400
    assert modes(lms, license) == [["verified"]]


# The unlink


def test_linked_learners_are_unlinked_and_others_skipped(client: Client, lms: Simulator, enterprise: UUID) -> None:
    answer = client.unlink(enterprise, [f" {GOOD} ", GOOD, "nobody@x.example"])
    assert (answer.status_code, answer.content) == (200, b"")
    assert lms.state.linked[enterprise] == {"other@x.example"}
    assert lms.state.barred == {}


def test_without_is_relinkable_the_learner_is_barred(client: Client, lms: Simulator, enterprise: UUID) -> None:
    path = f"/enterprise/api/v1/enterprise-customer/{enterprise}/unlink_users/"
    assert client.post(path, {"user_emails": [GOOD]}).status_code == 200
    assert lms.state.barred == {enterprise: {GOOD}}
    assert lms.calls("unlink")[0].is_relinkable is None


@pytest.mark.parametrize("bad", ["malformed.address.example", "", "  ", None, "a b@x.example", 7])
def test_one_bad_email_refuses_the_batch_and_is_named_by_its_index(
    client: Client, lms: Simulator, enterprise: UUID, bad: object
) -> None:
    answer = client.unlink(enterprise, [GOOD, bad])
    assert answer.status_code == 400
    assert list(answer.json()["user_emails"]) == ["1"]
    assert GOOD in lms.state.linked[enterprise]


def test_an_empty_or_missing_list_is_a_400(client: Client, enterprise: UUID) -> None:
    assert client.unlink(enterprise, []).status_code == 400
    assert client.unlink(enterprise, "a@x.example").status_code == 400


def test_two_accounts_with_one_email_are_a_500_with_nobody_unlinked(
    client: Client, lms: Simulator, enterprise: UUID
) -> None:
    lms.state.two_accounts.add("other@x.example")
    assert client.unlink(enterprise, [GOOD, "other@x.example"]).status_code == 500
    assert GOOD in lms.state.linked[enterprise]


def test_an_unknown_or_inactive_enterprise_is_a_404(client: Client, lms: Simulator, enterprise: UUID) -> None:
    assert client.unlink(uuid4(), [GOOD]).status_code == 404
    lms.state.inactive.add(enterprise)
    assert client.unlink(enterprise, [GOOD]).status_code == 404
    assert client.unlink("not-a-uuid", [GOOD]).status_code == 404


def test_a_thousand_emails_are_taken_at_once(client: Client, lms: Simulator) -> None:
    enterprise, emails = uuid4(), [f"learner-{number}@x.example" for number in range(1000)]
    lms.state.add_enterprise(enterprise, emails)
    assert client.unlink(enterprise, emails).status_code == 200
    assert lms.state.linked[enterprise] == set()


def test_a_body_that_is_no_json_is_a_400(client: Client, lms: Simulator, enterprise: UUID) -> None:
    url = f"{lms.url}/enterprise/api/v1/enterprise-customer/{enterprise}/unlink_users/"
    assert client.session.post(url, data=b"{", timeout=30).status_code == 400


# Throttling and faults


def test_throttling_says_how_long_to_wait(client: Client, lms: Simulator, enterprise: UUID) -> None:
    lms.throttle(2, 60)
    license = enroll(lms, enterprise)
    assert [client.downgrade(license).status_code for _ in range(3)] == [200, 200, 429]
    answer = client.unlink(enterprise, [GOOD])
    assert answer.status_code == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    lms.throttle(0, 0)
    assert client.unlink(enterprise, [GOOD]).status_code == 200


def test_a_known_service_user_has_a_window_for_each_call(client: Client, lms: Simulator, enterprise: UUID) -> None:
    lms.throttle(whom="service")
    lms.lms.throttles["downgrade"].calls = 2
    license = enroll(lms, enterprise)
    assert [client.downgrade(license).status_code for _ in range(3)] == [200, 200, 429]
    assert client.unlink(enterprise, [GOOD]).status_code == 200


def test_any_other_user_has_one_window_for_all_calls(client: Client, lms: Simulator, enterprise: UUID) -> None:
    lms.throttle(whom="other")
    license = enroll(lms, enterprise)
    assert {client.downgrade(license).status_code for _ in range(60)} == {200}
    assert client.unlink(enterprise, [GOOD]).status_code == 429


def test_a_fault_answers_instead_of_the_lms(client: Client, lms: Simulator, enterprise: UUID) -> None:
    license = enroll(lms, enterprise)
    lms.faults(Fault(status=503, headers={"Retry-After": "7"}, body="<h1>Busy</h1>", times=1))
    answer = client.downgrade(license)
    assert (answer.status_code, answer.headers["Retry-After"], answer.text) == (503, "7", "<h1>Busy</h1>")
    assert modes(lms, license) == [["verified"]]
    assert client.downgrade(license).status_code == 200  # it fires once


@pytest.mark.parametrize(
    ("fault", "struck"),
    [
        (Fault("downgrade", nth=2), [2]),
        (Fault("downgrade", every=2), [1, 3, 5]),
        (Fault("downgrade", first=2, every=3), [2, 5]),
        (Fault("downgrade", first=2, last=4), [2, 3, 4]),
        (Fault("downgrade", first=2, times=2), [2, 3]),
        (Fault("unlink"), []),
    ],
)
def test_which_calls_a_fault_strikes(
    client: Client, lms: Simulator, enterprise: UUID, fault: Fault, struck: list[int]
) -> None:
    license = enroll(lms, enterprise)
    lms.faults(Fault.from_json({**fault.to_json(), "status": 502, "met": 0, "fired": 0}))
    answers = [client.downgrade(license).status_code for _ in range(5)]
    assert [number for number, status in enumerate(answers, 1) if status == 502] == struck


def test_a_fault_can_follow_an_enterprise_a_license_or_an_email(
    client: Client, lms: Simulator, enterprise: UUID
) -> None:
    one, two = enroll(lms, enterprise), enroll(lms, enterprise)
    lms.faults(Fault(license=str(two), status=500), Fault(email=GOOD, status=500))
    assert [client.downgrade(one).status_code, client.downgrade(one, two).status_code] == [200, 500]
    answers = [client.unlink(enterprise, [email]).status_code for email in ("other@x.example", GOOD)]
    assert answers == [200, 500]
    lms.faults(Fault(enterprise=str(enterprise), status=403))
    assert client.downgrade(one).status_code == 403
    assert client.downgrade(uuid4()).status_code == 200


@pytest.mark.parametrize(("drop", "mode"), [("before", "verified"), ("after", "audit")])
def test_a_connection_can_be_dropped_before_or_after_the_work(
    client: Client, lms: Simulator, enterprise: UUID, drop: Any, mode: str
) -> None:
    license = enroll(lms, enterprise)
    lms.faults(Fault("downgrade", drop=drop))
    with pytest.raises(requests.ConnectionError):
        client.downgrade(license)
    assert modes(lms, license) == [[mode]]
    [entry] = lms.calls("downgrade")
    assert (entry.dropped, entry.status, entry.worked) == (drop, None, drop == "after")


def test_a_load_balancer_can_time_out_after_the_work(client: Client, lms: Simulator, enterprise: UUID) -> None:
    license = enroll(lms, enterprise)
    lms.faults(Fault("downgrade", status=504, after_work=True))
    assert client.downgrade(license).status_code == 504
    assert modes(lms, license) == [["audit"]]


def test_an_answer_can_be_cut_short(client: Client, lms: Simulator, enterprise: UUID) -> None:
    lms.faults(Fault("unlink", truncate=True))
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        client.unlink(enterprise, [GOOD])
    assert GOOD not in lms.state.linked[enterprise]
    [entry] = lms.calls("unlink")
    assert (entry.status, entry.dropped, entry.worked) == (200, "truncated", True)


def test_a_redirect_that_is_followed_ends_on_a_page_that_answers_200(
    client: Client, lms: Simulator, enterprise: UUID
) -> None:
    lms.faults(Fault(status=302, headers={"Location": "/login"}))
    answer = client.unlink(enterprise, [GOOD])
    assert (answer.status_code, answer.history[0].status_code) == (200, 302)
    assert GOOD in lms.state.linked[enterprise]


def test_the_lms_finishes_its_work_after_a_client_timed_out(client: Client, lms: Simulator, enterprise: UUID) -> None:
    license = enroll(lms, enterprise)
    lms.faults(Fault("downgrade", delay=60))
    with pytest.raises(requests.Timeout):
        client.downgrade(license, timeout=0.1)
    client.session.close()
    [entry] = lms.calls("downgrade")
    lms.wait_for(lambda: entry.client_gone)
    assert entry.end is None
    lms.release()
    lms.wait_for(lambda: entry.end)
    assert modes(lms, license) == [["audit"]]


@pytest.mark.parametrize(("status", "answered"), [(None, 200), (504, 504)])
def test_an_answer_can_be_late_for_work_that_is_done(
    client: Client, lms: Simulator, enterprise: UUID, status: int | None, answered: int
) -> None:
    license = enroll(lms, enterprise)
    lms.faults(Fault("downgrade", delay=60, status=status, after_work=True))
    with pytest.raises(requests.Timeout):
        client.downgrade(license, timeout=0.1)
    client.session.close()
    [entry] = lms.calls("downgrade")
    lms.wait_for(lambda: entry.client_gone)
    assert (modes(lms, license), entry.worked) == ([["audit"]], True)
    assert (entry.end, entry.status, lms.journal.in_flight) == (None, None, 1)
    lms.release()
    lms.wait_for(lambda: entry.end)
    assert (entry.status, lms.journal.in_flight) == (answered, 0)
    assert entry.gone is not None
    assert entry.end is not None
    assert entry.start < entry.gone < entry.end


def test_a_late_answer_reaches_a_client_that_waits(client: Client, lms: Simulator, enterprise: UUID) -> None:
    lms.faults(Fault("unlink", delay=0.05, after_work=True))
    assert client.unlink(enterprise, [GOOD]).status_code == 200
    [entry] = lms.calls("unlink")
    assert (entry.worked, entry.client_gone) == (True, False)


@pytest.mark.parametrize("wrong", [[{"knd": "token"}], [{"kind": "x"}], [{"drop": "x"}], [{"every": 0}], [7], 7])
def test_a_wrong_fault_is_refused(client: Client, wrong: object) -> None:
    answer = client.post("/_simulator/faults", wrong)
    assert answer.status_code == 400
    assert answer.json()["error"]


# The journal and the control side


def test_the_journal_orders_starts_and_ends_and_counts_what_is_in_flight(
    client: Client, lms: Simulator, enterprise: UUID
) -> None:
    licenses = [enroll(lms, enterprise) for _ in range(3)]
    lms.faults(Fault("downgrade", delay=60))
    senders = [threading.Thread(target=client.downgrade, args=[license]) for license in licenses]
    for sender in senders:
        sender.start()
    lms.wait_for(lambda: len(lms.calls("downgrade")) == 3)
    assert [entry.end for entry in lms.calls("downgrade")] == [None] * 3
    lms.release()
    for sender in senders:
        sender.join()
    client.unlink(enterprise, [GOOD])
    entries = lms.journal.entries
    marks = [mark for entry in entries for mark in (entry.start, entry.end)]
    assert sorted(marks, key=lambda mark: mark or 0) == list(range(1, 11))
    *downgrades, unlink = entries[1:]
    assert all(entry.end and entry.end < unlink.start for entry in downgrades)
    assert [entry.in_flight for entry in entries] == [1, 1, 2, 3, 1]
    assert unlink.most_in_flight == 3


def test_the_journal_over_http(client: Client, enterprise: UUID, lms: Simulator) -> None:
    license = enroll(lms, enterprise)
    client.downgrade(license, after=PAST)
    client.unlink(enterprise, [GOOD])
    _, downgrade, unlink = client.session.get(f"{lms.url}/_simulator/journal", timeout=30).json()["entries"]
    assert (downgrade["kind"], downgrade["status"], downgrade["worked"]) == ("downgrade", 200, True)
    assert (downgrade["enterprise"], downgrade["licenses"]) == (str(enterprise), [str(license)])
    assert downgrade["ignore_enrollments_modified_after"] == PAST
    assert (unlink["enterprise"], unlink["emails"]) == (str(enterprise), [GOOD])
    assert unlink["is_relinkable"] is True
    counts = client.session.get(f"{lms.url}/_simulator/counts", timeout=30).json()
    assert counts["requests"] == {"token": 1, "downgrade": 1, "unlink": 1, "learners": 0, "other": 0}
    assert (counts["licenses_downgraded"], counts["linked"]) == (1, 1)
    client.post("/_simulator/reset", None)
    assert lms.journal.entries == []


def test_the_control_side_does_what_the_class_does(client: Client, lms: Simulator, enterprise: UUID) -> None:
    seeded = {
        "enterprises": [{"uuid": str(enterprise), "linked": ["third@x.example"], "active": False}],
        "learners": [{"user_id": 7, "email": "third@x.example"}],
        "two_accounts": ["two@x.example"],
    }
    for path, body in (
        ("faults", [{"kind": "token", "status": 503}]),
        ("throttle", {"calls": 1, "seconds": 1}),
        ("latency", {"seconds": 0}),
        ("seed", seeded),
        ("release", None),
        ("staff", {"staff": False}),
        ("atomic", {"atomic": False}),
        ("change-email", {"user_id": 7, "email": "fourth@x.example"}),
        ("forget-tokens", None),
    ):
        assert client.post(f"/_simulator/{path}", body).json() == {}
    assert client.token().status_code == 503
    assert (lms.lms.throttles != {}, lms.lms.tokens, lms.lms.atomic) == (True, {}, False)
    state = client.session.get(f"{lms.url}/_simulator/state", timeout=30).json()
    assert state["enterprises"][str(enterprise)]["active"] is False
    assert "fourth@x.example" in state["enterprises"][str(enterprise)]["linked"]
    assert (lms.lms.staff, lms.state.accounts) == (False, {7: "fourth@x.example"})
    assert client.post("/_simulator/change-email", {"user_id": 8, "email": "x"}).status_code == 400
    assert client.post("/_simulator/throttle", None).json() == {}
    assert lms.lms.throttles == {}
    assert client.post("/_simulator/throttle", {"whom": "service"}).json() == {}
    assert {kind: each.calls for kind, each in lms.lms.throttles.items()} == {"downgrade": 800, "unlink": 2000}
    assert client.post("/_simulator/reseed", None).status_code == 400  # it was given no database
    assert client.post("/_simulator/nothing", None).status_code == 404


def test_the_command_serves_a_database_and_stops_on_sigterm(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/data.sqlite3"
    engine = create_engine(url)
    create_tables(engine)
    data = Data(engine)
    data.license(data.plan(data.agreement()))
    data.flush()
    command = [sys.executable, "-m", "simulator", "serve", "--database", url, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip().removeprefix("LMS_URL=")
        assert requests.get(f"{address}/_simulator/counts", timeout=30).json()["licenses"] == 1
        data.license(data.plan(data.agreement()))
        data.flush()
        assert requests.post(f"{address}/_simulator/reseed", timeout=30).status_code == 200
        assert requests.get(f"{address}/_simulator/counts", timeout=30).json()["licenses"] == 2
        server.terminate()
        _, errors = server.communicate(timeout=30)
    assert (server.returncode, errors) == (0, "")
    engine.dispose()


def test_make_data_says_what_the_demo_shows_and_never_fills_twice(tmp_path: Any) -> None:
    database = f"sqlite:///{tmp_path}/data.sqlite3"
    command = [sys.executable, "-m", "simulator", "make-data", "--database", database]
    first = subprocess.run([*command, "--demo"], capture_output=True, text=True, check=True)
    assert "CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED=" in first.stdout
    again = subprocess.run([*command, "--enterprises", "1", "--licenses", "1"], capture_output=True, text=True)
    assert (again.returncode, "use an empty one" in again.stderr) == (1, True)
    wrong = subprocess.run(command, capture_output=True, text=True)
    assert (wrong.returncode, "either --demo" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("url", ["mysql://u:secret@127.0.0.1:1/no", "postgres://u:secret@127.0.0.1:1/no"])
def test_the_command_takes_the_urls_that_database_url_takes(url: str) -> None:
    command = [sys.executable, "-m", "simulator", "make-data", "--demo", "--database", url]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.stderr.startswith("Error: cannot fill the database: ")  # it has tried to connect
    assert "secret" not in refused.stderr


@pytest.mark.parametrize("command", [[], ["serve"], ["make-data"]])
def test_the_help_shows_no_backslash_b(command: list[str]) -> None:
    told = subprocess.run([sys.executable, "-m", "simulator", *command, "--help"], capture_output=True, text=True)
    assert told.stdout.startswith("Usage: ")
    assert "\\b" not in told.stdout


def test_an_error_in_the_simulator_prints_no_address(
    client: Client, lms: Simulator, enterprise: UUID, caplog: Any, capfd: Any, monkeypatch: Any
) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(lms.lms.state, "unlink", breaks)
    assert client.unlink(enterprise, [GOOD]).status_code == 500
    assert "The simulator broke on /enterprise/api" in caplog.text
    assert GOOD not in caplog.text + "".join(capfd.readouterr())
    assert GOOD in json.dumps(lms.journal.entries[-1].to_json())
