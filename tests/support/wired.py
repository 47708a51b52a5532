"""The queue of the tasks, in memory, for tests of their bodies."""

from typing import Any

from celery import Celery
from celery.worker.request import Request
from kombu import Message


class Queue:
    """The queue of the tasks, in memory; whoever takes a message from it carries it out."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._queue = app.connection_for_read().SimpleQueue("license_expiry")

    def take(self) -> Message:
        """The next message."""
        message: Message = self._queue.get(block=False)
        message.ack()
        return message

    def carry_out(self, message: Message) -> Any:
        """Do what a message says, as a worker's child does; give the result that Celery keeps."""
        request = Request(message, app=self._app, hostname="a-test")
        result = self._app.AsyncResult(request.id)
        result.forget()  # or what came of the same message before would be kept
        request.execute()
        return result

    def next(self) -> Any:
        """Carry the next message out."""
        return self.carry_out(self.take())

    def empty(self) -> bool:
        """Is nothing left?"""
        return bool(self._queue.qsize() == 0)
