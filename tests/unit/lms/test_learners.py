"""The question who is linked to an enterprise: how it is asked, and what is made of each answer."""

import json
import traceback
from math import inf
from typing import Any

import pytest
from support.wire import ENTERPRISE, Clock, Reply, Wire, throttled

from worker.errors import LeaseLost, ReasonedError, RunRefused, Unavailable
from worker.lms.client import LmsClient
from worker.lms.patience import Patience

SECRET = "zaphod@x.example"


def learner(user_id: Any, email: Any = SECRET, **others: Any) -> dict[str, Any]:
    user = {"id": user_id, "username": "u", "email": email}
    return {"id": 9, "enterprise_customer": {"uuid": str(ENTERPRISE)}, "user_id": user_id, "user": user} | others


def page(*results: Any, more: bool = False, **others: Any) -> Reply:
    further = "https://elsewhere.example/?page=7" if more else None
    return Reply(body=json.dumps({"next": further, "previous": None, "results": list(results)} | others))


def ask(client: LmsClient, *user_ids: int) -> dict[int, str] | None:
    return client.linked_learners(ENTERPRISE, user_ids, lambda: inf)


def test_it_is_asked_exactly_so(client: LmsClient, wire: Wire) -> None:
    wire.says(page(learner(1), learner(3, " Mixed.Case@X.example "), count=2))
    assert ask(client, 3, 1, 2, 3) == {1: SECRET, 3: " Mixed.Case@X.example "}
    [call] = wire.calls
    path = f"/enterprise/api/v1/enterprise-learner/?enterprise_customer_uuid={ENTERPRISE}&user_ids=3,1,2&page_size=3"
    assert call.url == f"https://lms.example{path}"
    assert (call.headers["Authorization"], call.body) == ("JWT t", "")


def test_nobody_is_not_asked_about(client: LmsClient, wire: Wire) -> None:
    assert ask(client) == {}
    assert wire.calls == []


def test_pages_are_counted_here_and_no_address_of_the_answer_is_followed(client: LmsClient, wire: Wire) -> None:
    wire.says(page(learner(1), more=True), page(learner(2), more=True), page(learner(3)))
    assert ask(client, 1, 2, 3) == dict.fromkeys((1, 2, 3), SECRET)
    assert [call.url.partition("page_size=3")[2] for call in wire.calls] == ["", "&page=2", "&page=3"]
    assert {call.url.split("/")[2] for call in wire.calls} == {"lms.example"}


def test_a_page_without_results_is_the_last(client: LmsClient, wire: Wire) -> None:
    wire.says(page(learner(1), more=True), page(more=True))
    assert ask(client, 1, 2, 3) == {1: SECRET}


def test_many_users_are_asked_for_in_parts(client: LmsClient, wire: Wire) -> None:
    """A server's line of a request has 4 kB, and a page of the LMS no more than 100."""
    wire.says(page(learner(2**31 - 1), count=1), page(learner(2**31 - 101), count=1), page(count=0))
    everybody = [2**31 - number for number in range(1, 251)]
    assert ask(client, *everybody) == {2**31 - 1: SECRET, 2**31 - 101: SECRET}
    assert len(wire.calls) == 3
    assert max(len(call.url) for call in wire.calls) < 1500


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        pytest.param([Reply(403)], 1, id="no permission"),
        pytest.param([Reply(404)], 1, id="no such thing"),
        pytest.param([Reply(400)], 1, id="not so"),
        pytest.param([Reply(414)], 1, id="too long"),
        pytest.param([Reply(403, {"Content-Type": "text/html"}, "<html>")], 1, id="a firewall"),
        pytest.param([page(learner(1), learner(7))], 1, id="all learners: this LMS knows no user_ids"),
    ],
)
def test_a_question_that_is_refused_or_not_known_is_none(
    client: LmsClient, wire: Wire, answers: list[Reply], asked: int
) -> None:
    wire.says(*answers)
    assert ask(client, 1, 2) is None
    assert len(wire.calls) == asked


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([Reply(body=f"it is {SECRET}")], id="no JSON"),
        pytest.param([Reply(body="")], id="nothing"),
        pytest.param([Reply(body=f'["{SECRET}"]')], id="a list"),
        pytest.param([Reply(body=f'"{SECRET}"')], id="a text"),
        pytest.param([Reply(body="null")], id="null"),
        pytest.param([Reply(body=f'{{"detail": "{SECRET}"}}')], id="no results"),
        pytest.param([Reply(body=f'{{"results": "{SECRET}"}}')], id="results that are no list"),
        pytest.param([page(SECRET)], id="a result that is a text"),
        pytest.param([page(None)], id="or null"),
        pytest.param([page({"user": {"email": SECRET}})], id="without a user's id"),
        pytest.param([page(learner(str(1)))], id="an id that is a text"),
        pytest.param([page(learner(True))], id="or a truth"),
        pytest.param([page({"user_id": 1})], id="without a user"),
        pytest.param([page(learner(1, user={"id": 1, "username": SECRET}))], id="a user without an e-mail"),
        pytest.param([page(learner(1, email=None))], id="whose e-mail is null"),
        pytest.param([page(learner(1, user=SECRET))], id="a user that is a text"),
        pytest.param([page(learner(1), more=True)], id="pages without end"),
        pytest.param([page(learner(1), count=2)], id="fewer than it says there are"),
        pytest.param([page(learner(1), more=True, count=2), page(learner(1), count=2)], id="one twice, another never"),
        pytest.param([page(learner(1), more=True), Reply(404)], id="a page that is gone since"),
    ],
)
def test_what_is_not_understood_is_for_later_and_tells_no_address(
    client: LmsClient, wire: Wire, answers: list[Reply]
) -> None:
    wire.says(*answers)
    with pytest.raises(Unavailable) as caught:
        ask(client, 1, 2)
    assert caught.value.reason == "not_understood"
    assert caught.value.remedy
    assert "zaphod" not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert len(wire.calls) <= 3


def test_an_account_that_is_gone_is_nobody_to_be_unlinked(client: LmsClient, wire: Wire) -> None:
    wire.says(page(learner(1), learner(2, user=None), count=2))
    assert ask(client, 1, 2) == {1: SECRET}


@pytest.mark.parametrize(
    ("script", "kind", "reason", "sends"),
    [
        pytest.param(
            [Reply(body="<html>", headers={"Content-Type": "text/html"})], RunRefused, "not_the_lms", 1, id="a page"
        ),
        pytest.param([202], RunRefused, "not_the_lms", 1, id="accepted"),
        pytest.param([Reply(302, {"Location": "/login"})], RunRefused, "not_the_lms", 1, id="a redirect"),
        pytest.param([401], RunRefused, "http_401", 2, id="no token will do"),
        pytest.param([503], Unavailable, "http_503", 3, id="away"),
        pytest.param([408], Unavailable, "http_408", 3, id="too slow"),
        pytest.param([500], Unavailable, "http_500", 2, id="broken"),
        pytest.param([throttled(5)], Unavailable, "throttled", 1, id="throttled for as long as in_place"),
    ],
)
def test_what_every_call_meets_this_one_meets_too(
    client: LmsClient, wire: Wire, script: list[int | Reply], kind: type[ReasonedError], reason: str, sends: int
) -> None:
    wire.says(*script)
    with pytest.raises(kind) as caught:
        ask(client, 1)
    assert (caught.value.reason, len(wire.calls)) == (reason, sends)


def test_it_goes_by_the_pace_the_tries_and_the_token_of_all_calls(wire: Wire, clock: Clock) -> None:
    observed: list[tuple[str, str]] = []

    def observe(kind: str, outcome: str, _: float) -> None:
        observed.append((kind, outcome))

    patience = Patience(in_place=900.0)
    client = LmsClient(
        "https://l",
        "https://l",
        "k",
        "s",
        unlink_timeout=22,
        observe=observe,
        next_call_in=lambda kind, within: 10.0,
        patience=patience,
    )
    wire.says(503, throttled(60), 401, page(learner(1)))
    guarded: list[float] = []

    def guard() -> float:
        guarded.append(clock.now)
        return inf

    assert client.linked_learners(ENTERPRISE, [1], guard) == {1: SECRET}
    assert guarded == [call.at for call in wire.calls]
    assert [outcome for kind, outcome in observed if kind == "learners"] == [
        f"http_{status}" for status in (503, 429, 401, 200)
    ]
    assert {call.seconds for call in wire.calls} == {22}
    assert wire.calls[0].at - 100_000 == 10.0, "the booked rate"


def test_what_the_guard_raises_ends_it(client: LmsClient, wire: Wire) -> None:
    def guard() -> float:
        raise LeaseLost("taken over")

    with pytest.raises(LeaseLost):
        client.linked_learners(ENTERPRISE, [1], guard)
    assert wire.calls == []
