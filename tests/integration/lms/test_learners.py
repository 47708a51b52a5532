"""Who is linked, asked of a simulated LMS."""

from uuid import uuid4

from support.lms_calls import EMAILS, Customer, nothing

from simulator.lms.server import Simulator
from worker.lms.client import LmsClient, Selection


def test_linked_learners_are_found_under_the_address_that_they_have_now(
    lms: Simulator, client: LmsClient, customer: Customer
) -> None:
    for user_id, email in enumerate(EMAILS):
        lms.state.add_learner(user_id, email)
    lms.change_email(0, "New.Name@x.example")
    client.unlink(customer.enterprise, lambda: Selection([EMAILS[0], EMAILS[3]]), nothing)
    found = client.linked_learners(customer.enterprise, range(9), nothing)
    assert found == {0: "New.Name@x.example", 1: EMAILS[1], 2: EMAILS[2]}, "the old address was passed over with a 200"
    client.unlink(customer.enterprise, lambda: Selection(["New.Name@x.example"]), nothing)
    assert client.linked_learners(customer.enterprise, [0], nothing) == {}
    assert client.linked_learners(uuid4(), [1], nothing) == {}


def test_more_learners_than_a_page_holds_are_all_found(lms: Simulator, client: LmsClient) -> None:
    enterprise = uuid4()
    lms.state.add_enterprise(enterprise, [f"{number}@x.example" for number in range(250)])
    for number in range(250):
        lms.state.add_learner(number, f"{number}@x.example")
    found = client.linked_learners(enterprise, range(1000), nothing)
    assert found == {number: f"{number}@x.example" for number in range(250)}
