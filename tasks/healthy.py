"""`python -m tasks.healthy`: the health check of this machine's worker, for the image and Kubernetes.

It must answer over the broker, as to everybody who wants something of it, and take messages from each queue that it was
started for: after `cancel_consumer` it answers a ping and does nothing. The same of its control process, if it
answers. Exit status 0, or 1 with the fault and its remedy on standard error.
"""

import sys
from socket import gethostname

from worker.celery import app

ANSWER_SECONDS = 10.0


def takes_nothing_from(worker: str, missing: list[str]) -> tuple[str, str]:
    """The message and the remedy for a worker that takes no messages from queues it was started for."""
    what = f"{worker} takes no messages from its queue {' and '.join(missing)}: somebody sent it cancel_consumer"
    commands = (f"celery -A worker control --destination {worker} add_consumer {queue}" for queue in missing)
    return what, f"restart it, or: {'; '.join(commands)}"


def main() -> int:
    """Check; return the exit status."""
    worker, control = f"celery@{gethostname()}", f"celery-control@{gethostname()}"
    answers = app.control.broadcast(
        "license_expiry_queues", destination=[worker, control], reply=True, timeout=ANSWER_SECONDS, limit=2
    )
    told = {host: answer for each in answers or [] for host, answer in each.items()}
    missing = {host: answer["missing"] for host, answer in told.items() if answer.get("missing")}
    complaints = [". ".join(takes_nothing_from(*one)) for one in missing.items()]
    if worker not in told:
        complaints.append(
            f"{worker} does not answer within {ANSWER_SECONDS:.0f} s. See its log, and check that the broker answers"
        )
    for complaint in complaints:
        print(f"{complaint}.", file=sys.stderr)  # noqa: T201, its purpose
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
