"""What the driver does to a broker, and what it sees there: the same on both."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.broker import Broker, Messages
from chaos.brokers import BROKERS
from chaos.servers import require

STEP = ("unlink_learners", {"run_id": "a", "enterprise_customer_uuid": "somebody@learners.example"})
RECONCILE: tuple[str, dict[str, str]] = ("reconcile", {})


@pytest.fixture(params=list(BROKERS))
def broker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broker]:
    require(request.param)
    server = BROKERS[request.param](tmp_path)
    monkeypatch.setenv("CELERY_BROKER_URL", server.url)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def messages(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Iterator[Messages]:
    monkeypatch.delitem(sys.modules, "celeryconfig", raising=False)  # it is read anew, for this broker
    made = broker.messages()
    made.look()
    yield made
    made.reconnect()
    sys.modules.pop("celeryconfig", None)


@pytest.mark.long
def test_messages_are_counted_read_and_put_there_again(broker: Broker, messages: Messages) -> None:
    assert (messages.queued, messages.taken) == (0, 0)
    assert not messages.duplicate(0.5, 1)
    assert not messages.replay(0.5, 1)

    messages.post(STEP, STEP)
    messages.look()
    assert (messages.queued, len(messages.seen)) == (2, 2)
    messages.post(RECONCILE)
    messages.look()
    assert set(messages.seen.values()) == {"unlink_learners"}, "reconcile is not remembered"
    assert "somebody@learners.example" in messages.text(), "or the search for addresses finds none"
    before = messages.queued
    assert messages.duplicate(0.5, 2)
    messages.look()
    assert messages.queued == before + 2

    broker.reset()
    messages.reconnect()
    broker.flush()
    messages.look()
    assert messages.queued == 0
    assert not messages.duplicate(0.5, 1)
    assert messages.replay(0.5, 1)


@pytest.mark.long
def test_a_server_that_was_frozen_or_killed_comes_back(broker: Broker, messages: Messages) -> None:
    messages.post(STEP)
    broker.freeze()
    assert not broker.up
    broker.thaw()
    assert broker.up
    messages.look()
    assert messages.queued == 1

    broker.kill()
    assert not broker.up
    assert not broker.answers()
    broker.start()
    messages.reconnect()
    messages.look()
    assert messages.queued == (broker.name == "rabbitmq"), "its queues are durable"
