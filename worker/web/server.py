"""The HTTP server of `license-expiry serve`: one read-only process with the pages, the metrics and a health check."""

import asyncio
import signal
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import DBAPIError
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.web import Application, HTTPError, RequestHandler

from worker.db.transactions import Database
from worker.errors import BadArgument, LicenseExpiryError, Unusable
from worker.logs import get_logger
from worker.settings import DatabaseSettings
from worker.settings.urls import is_loopback
from worker.web import history, html, metrics

log = get_logger(__name__)

HTML, PLAIN = "text/html; charset=utf-8", "text/plain; charset=utf-8"
THREADS = 4
HEALTH_SECONDS = 5.0
IDLE_SECONDS = 20.0  # the longest time for a request to arrive, and between two requests
MOST_CONNECTIONS = 64
_HEADERS = {
    "Content-Security-Policy": html.CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_TITLES = {404: "Not found", 421: "Unknown host name", 500: "Internal error", 503: "Unavailable"}


Make: TypeAlias = Callable[..., str | bytes]


def _nothing() -> str:
    raise BadArgument("There is no such page", history.START_FROM_THE_LIST)


class _Answer(RequestHandler):
    """Answers a GET with the result of `make`, called in a thread of `executor` so that other requests are not blocked.

    `make` gets the groups of the path, and the query parameters named in `asked` as keyword arguments.
    """

    def initialize(
        self, make: Make, executor: Executor, kind: str = HTML, seconds: float | None = None, asked: Sequence[str] = ()
    ) -> None:
        self.make, self.executor, self.kind, self.seconds, self.asked = make, executor, kind, seconds, asked

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Refuse a request for an unknown host name (tornado's hook)."""
        hosts = self.settings["hosts"]
        if hosts is not None and not _is_ours(self.request.host_name, hosts):
            self.answer(
                421, "Open this page as http://127.0.0.1, or set SERVE_URL to the address that your browser shows."
            )

    async def get(self, *arguments: str) -> None:
        try:
            asked = {name: self.get_query_argument(name, "") for name in self.asked}
        except HTTPError:
            return self.answer(404, "The address is not in UTF-8.")
        making = asyncio.get_running_loop().run_in_executor(self.executor, partial(self.make, *arguments, **asked))
        try:
            body = await asyncio.wait_for(making, self.seconds)
        except BadArgument as error:
            return self.answer(404, f"{error}.")
        except TimeoutError:
            return self.answer(503, "The database does not answer.")
        except LicenseExpiryError as error:
            log.error("cannot answer", path=self.request.path, error=str(error))
            hidden = isinstance(error.__cause__, DBAPIError)  # its text contains the database's address
            why = "The database cannot be read now: the log of license-expiry serve has the reason"
            shown = why if hidden else error
            return self.answer(503, f"{shown}.")
        except Exception:
            log.exception("internal error", path=self.request.path)
            return self.answer(500, "The log of license-expiry serve has the traceback.")
        self.set_header("Content-Type", self.kind)
        self.finish(body)

    head = get

    def answer(self, status: int, sentence: str) -> None:
        """Answer with this status and one sentence, as a page or as text."""
        self.set_status(status)
        self.set_header("Content-Type", HTML if self.kind == HTML else PLAIN)
        page = html.message_page(_TITLES[status], sentence, refresh=status == 503)
        self.finish(page if self.kind == HTML else f"{sentence}\n")


def application(
    database: Database,
    settings: DatabaseSettings,
    next_night: html.NextNight,
    threads: Executor,
    scrapes: Executor,
    health: Executor,
    hosts: Collection[str] | None = None,
) -> Application:
    """Return the application. Pages, metrics and health check have their own executors, so that none blocks another.

    It accepts requests for these `hosts` and for IP addresses only; for any host if None.
    """
    flower = settings.FLOWER_URL

    def healthy() -> str:
        history.check_ledger(database)
        return "ok\n"

    def route(path: str, make: Make, executor: Executor = threads, **more: Any) -> tuple[str, Any, dict[str, Any]]:
        return path, _Answer, {"executor": executor, "make": make, **more}

    return Application(
        [
            route(r"/", partial(html.nights_page, database, next_night)),
            route(r"/nights/([^/]+)", partial(html.night_page, database), asked=("find", "sort", "every")),
            route(r"/grid", partial(html.grid_page, database), asked=("find", "every")),
            route(r"/enterprises/([^/]+)", partial(html.enterprise_page, database, next_night, flower_url=flower)),
            route(r"/runs/([^/]+)", partial(html.run_page, database, flower_url=flower)),
            route(r"/runs/([^/]+)/(downgraded|unlinked)", partial(html.licenses_page, database), asked=("after",)),
            route(r"/metrics", metrics.Metrics(database, settings).exposition, scrapes, kind=CONTENT_TYPE_LATEST),
            route(r"/healthz", healthy, health, kind=PLAIN, seconds=HEALTH_SECONDS),
        ],
        default_handler_class=_Answer,
        default_handler_args={"executor": threads, "make": _nothing},
        compress_response=True,
        hosts=hosts,
        log_function=lambda _: None,  # no access log: errors are logged where they occur
    )


def serve(database: Database, settings: DatabaseSettings, address: str, port: int, next_night: html.NextNight) -> None:
    """Serve until SIGTERM or SIGINT. Raises Unusable if it cannot listen on the address and port."""
    named = {"localhost", urlsplit(settings.SERVE_URL).hostname or "localhost"}
    hosts = named if is_loopback(address) else None
    with ThreadPoolExecutor(THREADS) as threads, ThreadPoolExecutor(1) as scrapes, ThreadPoolExecutor(1) as health:
        asyncio.run(_serve(application(database, settings, next_night, threads, scrapes, health, hosts), address, port))


def _is_ours(host: str, hosts: Collection[str]) -> bool:
    """Return whether this is one of these hosts or an IP address. DNS rebinding attacks need another host name."""
    try:
        return host in hosts or bool(ip_address(host.strip("[]")))
    except ValueError:
        return False


class _Server(HTTPServer):
    """Has at most MOST_CONNECTIONS; closes the oldest for a new one, so that incomplete requests block nobody."""

    def initialize(self, *arguments: Any, **options: Any) -> None:
        """Start without connections (tornado's hook)."""
        super().initialize(*arguments, **options)
        self._streams: list[IOStream] = []

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """Accept a connection (tornado's hook)."""
        self._streams = [*(each for each in self._streams if not each.closed()), stream]
        if len(self._streams) > MOST_CONNECTIONS:
            self._streams[0].close()
        super().handle_stream(stream, address)


async def _serve(app: Application, address: str, port: int) -> None:
    asked, loop = asyncio.Event(), asyncio.get_running_loop()
    for end in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(end, asked.set)
    limits = {"idle_connection_timeout": IDLE_SECONDS, "body_timeout": IDLE_SECONDS, "max_body_size": 0}
    server = _Server(app, **limits)
    try:
        server.listen(port, address)
    except OSError as error:
        what = f"cannot listen on {address}, port {port} ({error.strerror})"
        raise Unusable(what, "give another --address or --port") from None
    log.info("serving", address=f"http://{address}:{port}/")
    await asked.wait()
    server.stop()
    await server.close_all_connections()
    log.info("serving ends")
