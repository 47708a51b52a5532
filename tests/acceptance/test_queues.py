"""What lies in the broker: counted for `reconcile`, and never more than what is to be done."""

import pytest
from celery import Celery
from support.processes import BOTH_BROKERS

from simulator.processes import free_port
from tasks.broker import count_messages


@BOTH_BROKERS
def test_messages_that_wait_are_counted(broker: str) -> None:
    app = Celery("a test", broker=broker, set_as_current=False)
    app.conf.task_default_queue = "license_expiry"
    assert count_messages(app) == 0, "of a queue that nobody has used yet"
    for _ in range(3):
        app.send_task("license_expiry.downgrade_enrollments")
    assert count_messages(app) == 3
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue("license_expiry")
        messages = [queue.get(timeout=10) for _ in range(3)]
        assert count_messages(app) == 0, "what a worker has received does not wait"
        for message in messages:
            message.ack()


@pytest.mark.parametrize("scheme", ["redis", "amqp"])
def test_a_broker_that_is_away_is_not_taken_for_an_empty_one(scheme: str) -> None:
    away = Celery("away", broker=f"{scheme}://127.0.0.1:{free_port()}//", set_as_current=False)
    assert count_messages(away) is None
