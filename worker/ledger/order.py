"""The order of this project, as one table: downgrade, then unlink.

A step can begin a run only in the phase that it starts from, which is the phase that the step before it ends in; after
that it can take the run up again once its worker let the lease lapse. The chain, the claims, the timeline and the
metrics read this table: nothing else knows which step is next.

A new step is a row here with its phases (and the row before it no longer ends in `finished`), its work in
`runs.steps.WORK`, its task in `tasks`, two columns of `db.ledger_tables.Run` and a migration.
"""

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """Where a run is on its way; the last four are ends."""

    QUEUED = "queued"
    DOWNGRADING = "downgrading"
    DOWNGRADED = "downgraded"
    UNLINKING = "unlinking"
    FINISHED = "finished"
    FAILED = "failed"
    ABANDONED = "abandoned"
    STOPPED = "stopped"


ENDED = (Phase.FINISHED, Phase.FAILED, Phase.ABANDONED, Phase.STOPPED)
WENT_WRONG = (Phase.FAILED, Phase.ABANDONED)


@dataclass(frozen=True)
class Step:
    """A step of a run: the phases it moves the run through, and the run's columns that it fills.

    `name` is what the ledger, logs and metrics call it, `task` its Celery task. `began_at` and `ended_at` are the
    columns for its times, `counts` the one for the licenses that the LMS confirmed.
    """

    name: str
    task: str
    starts_from: Phase
    runs_as: Phase
    ends_as: Phase
    began_at: str
    ended_at: str
    counts: str

    def __str__(self) -> str:
        return self.name


STEPS: tuple[Step, ...] = (
    Step(
        name="downgrade",
        task="license_expiry.downgrade_enrollments",
        starts_from=Phase.QUEUED,
        runs_as=Phase.DOWNGRADING,
        ends_as=Phase.DOWNGRADED,
        began_at="downgrade_began_at",
        ended_at="downgraded_at",
        counts="licenses_downgraded",
    ),
    Step(
        name="unlink",
        task="license_expiry.unlink_learners",
        starts_from=Phase.DOWNGRADED,
        runs_as=Phase.UNLINKING,
        ends_as=Phase.FINISHED,
        began_at="unlink_began_at",
        ended_at="ended_at",
        counts="learners_unlinked",
    ),
)
DOWNGRADE, UNLINK, *_ = STEPS


def row_of(name: str) -> int:
    """The place of the step of this name in the order, from 0."""
    return [step.name for step in STEPS].index(name)


def step_after(step: Step) -> Step | None:
    """The step that follows this one; None after the last."""
    return next(iter(STEPS[row_of(step.name) + 1 :]), None)
