"""Liveness files: each process notes in one of its own that its main loop turns.

A worker, its control process and beat write theirs every minute or more often: while they are connected, and with each
try to connect. So a broker outage makes no process look dead. The health check of the image and of Kubernetes is a
`find`: a file older than 30 minutes is that of a process that hangs; one that is not empty says what else is wrong.
It is no less than 30: a broker that accepts connections and never answers blocks the main loop for many minutes.
"""

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

EVERY_SECONDS = 15.0


def note_alive(name: str, complaint: str = "") -> None:
    """Record that this process is alive, and any fault it has.

    Writes nothing if the folder belongs to another user or is not writable.
    """
    folder = Path(tempfile.gettempdir()) / f"license-expiry-{os.getuid()}"
    with suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        made = folder.lstat()
        if stat.S_ISDIR(made.st_mode) and made.st_uid == os.getuid():
            (folder / name).write_text(complaint)


def noting(name: str, connection: Any) -> Any:
    """Let a connection of kombu's note with each failed try to connect that its process is alive."""
    ensure = connection.ensure_connection

    def ensure_connection(errback: Callable[..., Any], *arguments: Any, **names: Any) -> Any:
        def failed(*told: Any) -> Any:
            note_alive(name)
            return errback(*told)

        return ensure(failed, *arguments, **names)

    connection.ensure_connection = ensure_connection
    return connection
