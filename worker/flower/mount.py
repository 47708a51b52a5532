"""Puts our pages and links among Flower's own, and the user's name into what is started over its HTTP API.

It also forbids framing of Flower's pages, and slows failed logins.
"""

from pathlib import Path
from typing import Any

from flower.api.tasks import BaseTaskHandler  # type: ignore[import-untyped]
from flower.urls import handlers, settings  # type: ignore[import-untyped]
from flower.views import BaseHandler  # type: ignore[import-untyped]
from flower.views.tasks import TasksDataTable  # type: ignore[import-untyped]
from tornado.httputil import HTTPHeaders
from tornado.template import Loader, Template
from tornado.web import HTTPError, OutputTransform

from worker.flower import task_list
from worker.flower.logins import Logins
from worker.flower.page import who
from worker.flower.pages import HANDLERS
from worker.settings import RUN_ENTERPRISE, RUN_NIGHTLY

_OURS = Path(__file__).parent / "templates"
# By Flower's template: the marker, our template, and whether ours goes before the marker or after it.
_INSERTED = {
    "navbar.html": ("      </ul>", "runs_link.html", True),
    "task.html": ("  </header>\n", "runs_of_task.html", False),
}
# The options of a task that a caller of the HTTP API may give: its time. Workers drop most others.
_OPTIONS = ("countdown", "eta", "expires", "task_id", "timeout")


class Templates(Loader):
    """Flower's templates with our links in them, and ours. One of Flower's without its marker stays as it is."""

    def _create_template(self, name: str) -> Template:
        ours = _OURS / name
        text = (ours if ours.is_file() else Path(self.root) / name).read_text("utf-8")
        if name in _INSERTED:
            marker, link, before = _INSERTED[name]
            tag = f'{{% include "{link}" %}}'
            text = text.replace(marker, tag + marker if before else marker + tag, 1)
        return Template(text, name=name, loader=self)


class Unframed(OutputTransform):
    """Forbids other pages to frame an answer of any handler."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        """Add the header (tornado's hook)."""
        headers["X-Frame-Options"] = "DENY"
        return status_code, headers, chunk


def mount() -> None:
    """Install all of it in the lists that Flower's app is made from."""
    handlers[-1:-1] = HANDLERS  # the last handler answers all other paths
    namespace = {"run_of": task_list.run_of}
    settings["template_loader"] = Templates(settings["template_path"], namespace=namespace)
    settings["transforms"] = [Unframed]
    logins, look = Logins(), BaseHandler.get_current_user
    BaseHandler.get_current_user = lambda handler: logins.user(handler, look)
    of_list = TasksDataTable.format_task
    TasksDataTable.format_task = lambda view, task: (task[0], task_list.in_list(of_list(view, task)[1]))
    given = BaseTaskHandler.get_task_args

    def with_who(handler: Any) -> Any:
        args, kwargs, options = given(handler)
        if not options.keys() <= set(_OPTIONS):
            raise HTTPError(400, f"nothing was started: give only args, kwargs, {', '.join(_OPTIONS)}")
        if handler.path_args[:1] and handler.path_args[0] in (RUN_NIGHTLY, RUN_ENTERPRISE) and isinstance(kwargs, dict):
            kwargs.setdefault("triggered_by", who(handler))
        return args, kwargs, options

    BaseTaskHandler.get_task_args = with_who
