"""The slots of a host: as many calls in flight as the setting says, whoever has them, and none lost with a process."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.eventually import eventually

from worker.errors import Unusable
from worker.lms.host_slots import HostSlots, folder_of

HOLD = """
import pathlib, sys
from worker.lms.host_slots import HostSlots
print(HostSlots(pathlib.Path(sys.argv[1]), 2).take(), flush=True)
input()
"""


def taken(slots: HostSlots) -> list[int]:
    """Take all that are free."""
    return list(iter(slots.take, None))


def test_a_slot_is_one_processs_at_a_time_and_free_again_when_that_is_killed(tmp_path: Path) -> None:
    ours = HostSlots(tmp_path / "slots", 2)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "slots")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline().strip().isdigit()
        (slot,) = taken(ours)
        ours.give_back(slot)
        other.send_signal(signal.SIGKILL)
        other.wait()
        ours.take()
        eventually(lambda: taken(ours))
    ours.close()


def test_each_lms_has_slots_of_its_own() -> None:
    assert folder_of("https://one.example") != folder_of("https://another.example")


def test_a_folder_that_cannot_be_used_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unusable, match=r"the folder .*/file/slots, .* \(Not a directory\): let TMPDIR name one that"):
        HostSlots(tmp_path / "file" / "slots", 1)


def test_no_folder_for_temporary_files_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(Unusable, match="no folder for temporary files: let TMPDIR name one"):
        folder_of("https://one.example")
