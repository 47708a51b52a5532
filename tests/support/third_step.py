"""The product with a third step that does nothing, as somebody would add it: `celery -A support.third_step worker`.

The steps' table gets a row, the run two columns (`COLUMNS`, which the test's database must have), the step its work
and its task. Nothing else is touched.
"""

from dataclasses import replace
from typing import Any, cast

from celery import Task, shared_task
from sqlalchemy.orm import mapped_column

from worker.db.ledger_tables import Run
from worker.db.types import UTCDateTime
from worker.ledger import order
from worker.ledger.order import Phase, Step

COLUMNS = ("unlinked_at", "survey_began_at")
for column in COLUMNS:
    setattr(Run, column, mapped_column(UTCDateTime(), nullable=True))

UNLINKED, SURVEYING = cast(Phase, "unlinked"), cast(Phase, "surveying")
order.UNLINK = replace(order.UNLINK, ends_as=UNLINKED, ended_at="unlinked_at")
SURVEY = Step(
    name="survey",
    task="license_expiry.survey",
    starts_from=UNLINKED,
    runs_as=SURVEYING,
    ends_as=Phase.FINISHED,
    began_at="survey_began_at",
    ended_at="ended_at",
    counts="learners_protected",
)
order.STEPS = (order.DOWNGRADE, order.UNLINK, SURVEY)

import tasks  # noqa: E402, only now: it reads the table
from worker.celery import app as app  # noqa: E402
from worker.runs.steps import WORK  # noqa: E402

WORK["survey"] = (lambda *_: lambda session: {}, lambda *_: {})


@shared_task(name=SURVEY.task, **tasks.STEP)
def survey(self: Task[Any, Any], **names: Any) -> dict[str, Any]:
    """Do the third step of a run: nothing."""
    return tasks.run_step(self, SURVEY, **names)
