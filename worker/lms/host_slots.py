"""How many calls all workers of one host may have in flight to the LMS at once."""

import fcntl
import hashlib
import os
import stat
import tempfile
from collections import deque
from contextlib import suppress
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
    """One process's share in them. Each slot is a file, held by its lock, which ends with the process.

    To take a slot renews its file's times, or what cleans the temporary folder would delete it. One that was deleted
    all the same is made anew: its lock is nobody else's any more.
    """

    def __init__(self, folder: Path, count: int) -> None:
        """Open `count` slots in this folder. Raises Unusable, as when somebody else made the folder."""
        self._folder = folder
        self._files = [self._open(slot) for slot in range(count)]
        self._free = deque(range(count))

    def take(self) -> int | None:
        """Take a slot if one is free; any thread may. Raises Unusable when a deleted one cannot be made anew."""
        for _ in range(len(self._free)):
            try:
                slot = self._free.popleft()  # so that no other thread tries the same: to it the lock would seem free
            except IndexError:
                break
            try:
                if self._lock(slot):
                    return slot
            except Unusable:
                self._free.append(slot)
                raise
            self._free.append(slot)
        return None

    def give_back(self, slot: int) -> None:
        """Give a slot back; any thread may."""
        fcntl.flock(self._files[slot], fcntl.LOCK_UN)
        self._free.append(slot)

    def close(self) -> None:
        """Give everything back."""
        for file in self._files:
            os.close(file)

    def _lock(self, slot: int) -> bool:
        file = self._files[slot]
        if not os.fstat(file).st_nlink:
            self._files[slot] = self._open(slot)
            os.close(file)
        try:
            fcntl.flock(self._files[slot], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        os.utime(self._files[slot])
        return True

    def _open(self, slot: int) -> int:
        what = f"the folder {self._folder}, where the workers of a host count their calls to the LMS, cannot be used"
        try:
            with suppress(FileExistsError):
                self._folder.mkdir(mode=0o700)
            # Opened first and checked then, or another folder could be put in its place in between.
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                found = os.fstat(folder)
                if found.st_uid != os.getuid():
                    raise Unusable(f"{what}: it belongs to the user with the id {found.st_uid}", _REMEDY)
                if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    raise Unusable(f"{what}: other users may write to it", f"delete it, or {_REMEDY}")
                return os.open(str(slot), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder)
            finally:
                os.close(folder)
        except OSError as error:
            told = f"{what} ({error.strerror}): it must be a folder, and no link"
            raise Unusable(told, f"delete it, or {_REMEDY}") from error
