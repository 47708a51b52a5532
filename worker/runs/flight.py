"""Keeps LMS calls in flight, splits refused batches, and records the answers.

No transaction is open while a call is in flight. Everything is recorded by the one thread that runs the step.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeAlias
from uuid import UUID

from sqlalchemy.orm import Session

from worker.deps import Deps
from worker.errors import BatchRefused, Unavailable
from worker.ledger import held
from worker.ledger.claims import Claim
from worker.ledger.limits import Slots
from worker.logs import get_logger
from worker.runs.batches import Batch, BatchReader

log = get_logger(__name__)

# Batches whose answers come within this many seconds are recorded together, if they are the last ones.
TOGETHER_SECONDS = 0.02
# How often a run without a slot looks whether it is to end or to wait.
WAITING_SECONDS = 5.0

Send: TypeAlias = Callable[[Batch], Batch]
"""Sends a batch; returns what was really sent of it, or what is done for another reason."""
Confirm: TypeAlias = Callable[[Session, Sequence[Batch]], None]


class Flight:
    """The batches on their way: split and to be sent again, in flight, and answered but not recorded."""

    def __init__(
        self, deps: Deps, claim: Claim, reader: BatchReader, send: Send, confirm: Confirm, deadline: float
    ) -> None:
        """Take the batches of a reader, how to send one, how to record those that were confirmed, and when to stop.

        The deadline is of time.monotonic.
        """
        self._deps, self._claim, self._reader = deps, claim, reader
        self._send, self._confirm, self._deadline = send, confirm, deadline
        self._renew_seconds = deps.settings.LEASE_SECONDS / 3
        self._slots = Slots(deps.database, deps.settings.LMS_PARALLEL_REQUESTS, claim.run.id, claim.hold_slots)
        self._in_flight: dict[Future[Batch], Batch] = {}
        self._split: deque[Batch] = deque()
        self._answered: list[tuple[Batch, Future[Batch]]] = []
        self._confirmed: list[Batch] = []
        self._batches = 0
        self._stopped = self._used_up = False
        self._failure: Exception | None = None

    def send_all(self) -> bool:
        """Keep calls in flight until the batches are used up, something fails for good, or the deadline comes.

        A shutdown of the worker counts as the deadline. A failure stops what has not been sent; what is in flight is
        awaited and recorded before the failure is raised. Returns whether the batches are used up.
        """
        while not self._ended:
            for part in (self._settle, self._fill, self._record, self._wait_for_answer, self._renew_lease):
                try:
                    part()
                except Exception as error:
                    self._failure = self._failure or error
        if self._failure:
            raise self._failure
        return self._used_up

    @property
    def _ended(self) -> bool:
        over = self._failure or self._stopped or (self._used_up and not self._split)
        return bool(over) and not (self._in_flight or self._answered or self._confirmed)

    def _settle(self) -> None:
        """Look at the answers: split refused batches, and record at once which single licenses were refused.

        Before the next batch is made: a learner with a license that is held must stay linked.
        """
        answered, self._answered = self._answered, []
        refused: list[tuple[UUID, str]] = []
        for batch, future in answered:
            try:
                sent = future.result()
                if sent.rows:
                    self._confirmed.append(sent)
            except BatchRefused as refusal:
                if len(batch.rows) > 1:
                    self._split.extendleft(reversed(batch.halves))
                else:
                    log.debug("held", license=batch.licenses[0], reason=refusal.reason)
                    refused.append((batch.licenses[0], refusal.reason))
            except Exception as error:
                self._failure = self._failure or error
        if refused:
            self._hold(refused)

    def _hold(self, refused: Sequence[tuple[UUID, str]]) -> None:
        claim = self._claim

        def write(session: Session) -> None:
            for license_uuid, reason in refused:
                held.hold(session, claim.run, claim.step.name, license_uuid, reason)

        claim.record(write, licenses_held=len(refused))

    def _record(self) -> None:
        """Record the confirmed batches, while the next ones are on their way."""
        confirmed, self._confirmed = self._confirmed, []

        def write(session: Session) -> None:
            self._confirm(session, confirmed)
            held.release(session, [row[0] for batch in confirmed for row in batch.rows if row[1]])

        if confirmed:
            self._claim.record(write, **{self._claim.step.counts: sum(len(batch.rows) for batch in confirmed)})

    def _fill(self) -> None:
        """Send batches while this run has slots for them."""
        while not self._failure:
            self._stopped = self._deps.shutdown.begun or time.monotonic() >= self._deadline
            if self._stopped or not self._has_slot():
                return
            self._used_up = False
            if len(self._in_flight) + len(self._confirmed) >= self._deps.settings.LMS_PARALLEL_REQUESTS or not (
                self._split or self._reader.at_hand
            ):
                self._record()  # or a crash could leave more to be sent again; and before more is read
            if not self._split and not self._reader.has_next():
                self._used_up = self._reader.exhausted
                if self._used_up:
                    return
                self._renew_lease()  # for there may be thousands of plans without work
                continue
            if not self._has_slot(ready=True):
                return
            if not self._hand_over(self._split.popleft() if self._split else self._reader.take()):
                return

    def _has_slot(self, *, ready: bool = False) -> bool:
        """Is a slot free for another batch? The first look for slots waits until a batch is `ready`."""
        slots, in_flight = self._slots, len(self._in_flight)
        if slots.seconds <= 0 and (ready or slots.usable is not None):
            slots.look(in_flight + len(self._split) + self._reader.left, in_flight)
        return in_flight < (1 if slots.usable is None else slots.usable)

    def _hand_over(self, batch: Batch) -> bool:
        """Have a thread send a batch. When none can be started: keep the batch, and return False.

        Raises Unavailable then, if no other is in flight.
        """
        future: Future[Batch] = Future()  # not the executor's, which gives none for what it has queued before it raises
        self._batches += 1
        name = f"{self._claim.run.id}-{self._claim.step}-{self._claim.run.fence}-{self._batches}"
        try:
            self._deps.executor.submit(self._carry, future, batch, name)
        except RuntimeError as error:
            if future.cancel():
                self._split.appendleft(batch)
                if self._in_flight:
                    return False
                what = f"this host starts no more threads ({error})"
                remedy = "raise its limit: ulimit -u, TasksMax of systemd, pids of a container"
                raise Unavailable("no_thread", what, remedy) from error
        self._in_flight[future] = batch
        return True

    def _carry(self, future: Future[Batch], batch: Batch, name: str) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            with self._deps.lms.named(name):
                sent = self._send(batch)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(sent)

    def _wait_for_answer(self) -> None:
        """Wait until a batch is answered, or it is time to look for slots."""
        seconds = max(0.0, min(self._renew_seconds, self._slots.seconds))
        if self._in_flight:
            done, _ = wait(self._in_flight, seconds, FIRST_COMPLETED)
            if done and self._used_up:  # nothing more to send meanwhile, so that more may be recorded at once
                done, _ = wait(self._in_flight, TOGETHER_SECONDS)
            self._answered = [(self._in_flight.pop(future), future) for future in done]
        elif self._slots.usable == 0 and not (self._failure or self._stopped or self._used_up):
            time.sleep(seconds)
            self._claim.guard(WAITING_SECONDS)  # it may be stopped or paused meanwhile

    def _renew_lease(self) -> None:
        """Renew the lease of the run, if that was not done for a third of it."""
        self._claim.renew(self._renew_seconds)
