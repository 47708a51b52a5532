"""`license-expiry serve`: one small read-only process with the pages, the metrics and a health check."""

import asyncio
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeAlias

from prometheus_client import CONTENT_TYPE_LATEST
from sqlalchemy.exc import DBAPIError
from tornado.httpserver import HTTPServer
from tornado.web import Application, HTTPError, RequestHandler

from worker.db.transactions import Database
from worker.errors import BadArgument, LicenseExpiryError, Unusable
from worker.logs import get_logger
from worker.settings import DatabaseSettings
from worker.web import history, html, metrics

log = get_logger(__name__)

HTML, PLAIN = "text/html; charset=utf-8", "text/plain; charset=utf-8"
THREADS = 4
HEALTH_SECONDS = 5.0
_HEADERS = {
    "Content-Security-Policy": html.CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_TITLES = {404: "Not here", 500: "An error of our own", 503: "Not just now"}


Make: TypeAlias = Callable[..., str | bytes]


class _Answer(RequestHandler):
    """Answers a GET with what `make` gives, made in a thread of `executor`: the process answers others meanwhile.

    `make` gets the parts of the path, and by name what the address says of `asked`.
    """

    def initialize(
        self, make: Make, executor: Executor, kind: str = HTML, seconds: float | None = None, asked: Sequence[str] = ()
    ) -> None:
        self.make, self.executor, self.kind, self.seconds, self.asked = make, executor, kind, seconds, asked

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    async def get(self, *arguments: str) -> None:
        try:
            asked = {name: self.get_query_argument(name, "") for name in self.asked}
        except HTTPError:
            return self.tell(404, "The address is not in UTF-8.")
        making = asyncio.get_running_loop().run_in_executor(self.executor, partial(self.make, *arguments, **asked))
        try:
            body = await asyncio.wait_for(making, self.seconds)
        except BadArgument as error:
            return self.tell(404, f"{error}.")
        except TimeoutError:
            return self.tell(503, "The database does not answer.")
        except LicenseExpiryError as error:
            log.error("cannot answer", path=self.request.path, error=str(error))
            hidden = isinstance(error.__cause__, DBAPIError)  # it tells where the database is
            why = "The database cannot be read just now: the log of license-expiry serve tells why"
            said = why if hidden else error
            return self.tell(503, f"{said}.")
        except Exception:
            log.exception("an error of our own", path=self.request.path)
            return self.tell(500, "The log of license-expiry serve has its traceback.")
        self.set_header("Content-Type", self.kind)
        self.finish(body)

    head = get

    def tell(self, status: int, sentence: str) -> None:
        """Answer with one sentence."""
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
) -> Application:
    """The pages, the metrics and the health check, each on an executor of its own, so that none waits for another."""
    flower = settings.FLOWER_URL

    def healthy() -> str:
        history.check_ledger(database)
        return "ok\n"

    def nothing() -> str:
        raise BadArgument("There is no such page", history.START_FROM_THE_LIST)

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
        default_handler_args={"executor": threads, "make": nothing},
        compress_response=True,
        log_function=lambda _: None,  # what goes wrong is logged where it does
    )


def serve(database: Database, settings: DatabaseSettings, address: str, port: int, next_night: html.NextNight) -> None:
    """Serve until SIGTERM or SIGINT. Raises Unusable when the address cannot be listened on."""
    with ThreadPoolExecutor(THREADS) as threads, ThreadPoolExecutor(1) as scrapes, ThreadPoolExecutor(1) as health:
        asyncio.run(_serve(application(database, settings, next_night, threads, scrapes, health), address, port))


async def _serve(app: Application, address: str, port: int) -> None:
    asked, loop = asyncio.Event(), asyncio.get_running_loop()
    for end in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(end, asked.set)
    server = HTTPServer(app)
    try:
        server.listen(port, address)
    except OSError as error:
        what = f"{address}, port {port}, cannot be listened on ({error.strerror})"
        raise Unusable(what, "give another --address or --port") from None
    log.info("serving", address=f"http://{address}:{port}/")
    await asked.wait()
    server.stop()
    await server.close_all_connections()
    log.info("serving ends")
