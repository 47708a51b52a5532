"""The simulator's learners, a service user that is not staff, and what stands in front of the LMS, over HTTP."""

from datetime import timedelta
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


@pytest.fixture
def people(lms: Simulator, enterprise: UUID) -> UUID:
    """Twelve learners of an enterprise, and the last one of another; number 0 is linked to none."""
    for number in range(13):
        lms.state.add_learner(number, f"{number}@x.example")
    lms.state.add_enterprise(enterprise, [f"{number}@x.example" for number in range(1, 12)])
    lms.state.add_enterprise(uuid4(), ["12@x.example"])
    return enterprise


def test_the_linked_learners_among_those_asked_for_are_listed(client: Client, people: UUID, lms: Simulator) -> None:
    answer = client.learners(people, 0, 2, 12, 1, 99, page_size=10)
    assert answer.status_code == 200
    listed = answer.json()
    assert {name: listed[name] for name in ("count", "next", "previous")} == {
        "count": 2,
        "next": None,
        "previous": None,
    }
    assert [(each["user_id"], each["user"]["id"], each["user"]["email"]) for each in listed["results"]] == [
        (1, 1, "1@x.example"),
        (2, 2, "2@x.example"),
    ]
    assert listed["results"][0]["enterprise_customer"]["uuid"] == str(people)
    [entry] = lms.calls("learners")
    assert (entry.enterprise, entry.user_ids, entry.status) == (str(people), [0, 2, 12, 1, 99], 200)


def test_learners_come_page_by_page(client: Client, people: UUID) -> None:
    def ids(answer: requests.Response) -> list[int]:
        return [each["user_id"] for each in answer.json()["results"]]

    first = client.learners(people, *range(13))
    assert (ids(first), first.json()["count"], first.json()["previous"]) == (list(range(1, 11)), 11, None)
    second = client.session.get(first.json()["next"], timeout=30)
    assert (ids(second), second.json()["next"]) == ([11], None)
    assert ids(client.session.get(second.json()["previous"], timeout=30)) == list(range(1, 11))
    assert ids(client.learners(people, *range(13), page_size=4, page=3)) == [9, 10, 11]
    assert len(ids(client.learners(people, *range(13), page_size=1000))) == 11
    for beyond in (3, 0, "x"):
        assert client.learners(people, *range(13), page=beyond).status_code == 404
    assert ids(client.learners(uuid4(), 1)) == ids(client.learners("x", 1)) == ids(client.learners(people)) == []
    client.session.headers["Authorization"] = ""
    assert client.learners(people, 1).status_code == 401


def test_a_learner_who_changed_their_address_is_not_unlinked_under_the_old_one(
    client: Client, people: UUID, lms: Simulator
) -> None:
    lms.change_email(1, "new@x.example")
    assert client.unlink(people, ["1@x.example"]).status_code == 200
    assert client.learners(people, 1).json()["results"][0]["user"]["email"] == "new@x.example"
    assert client.unlink(people, ["\u2003new@x.example\u00a0\x1f"]).status_code == 200
    assert client.learners(people, 1).json()["count"] == 0


def test_a_service_user_that_is_not_staff_downgrades_and_unlinks_nobody_and_sees_nobody(
    client: Client, people: UUID, lms: Simulator
) -> None:
    lms.staff(False)
    assert client.downgrade(enroll(lms, people)).status_code == 200
    assert client.unlink(people, ["1@x.example"]).status_code == 404
    assert client.learners(people, 1).json()["count"] == 0
    lms.staff(True)
    assert client.learners(people, 1).json()["count"] == 1


def test_a_license_with_another_address_of_the_same_user_ends_with_the_accounts(tmp_path: Any) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/data.sqlite3")
    create_tables(engine)
    data = Data(engine)
    agreement = data.agreement()
    later, earlier = data.plan(agreement, expires=data.now), data.plan(agreement, expires=data.now - timedelta(days=9))
    data.license(later, " new@x.example\u3000", lms_user_id=7)
    data.license(earlier, "old@x.example", lms_user_id=7)
    data.flush()
    customer = agreement.enterprise_customer_uuid
    with Simulator(engine) as lms:
        assert lms.state.linked[customer] == {"new@x.example", "old@x.example"}
        client = Client(lms)
        assert client.learners(customer, 7).json()["results"][0]["user"]["email"] == "new@x.example"
        client.unlink(customer, ["new@x.example"])
        assert lms.state.linked[customer] == set()
        client.session.close()
    engine.dispose()


def test_a_firewall_and_a_limit_look_at_the_body(client: Client, lms: Simulator, enterprise: UUID) -> None:
    page = "<html>Blocked</html>"
    lms.faults(Fault(containing=GOOD, status=403, body=page), Fault("unlink", longer_than=200, status=413))
    blocked = client.unlink(enterprise, ["other@x.example", GOOD])
    assert (blocked.status_code, blocked.text) == (403, page)
    assert blocked.headers["Content-Type"].startswith("text/html")
    assert client.unlink(enterprise, ["other@x.example"]).status_code == 200
    assert client.unlink(enterprise, [f"{number}@long.example" for number in range(20)]).status_code == 413
    assert lms.state.linked[enterprise] == {GOOD}


@pytest.mark.parametrize(
    ("body", "kind"),
    [("", None), ("<html>", "text/html"), ('{"a": 1}', "application/json"), ("down", "text/plain")],
)
def test_a_fault_says_what_its_body_is_and_an_empty_answer_has_no_type(
    client: Client, lms: Simulator, enterprise: UUID, body: str, kind: str | None
) -> None:
    lms.faults(Fault("unlink", status=200, body=body))
    answer = client.unlink(enterprise, [GOOD])
    assert (answer.text, (answer.headers.get("Content-Type") or "").partition(";")[0] or None) == (body, kind)
