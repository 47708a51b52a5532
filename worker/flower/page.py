"""Base of our pages in Flower: the user's name, threads, headers and errors."""

from base64 import b64decode
from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

from flower.views import BaseHandler  # type: ignore[import-untyped]
from sqlalchemy.orm import Session
from tornado.ioloop import IOLoop
from tornado.web import HTTPError

from worker.errors import BadArgument, LicenseExpiryError
from worker.flower.database import opened
from worker.ledger import order, runs
from worker.runs.request import parse_uuid
from worker.web.words import stamp

T = TypeVar("T")


def who(handler: Any) -> str:
    """The name of Flower's user, for the ledger; of an e-mail address only the part before the @."""
    name = handler.current_user
    if name is True:  # with basic auth Flower knows no more
        _, _, credentials = handler.request.headers.get("Authorization", "").partition(" ")
        name = b64decode(credentials).decode().partition(":")[0]
    return f"{str(name).partition('@')[0]} in Flower"


class Page(BaseHandler):  # type: ignore[misc]
    """Base of our pages: reads in threads, shows errors in words, and is framed by nobody."""

    def set_default_headers(self) -> None:
        """Set the headers of each answer (tornado's hook)."""
        super().set_default_headers()
        self.set_header("Content-Security-Policy", "frame-ancestors 'none'; form-action 'self'; base-uri 'none'")
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    def prepare(self) -> None:
        """Refuse all changes while Flower is read-only (tornado's hook)."""
        if self.request.method == "POST" and self.read_only and self.current_user:
            raise HTTPError(403, "Flower is in read-only mode: nothing can be started or stopped here")

    @property
    def read_only(self) -> bool:
        """Was Flower started with --read_only?"""
        return bool(self.application.options.read_only)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run blocking work, of the database or the broker, outside Flower's event loop."""
        return await IOLoop.current().run_in_executor(None, work)

    async def read(self, work: Callable[[Session], T]) -> T:
        """Read the database in one transaction, outside Flower's event loop."""
        return await self.in_thread(lambda: opened()[1].transact(work))

    def show(self, template: str, **values: Any) -> None:
        """Answer with one of our templates; `serve` is the address of `license-expiry serve`, if that is known."""
        known = {"read_only": self.read_only, "order": order, "stamp": stamp, "is_waiting": runs.is_waiting}
        self.render(template, serve=opened()[0].SERVE_URL, **known, **values)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Show an error of ours as a sentence (tornado's hook)."""
        error = kwargs.get("exc_info", (None, None))[1]
        if not hasattr(self, "_current_user"):
            self.current_user = None  # or the page would ask again who this is
        if isinstance(error, LicenseExpiryError):
            self.set_status(400 if isinstance(error, BadArgument) else 503)
            self.render("runs_error.html", error=error)
        elif isinstance(error, HTTPError) and status_code == 403:
            self.render("runs_error.html", error=error.log_message or "Refused")
        else:
            super().write_error(status_code, **kwargs)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log no traceback for an error that is shown in words (tornado's hook)."""
        if not isinstance(value, LicenseExpiryError):
            super().log_exception(typ, value, tb)

    def typed(self, name: str) -> str:
        """The text typed into a field of the form, unescaped."""
        value: str = self.get_body_argument(name, "")
        return value

    def enterprise(self, value: str) -> UUID | None:
        """The enterprise of this text; None, the whole night, when it is empty. Raises BadArgument."""
        return parse_uuid("enterprise", value) if value else None
