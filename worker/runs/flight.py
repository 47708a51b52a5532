"""Keeps LMS calls in flight, splits refused batches, and records the answers.

No transaction is open while a call is in flight. Only the thread that runs the step writes to the ledger.
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

# The last batches are recorded together if their answers arrive within this many seconds.
TOGETHER_SECONDS = 0.02
# How often a run without a slot checks whether it was stopped or must wait.
WAITING_SECONDS = 5.0

Send: TypeAlias = Callable[[Batch], Batch]
"""Sends a batch; returns the part of it that is done, because it was sent or needs no call any more."""
Confirm: TypeAlias = Callable[[Session, Sequence[Batch]], None]


class Flight:
    """The batches under way: split and not sent again, in flight, and answered but not recorded."""

    def __init__(
        self, deps: Deps, claim: Claim, reader: BatchReader, send: Send, confirm: Confirm, deadline: float
    ) -> None:
        """Take the batches of `reader`; `send` sends one, `confirm` records the confirmed ones.

        No new call is sent after `deadline` (time.monotonic).
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
        """Keep calls in flight until no batch is left, an error ends the step, or the deadline has passed.

        A shutdown of the worker counts as the deadline. After an error nothing more is sent; calls in flight are
        awaited and recorded before the error is raised. Returns whether no batch is left.
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
        """Process the answers: split refused batches, and record refused single licenses as held.

        This must precede the next batch, because a learner with a held license must stay linked.
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
        """Record the confirmed batches, while the next ones are in flight."""
        confirmed, self._confirmed = self._confirmed, []

        def write(session: Session) -> None:
            self._confirm(session, confirmed)
            held.release(session, [row[0] for batch in confirmed for row in batch.rows if row[1]])

        if confirmed:
            self._claim.record(write, **{self._claim.step.counts: sum(len(batch.rows) for batch in confirmed)})

    def _fill(self) -> None:
        """Send batches while this run has free slots."""
        while not self._failure:
            self._stopped = self._deps.shutdown.begun or time.monotonic() >= self._deadline
            if self._stopped or not self._has_slot():
                return
            self._used_up = False
            if len(self._in_flight) + len(self._confirmed) >= self._deps.settings.LMS_PARALLEL_REQUESTS or not (
                self._split or self._reader.at_hand
            ):
                self._record()  # limits what a crash leaves to be sent again; must precede the next read
            if not self._split and not self._reader.has_next():
                self._used_up = self._reader.exhausted
                if self._used_up:
                    return
                self._renew_lease()  # there may be thousands of plans without work
                continue
            if not self._has_slot(ready=True):
                return
            if not self._hand_over(self._split.popleft() if self._split else self._reader.take()):
                return

    def _has_slot(self, *, ready: bool = False) -> bool:
        """Return whether a slot is free for another batch. Slots are first requested when a batch is `ready`."""
        slots, in_flight = self._slots, len(self._in_flight)
        if slots.seconds <= 0 and (ready or slots.usable is not None):
            slots.look(in_flight + len(self._split) + self._reader.left, in_flight)
        return in_flight < (1 if slots.usable is None else slots.usable)

    def _hand_over(self, batch: Batch) -> bool:
        """Let a thread send a batch. If no thread can be started, keep the batch and return False.

        Raises Unavailable in that case if no other batch is in flight.
        """
        future: Future[Batch] = Future()  # not the executor's: it may queue the batch, then raise and return no future
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
        """Wait until a batch is answered, the lease must be renewed, or it is time to look for slots."""
        seconds = max(0.0, min(self._renew_seconds, self._slots.seconds))
        if self._in_flight:
            done, _ = wait(self._in_flight, seconds, FIRST_COMPLETED)
            if done and self._used_up:  # nothing left to send, so wait shortly to record more answers together
                done, _ = wait(self._in_flight, TOGETHER_SECONDS)
            self._answered = [(self._in_flight.pop(future), future) for future in done]
        elif self._slots.usable == 0 and not (self._failure or self._stopped or self._used_up):
            time.sleep(seconds)
            self._claim.guard(WAITING_SECONDS)  # raises if the run was stopped or paused meanwhile

    def _renew_lease(self) -> None:
        """Renew the lease of the run if a third of it has passed."""
        self._claim.renew(self._renew_seconds)
