"""The error tree. The type of an error says what its caller does; `what` and `remedy` are for the operator.

    LicenseExpiryError
    ├── Unusable               settings, database or broker cannot be used as they are: exit status 2
    │   ├── WrongSetting       one setting
    │   ├── Away               database or broker does not answer just now: a worker starts anyway
    │   └── SeveralWrong       several of these at once, each with its own remedy
    ├── BadArgument            a trigger's argument is wrong: fails at once, never retried
    ├── ReasonedError          has a stable `reason` code, which the ledger keeps
    │   ├── Unavailable        the LMS or the database does not answer just now: try again later
    │   │   └── Postponed      nothing was tried: all runs wait just now, or others call first
    │   ├── BatchRefused       the LMS refuses this batch: split it; a license that stands alone is held
    │   └── RunRefused         the LMS will refuse every call of this run: give up on it
    ├── NotClaimed             another worker has the run, or it is past this step: end quietly
    ├── Paused                 an operator has paused everything: start nothing
    ├── Stopping               this worker is shutting down: hand the run back
    ├── Stopped                an operator has stopped the run: end it
    ├── Unexpected             an error of our own: its type alone is shown, the worker's log has the places
    └── LeaseLost              another worker took the run over: send nothing, record nothing

The reason codes: `http_<status>`, `connection_error`, `timeout`, `throttled`, `token_http_<status>`, `bad_token`,
`not_the_lms`, `not_understood`, `no_thread`, `database`, `other_ledger`, `clocks`, `needs_approval`, `too_late`,
`booked`, `paused`. No message holds anything that a learner could be known by.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from worker.masking import mask


class LicenseExpiryError(Exception):
    """Base of every error that this package raises on purpose.

    `what` says what happened, `remedy` what to do about it; neither ends with a full stop. The errors that only steer a
    worker (NotClaimed, Stopping, Stopped, LeaseLost, BatchRefused) have no remedy: nobody needs to do anything. `args`
    are plain, because Celery may pickle an error or write it as JSON. Passwords of URLs and e-mail addresses are masked
    here: the ledger, pages, results, reports and the command show these texts.
    """

    joint = ": "

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = mask(what)
        self.remedy = mask(remedy)
        super().__init__(self.what, self.remedy)

    def __str__(self) -> str:
        return self.joint.join(part for part in (self.what, self.remedy) if part)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"  # what Celery and Flower show of a failed task


class Unusable(LicenseExpiryError):
    """Settings, database or broker cannot be used as they are; `table` is the table that this is about, if any."""

    def __init__(self, what: str, remedy: str = "", table: str = "") -> None:
        super().__init__(what, remedy)
        self.table = table


class WrongSetting(Unusable):
    """One setting is wrong; `what` begins with its name."""

    joint = ". "


class Away(Unusable):
    """The database or the broker does not answer just now; it may later."""


class SeveralWrong(Unusable):
    """Several things are wrong at once: a heading, and an error for each in `parts`."""

    def __init__(self, what: str, parts: Sequence[Unusable | Sequence[str]]) -> None:
        super().__init__(what)
        self.parts = [part if isinstance(part, Unusable) else Unusable(*part) for part in parts]
        self.args = (self.what, [(part.what, part.remedy) for part in self.parts])

    def __str__(self) -> str:
        return "\n".join([f"{self.what}:", *(f"  {part}" for part in self.parts)])


class BadArgument(LicenseExpiryError):
    """A trigger, a command or an address was given a wrong argument; `complaints` are by the arguments' names."""

    def __init__(self, what: str, remedy: str = "", complaints: Mapping[str, str] | None = None) -> None:
        super().__init__(what, remedy)
        self.complaints = {name: mask(complaint) for name, complaint in (complaints or {}).items()}


class NotClaimed(LicenseExpiryError):
    """The step may not start on this run; `what` says which worker has it, or how it ended."""


class LeaseLost(LicenseExpiryError):
    """This claim is no longer the run's newest one, or may not be."""


class Paused(LicenseExpiryError):
    """An operator has paused everything; no run is opened."""


class Stopping(LicenseExpiryError):
    """This worker is shutting down; nothing more is begun."""


class Stopped(LicenseExpiryError):
    """An operator has stopped this run; nothing more is begun."""


class Unexpected(LicenseExpiryError):
    """An error of our own ended a task. Its text is shown nowhere: it may quote anything."""


class ReasonedError(LicenseExpiryError):
    """An error with a stable `reason` code.

    `retry_after` is in seconds, where the server named a wait.
    """

    def __init__(self, reason: str, what: str, remedy: str = "", retry_after: float | None = None) -> None:
        super().__init__(what, remedy)
        self.args = (reason, self.what, self.remedy, retry_after)
        self.reason = reason
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{super().__str__()} [{self.reason}]"

    __repr__ = __str__  # what Celery and Flower show of a retry


class Unavailable(ReasonedError):
    """The LMS or the database does not answer just now; the same call may succeed later.

    `lasted` is the seconds that its tries took.
    """

    lasted = 0.0


class Postponed(Unavailable):
    """Nothing was tried: an outage, a pause or the booked rate holds the call back. It counts as no failure."""


class BatchRefused(ReasonedError):
    """The LMS answers, but refuses this batch because of at least one of its licenses."""


class RunRefused(ReasonedError):
    """The LMS will refuse every call of this run until somebody changes something."""


def exit_with(error: Unusable) -> NoReturn:
    """End a process that is about to start, with what is wrong and what to do on standard error, and exit status 2."""
    print(error, file=sys.stderr)  # noqa: T201, before any logging
    raise SystemExit(2) from error
