"""Log lines: one for each event, as key=value for people or JSON for a log store."""

import logging
import re
import traceback
from collections.abc import MutableMapping
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

import structlog
from structlog.typing import EventDict, ExcInfo, Processor

from worker.errors import LicenseExpiryError
from worker.masking import kind_of, mask_all

_FIRST = ["timestamp", "level", "event", "enterprise", "run", "step"]
# At INFO, Celery logs each message and result, and tornado each bad request: a night's own lines would drown in them.
TALKATIVE = ("celery.worker.strategy", "celery.app.trace", "alembic", "tornado.general")


def places(exc_info: ExcInfo) -> str:
    """A traceback without the texts of errors that are not ours: only places and types."""
    lines = ["Traceback:\n"]
    error: BaseException | None = exc_info[1]
    known: set[int] = set()
    while error is not None and id(error) not in known:
        known.add(id(error))
        said = f"{type(error).__name__}: {error}" if isinstance(error, LicenseExpiryError) else kind_of(error)
        lines += [*traceback.format_tb(error.__traceback__), f"{said}\n"]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        lines += ["caused by\n"] if error else []
    return "".join(lines).rstrip()


def _mask(_: object, __: str, event: EventDict) -> EventDict:
    masked: EventDict = mask_all(event)
    return masked


_SHARED: list[Processor] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%S.%fZ", utc=True),
    structlog.processors.ExceptionRenderer(places),
]

# Until `configure` is called, lines go to the root logger's handlers, as those of any library do.
structlog.configure(
    processors=[structlog.stdlib.filter_by_level, *_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
)


def printable(text: str) -> str:
    """The text without control characters, except tabs and line ends."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "", text)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module: takes an event in words, and its values by name."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def configure(log_format: str, level: int = logging.INFO, file: str | Path | None = None) -> None:
    """Write the log lines of every library and of our own to `file`, or to standard error.

    `log_format` is LOG_FORMAT's keyvalue or json. May be called again.
    """
    handler = WatchedFileHandler(file, encoding="utf-8") if file else logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _mask, _renderer(log_format)],
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(level if level <= logging.DEBUG else max(level, logging.WARNING))


def _renderer(log_format: str) -> Processor:
    if log_format == "json":
        return structlog.processors.JSONRenderer(default=str)
    render = structlog.processors.LogfmtRenderer(key_order=_FIRST, drop_missing=True, bool_as_flag=False)

    def line(logger: Any, name: str, event: MutableMapping[str, Any]) -> str:
        return printable(render(logger, name, event))

    return line
