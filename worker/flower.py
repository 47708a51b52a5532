"""What Flower is held to when it starts on our app: that it asks who comes, and is heard on this machine only."""

import re
import sys
from collections.abc import Callable
from functools import partialmethod
from typing import Any

import click
from celery.events.state import State, Task
from celery.states import RETRY

from worker.errors import Unusable, WrongSetting
from worker.settings_sources import Sourced, load, setting

_LOOPBACK = "127.0.0.1"
# Flower's own columns do not say which enterprise and run a task is of, nor why one is retried.
_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_BUTTON = re.compile(rb'id="task-(?:terminate|revoke)".*?</header>', re.DOTALL)
_COLUMNS = "state,name,kwargs,uuid,received,exception,runtime"


class FlowerSettings(Sourced):
    """Flower's password, where Flower itself does not look: in /run/secrets and in the YAML file."""

    FLOWER_BASIC_AUTH: str = setting("operator:password", "", secret=True)
    """Who may use Flower"""


class Retried(Task):
    """A task as Flower knows it. While it waits to come again it stays in RETRY.

    Celery tells that its message was sent and received anew before or after it tells of the retry; after it, the task
    would look as if it had never begun, and be missing among those retried.
    """

    def event(self, type_: str | None, *args: Any, **kwargs: Any) -> str | None:
        """Take in one event (Celery's hook)."""
        before = self.state
        told = super().event(type_, *args, **kwargs)
        if before == RETRY and type_ in ("sent", "received"):
            self.state = before
        return told


def guard(**_: Any) -> None:
    """Celery's import_modules hook: give a Flower that starts its defaults, or stop it when it would let anybody in.

    Flower sends the signal when it has read all of its options and is not yet listening. Nothing happens in a worker,
    in beat or in another command. Raises SystemExit(2), with what to do on standard error.
    """
    context = click.get_current_context(silent=True)
    if context is None or context.info_name != "flower":
        return
    from tornado.options import options

    try:
        options.basic_auth = _who_may(options.basic_auth, by_oauth=bool(options.auth))
    except Unusable as error:
        print(error, file=sys.stderr)  # noqa: T201, before any logging
        raise SystemExit(2) from None
    options.address = options.address or _LOOPBACK
    if options.tasks_columns == options._options["tasks-columns"].default:
        options.tasks_columns = _COLUMNS
    options.format_task = options.format_task or in_short
    State.Task = Retried
    from flower.views.tasks import TaskView  # type: ignore[import-untyped]

    TaskView.render_string = partialmethod(_with_advice, TaskView.render_string)


def in_short(task: Any) -> Any:
    """Flower's format_task hook: the arguments as ENTERPRISE/RUN, for its table cuts them after some 45 characters."""
    text = re.sub(r", '(message_number|ledger)': [^,}]*", "", task.kwargs or "").strip("{}").replace("'", "")
    task.kwargs = text.replace("enterprise_customer_uuid: ", "").replace(", run_id: ", "/")
    return task


def _with_advice(view: Any, render: Callable[..., bytes], template: str, **values: Any) -> bytes:
    """Flower's page of a task, with a sentence beneath the button that ends it; without the button, as it is."""
    page = render(view, template, **values)
    names = str(getattr(values.get("task"), "kwargs", ""))
    run = re.search(rf"(?:/|run_id\W+)({_UUID})", names)
    if not run:
        return page
    said = (
        "Revoking or terminating this task does not stop its run: reconcile takes the run up again. To stop it: "
        f"<code>license-expiry stop {run[1]} --reason TEXT</code>"
    )
    return _BUTTON.sub(lambda found: found[0] + f'<p class="alert alert-warning">{said}</p>'.encode(), page, 1)


def _who_may(given: list[str], *, by_oauth: bool) -> list[str]:
    """The user:password pairs that Flower is to ask for; none when OAuth asks instead.

    Raises Unusable when nothing would ask, and when one is not a pair: an empty one lets an empty header in, and one
    that is not ASCII cannot be compared.
    """
    pairs = list(filter(None, given)) or list(filter(None, load(FlowerSettings).FLOWER_BASIC_AUTH.split(",")))
    if (pairs or by_oauth) and all(re.fullmatch("[ -9;-~]+:[ -~]+", pair) for pair in pairs):
        return pairs
    raise WrongSetting(
        "FLOWER_BASIC_AUTH is not set, or is not user:password in ASCII: Flower does not start without authentication",
        "Set it in the environment or in the file /run/secrets/FLOWER_BASIC_AUTH, for example operator:password",
    )
