"""The order of the steps, as one table: downgrade, then unlink.

A step can begin only in the phase that it starts from, which is the phase that the step before it ends in. After its
worker's lease has lapsed, the step can be resumed. The chain, the claims, the timeline and the metrics all read this
table; no other place defines which step is next.

To add a step, add: a row here with its phases (the row before it must no longer end in `finished`), its work in
`runs.steps.WORK`, its task in `tasks`, two columns of `db.ledger_tables.Run`, and a migration.
"""

from dataclasses import dataclass
from enum import StrEnum


class Phase(StrEnum):
    """The phase of a run; in the last four it has ended."""

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
    """A step of a run: the phases it moves the run through, and the columns of the run that it fills.

    `name` is its name in the ledger, logs and metrics; `task` is its Celery task. `began_at` and `ended_at` name the
    columns of its times, `counts` the column of the licenses that the LMS confirmed.
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
    """Return the position of the step with this name, from 0."""
    return [step.name for step in STEPS].index(name)


def step_after(step: Step) -> Step | None:
    """Return the step after this one; None after the last."""
    return next(iter(STEPS[row_of(step.name) + 1 :]), None)
