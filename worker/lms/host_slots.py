"""How many calls all workers of one host may have in flight to the LMS at once."""

import fcntl
import hashlib
import os
import tempfile
from collections import deque
from pathlib import Path

from worker.errors import Unusable

# How often a process that wants a slot looks whether one is free.
POLL_SECONDS = 0.01
_REMEDY = "let TMPDIR name one that this user may write to"


def folder_of(lms_url: str) -> Path:
    """The folder in which the workers that this user runs on this host share the slots of an LMS.

    Raises Unusable when there is no folder for temporary files.
    """
    name = hashlib.sha256(lms_url.encode()).hexdigest()[:12]
    try:
        return Path(tempfile.gettempdir()) / f"license-expiry-{os.getuid()}-{name}"
    except FileNotFoundError as error:
        raise Unusable("there is no folder for temporary files", _REMEDY) from error


class HostSlots:
    """One process's share in them. Each slot is a file, held by its lock, which ends with the process."""

    def __init__(self, folder: Path, count: int) -> None:
        """Open `count` slots in this folder. Raises Unusable."""
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self._files = [
                os.open(folder / str(n), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600) for n in range(count)
            ]
        except OSError as error:
            what = f"the folder {folder}, where the workers of a host count their calls to the LMS, cannot be used"
            raise Unusable(f"{what} ({error.strerror})", _REMEDY) from error
        self._free = deque(self._files)

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

    def close(self) -> None:
        """Give everything back."""
        for file in self._files:
            os.close(file)
