"""What each outcome of an LMS call comes to and how long is waited, on a clock and a transport of the test's own."""

import pytest
import requests
from support.wire import (
    EMAIL,
    ENTERPRISE,
    Clock,
    Reply,
    Wire,
    downgrade,
    fails,
    http_date,
    subclasses,
    throttled,
    unlink,
)

from worker.errors import BatchRefused, RunRefused, Unavailable
from worker.lms import patience
from worker.lms.client import NOBODYS_EMAIL, NOBODYS_LICENSE, RECENTLY, LmsClient
from worker.lms.patience import Patience

# How often


@pytest.mark.parametrize("tries", [1, 3, 4])
def test_an_lms_that_stays_away_is_tried_as_often_as_patience_says(wire: Wire, tries: int) -> None:
    client = LmsClient("https://l", "https://l", "k", "s", patience=Patience(tries=tries))
    wire.says(503)
    error = fails(client)
    assert (type(error), error.reason, len(wire.calls)) == (Unavailable, "http_503", tries)


@pytest.mark.parametrize(
    ("script", "sends"),
    [
        pytest.param([503, 503, 503, 200], 4, id="the last try counts"),
        pytest.param([502, 504, 200], 3, id="a load balancer's answers"),
        pytest.param([408, 200], 2, id="a request time-out"),
        pytest.param([500, 200], 2, id="a 500 that does not stay"),
        pytest.param([500, 503, 200], 3, id="a 500, then a restart"),
        pytest.param([503, 500, 200], 3, id="a restart, then one 500: it does not stay either"),
        pytest.param([requests.ReadTimeout(), requests.ConnectionError(), 200], 3, id="the network"),
        pytest.param([429, 503, 429, 503, 429, 503, 429, 200], 8, id="a 429 uses up no try"),
    ],
)
def test_what_passes_is_tried_again_in_place(
    client: LmsClient, wire: Wire, script: list[int | Exception], sends: int
) -> None:
    wire.says(*script)
    downgrade(client)
    assert len(wire.calls) == sends


@pytest.mark.parametrize(
    ("status", "sends"),
    [
        pytest.param(400, 1, id="a 400 will not change"),
        pytest.param(422, 1, id="nor will a 422"),
        pytest.param(500, 2, id="a 500 may: once more, no oftener"),
    ],
)
def test_a_refused_batch_is_sent_as_often_as_its_status_deserves(
    client: LmsClient, wire: Wire, status: int, sends: int
) -> None:
    downgrade(client)
    wire.calls.clear()
    wire.says(*[status] * sends, 200)
    error = fails(client)
    assert (type(error), error.reason, len(wire.calls)) == (BatchRefused, f"http_{status}", sends)


@pytest.mark.parametrize(
    ("status", "sends"),
    [
        pytest.param(302, 1, id="a redirect is no refusal of a batch"),
        *(pytest.param(status, 2, id=f"{status}, and then for nobody") for status in (403, 404, 405, 413, 451)),
    ],
)
def test_what_will_not_change_is_not_sent_again(
    client: LmsClient, wire: Wire, clock: Clock, status: int, sends: int
) -> None:
    wire.says(status)
    error = fails(client)
    assert (type(error), error.reason, len(wire.calls)) == (RunRefused, f"http_{status}", sends)
    assert clock.slept == []


@pytest.mark.parametrize(
    ("status", "words"),
    [
        pytest.param(401, ("BACKEND_SERVICE_EDX_OAUTH2_KEY", "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT"), id="token refused"),
        pytest.param(403, ("permission", "enterprise operator role"), id="no permission"),
        pytest.param(404, ("enterprise", "not active", '"is staff"', "LMS_URL"), id="unknown enterprise, or not staff"),
        pytest.param(413, ("even the smallest request", "raise the limit"), id="too large"),
        pytest.param(405, ("LMS_URL",), id="not the API"),
        pytest.param(301, ("LMS_URL",), id="http for https, say"),
    ],
)
def test_a_run_that_is_refused_says_what_to_do(
    client: LmsClient, wire: Wire, status: int, words: tuple[str, ...]
) -> None:
    wire.says(status)
    message = str(fails(client))
    assert f"http_{status}" in message
    assert [word for word in words if word not in message] == []


def failures_of_requests() -> list[type[Exception]]:
    every = {kind.__name__: kind for kind in subclasses(requests.RequestException)}
    del every["JSONDecodeError"]  # an answer's, not a call's; and made of more than a message
    return [every[name] for name in sorted(every)]


@pytest.mark.parametrize("kind", failures_of_requests())
def test_every_failure_that_requests_knows_is_unavailable(client: LmsClient, wire: Wire, kind: type[Exception]) -> None:
    wire.says(kind(f"about {EMAIL}"))
    error = fails(client)
    reason = "timeout" if issubclass(kind, requests.Timeout) else "connection_error"
    assert (type(error), error.reason, len(wire.calls)) == (Unavailable, reason, 4)
    assert EMAIL not in str(error)


# 429


def test_a_throttled_call_waits_as_told_and_goes_on(client: LmsClient, wire: Wire) -> None:
    wire.says(throttled(60), throttled(http_date(30)), throttled(), 200)
    downgrade(client)
    first, second, third, fourth = (call.at for call in wire.calls)
    assert 60.0 <= second - first <= 66.5
    assert 25.0 <= third - second <= 33.5, "the date's form"
    assert 1.0 <= fourth - third <= 1.5, "without a header, the first wait"


def test_throttling_is_unavailable_only_when_it_lasts_longer_than_the_cap(client: LmsClient, wire: Wire) -> None:
    wire.says(*[throttled(60)] * 9, 200)  # 600 s in all at the most, as each wait is jittered
    downgrade(client)
    assert len(wire.calls) == 10
    wire.calls.clear()
    wire.says(*[throttled(60)] * 12, 200)
    error = fails(client)
    assert (type(error), error.reason, error.retry_after) == (Unavailable, "throttled", 60.0)
    assert len(wire.calls) <= 11, "tried no more once it is spent"


def test_a_wait_beyond_the_cap_is_not_begun(client: LmsClient, wire: Wire, clock: Clock) -> None:
    wire.says(throttled(601))
    error = fails(client)
    assert (error.reason, error.retry_after, len(wire.calls), clock.slept) == ("throttled", 601.0, 1, [])


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(0, id="at once, says a rounded-down window"),
        pytest.param(http_date(-60), id="a date of a clock that is slow"),
    ],
)
def test_a_throttle_that_says_at_once_for_ever_is_given_up_too(client: LmsClient, wire: Wire, after: object) -> None:
    wire.says(throttled(after))
    error = fails(client)
    assert (type(error), error.reason) == (Unavailable, "throttled")


def test_a_short_pause_does_not_cut_a_longer_one() -> None:
    pause = patience.Pause()
    pause.extend(600.0)
    pause.extend(1.0)
    assert pause.remaining() > 500.0


# The probe

HTML = {"Content-Type": "text/html"}
PAGE_400, PAGE_403 = (Reply(status, HTML, "<html>Blocked</html>") for status in (400, 403))


def test_a_refusal_is_believed_when_the_lms_takes_a_call_that_concerns_nobody(client: LmsClient, wire: Wire) -> None:
    wire.says(422, 200)
    assert type(fails(client)) is BatchRefused
    assert wire.bodies()[1] == {
        "expired_license_uuids": [str(NOBODYS_LICENSE)],
        "ignore_enrollments_modified_after": None,
    }


def test_the_probe_is_asked_of_the_same_enterprise(client: LmsClient, wire: Wire) -> None:
    wire.says(400, 200)
    with pytest.raises(BatchRefused):
        unlink(client)
    assert wire.bodies()[1] == {"user_emails": [NOBODYS_EMAIL], "is_relinkable": True}
    assert str(ENTERPRISE) in wire.calls[1].url


@pytest.mark.parametrize(
    ("since", "probes"),
    [
        pytest.param(0.0, 0, id="it has just answered"),
        pytest.param(RECENTLY - 1, 0, id="recently enough"),
        pytest.param(RECENTLY + 1, 1, id="too long ago to tell"),
    ],
)
def test_an_lms_that_answered_recently_is_not_probed(
    client: LmsClient, wire: Wire, clock: Clock, since: float, probes: int
) -> None:
    downgrade(client)
    clock.now += since
    wire.calls.clear()
    wire.says(422, 200)
    assert type(fails(client)) is BatchRefused
    assert len(wire.calls) == 1 + probes


@pytest.mark.parametrize(
    "refusal",
    [
        pytest.param(Reply(403), id="the role may have been taken away just now"),
        pytest.param(Reply(404), id="or the enterprise"),
        pytest.param(Reply(413), id="or a limit been set"),
        pytest.param(PAGE_400, id="or a firewall"),
        pytest.param(PAGE_403, id="which may answer 403"),
    ],
)
def test_a_refusal_that_may_be_of_every_call_is_probed_though_the_lms_answered_recently(
    client: LmsClient, wire: Wire, refusal: Reply
) -> None:
    """Else all licenses of some seconds were held, one by one."""
    downgrade(client)
    wire.calls.clear()
    wire.says(refusal)
    assert type(fails(client)) is RunRefused
    assert len(wire.calls) == 2
    wire.says(refusal, 200)
    assert type(fails(client)) is BatchRefused, "and it is the batch's when the probe is taken"


def test_a_probe_that_was_answered_counts_as_an_answer(client: LmsClient, wire: Wire) -> None:
    for script, sends in (([422, 200], 2), ([422], 1)):
        wire.calls.clear()
        wire.says(*script)
        assert type(fails(client)) is BatchRefused
        assert len(wire.calls) == sends


def test_what_one_call_answered_says_nothing_about_the_other(client: LmsClient, wire: Wire) -> None:
    downgrade(client)
    wire.calls.clear()
    wire.says(400, 200)
    with pytest.raises(BatchRefused):
        unlink(client)
    assert len(wire.calls) == 2


@pytest.mark.parametrize(
    ("probe", "kind", "reason"),
    [
        pytest.param([422], Unavailable, "http_422", id="refused as well: the LMS is broken"),
        pytest.param([500], Unavailable, "http_500", id="failed as well"),
        pytest.param([503], Unavailable, "http_503", id="gone in between"),
        pytest.param([403], RunRefused, "http_403", id="the permission was taken away in between"),
        pytest.param([404], RunRefused, "http_404", id="it does not know the enterprise"),
        pytest.param([418], RunRefused, "http_418", id="nothing known"),
        pytest.param([PAGE_400], RunRefused, "not_the_lms", id="a firewall that refuses everything"),
        pytest.param([PAGE_403], RunRefused, "not_the_lms", id="a sign-in page"),
        pytest.param([Reply(500, HTML, "<html>")], Unavailable, "http_500", id="the LMS's own page of a 500"),
    ],
)
def test_what_the_probe_meets_decides(
    client: LmsClient, wire: Wire, probe: list[int | Reply], kind: type[Exception], reason: str
) -> None:
    wire.says(422, *probe)
    error = fails(client)
    assert (type(error), error.reason) == (kind, reason)


def test_the_first_refusal_after_a_boot_is_probed(client: LmsClient, wire: Wire, clock: Clock) -> None:
    clock.now = 5.0  # a steady clock counts from the boot: "never answered" is not "answered at 0.0"
    wire.says(422)
    assert type(fails(client)) is Unavailable
