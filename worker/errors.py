"""The error tree. What a caller does about an error is its type; its message is what an operator reads.

    LicenseExpiryError
    ├── Unusable               settings, database or broker cannot be used as they are: exit status 2
    ├── BadArgument            a trigger's argument is wrong: fails at once, never retried
    ├── Unavailable            try again later: the LMS or the database does not answer just now
    ├── BatchRefused           the LMS refuses this batch: split it; a license that stands alone is held
    ├── RunRefused             give up on this run: the LMS will refuse every call of it
    ├── NotClaimed             another worker has the run, or it is past this step: end quietly
    ├── Stopping               this worker is being shut down: hand the run back
    └── LeaseLost              the run was taken over while we held it: send nothing, record nothing

`reason` is a stable code that is kept in the ledger: `http_<status>`, `connection_error`, `timeout`,
`throttled`, `token_http_<status>`, `bad_token`, `database`. Messages never hold what a learner could be known by.
"""


class LicenseExpiryError(Exception):
    """Base of every error that this package raises on purpose."""


class Unusable(LicenseExpiryError):
    """Settings, database or broker cannot be used; the message names the setting and the remedy."""


class BadArgument(LicenseExpiryError):
    """A trigger was given a wrong argument; the message is one sentence that says which."""


class NotClaimed(LicenseExpiryError):
    """The step may not start on this run; the message says who has it or what became of it."""


class LeaseLost(LicenseExpiryError):
    """This claim is no longer the run's newest one, or may not be."""


class Stopping(LicenseExpiryError):
    """This worker is being shut down; nothing more is to be begun."""


class ReasonedError(LicenseExpiryError):
    """An error with a stable `reason` code beside its sentence.

    `retry_after` is in seconds, where the other side told how long to stay away.
    """

    def __init__(self, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(reason, message, retry_after)  # all three, so that it survives pickling
        self.reason = reason
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.message} [{self.reason}]"

    __repr__ = __str__  # what Celery and Flower show of a retry


class Unavailable(ReasonedError):
    """The LMS or the database does not answer just now; the same call may succeed later."""


class BatchRefused(ReasonedError):
    """The LMS answers, but refuses this batch because of at least one of its licenses."""


class RunRefused(ReasonedError):
    """The LMS will refuse every call of this run until somebody changes something."""
