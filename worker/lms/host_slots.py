"""How many calls of all workers of one host may be in flight to the LMS at once."""

import fcntl
import hashlib
import os
import select
import tempfile
from collections import deque
from contextlib import suppress
from pathlib import Path

from worker.errors import Unusable

# Whoever holds a slot and is killed rings no bell: the others look again after this long.
LOOK_AGAIN_SECONDS = 0.01
_REMEDY = "let TMPDIR name one that this user may write to"


def folder_of(lms_url: str) -> Path:
    """The folder in which the workers that this user runs on this host share the slots of an LMS.

    Raises Unusable when there is no folder for temporary files.
    """
    name = hashlib.sha256(lms_url.encode()).hexdigest()[:12]
    try:
        return Path(tempfile.gettempdir()) / f"license-expiry-{os.getuid()}-{name}"
    except FileNotFoundError as error:
        raise Unusable(f"there is no folder for temporary files: {_REMEDY}") from error


class Slots:
    """One process's share in them: each slot is a file, held by its lock, which ends with the process.

    A named pipe beside them is the bell that wakes others when a slot is given back.
    """

    def __init__(self, folder: Path, count: int) -> None:
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            files = [os.open(folder / str(n), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600) for n in range(count)]
            bell = folder / "bell"
            with suppress(FileExistsError):
                os.mkfifo(bell, 0o600)
            self._bell = os.open(bell, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError as error:
            raise Unusable(
                f"the folder {folder}, where the workers of a host count their calls to the LMS, cannot be used "
                f"({error.strerror}): {_REMEDY}"
            ) from error
        self._free = deque(files)
        self._all = (*files, self._bell)

    def take(self) -> int | None:
        """Take a slot if one is free; any thread may."""
        for _ in range(len(self._free)):
            try:
                slot = self._free.popleft()  # so that no other thread tries the same: to it the lock would seem free
            except IndexError:
                break
            try:
                fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return slot
            except BlockingIOError:
                self._free.append(slot)
        return None

    def give_back(self, slot: int) -> None:
        """Give a slot back; any thread may."""
        fcntl.flock(slot, fcntl.LOCK_UN)
        self._free.append(slot)
        if not select.select([self._bell], [], [], 0)[0]:
            os.write(self._bell, b"\0")

    def wait(self) -> None:
        """Wait until a slot may be free again, a few milliseconds at most."""
        if select.select([self._bell], [], [], LOOK_AGAIN_SECONDS)[0]:
            with suppress(BlockingIOError):
                os.read(self._bell, 1)

    def close(self) -> None:
        """Give everything back."""
        for file in self._all:
            os.close(file)
