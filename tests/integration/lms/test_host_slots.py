"""The slots of a host: as many calls in flight as the setting says, whoever has them, and none lost with a process."""

import os
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
    with pytest.raises(
        Unusable,
        match=r"the folder .*/file/slots, .* \(Not a directory\): it must be a folder, and no link: delete it, or",
    ):
        HostSlots(tmp_path / "file" / "slots", 1)


def test_no_folder_for_temporary_files_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(Unusable, match="no folder for temporary files: let TMPDIR name one"):
        folder_of("https://one.example")


def test_a_link_that_somebody_put_there_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "slots").symlink_to(tmp_path / "theirs")
    with pytest.raises(
        Unusable, match=r"the folder .*/slots, .* \(Not a directory\): it must be a folder, and no link: delete it, or"
    ):
        HostSlots(tmp_path / "slots", 1)
    assert list((tmp_path / "theirs").iterdir()) == []


def test_a_folder_that_others_may_write_to_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "slots").mkdir()
    (tmp_path / "slots").chmod(0o777)
    with pytest.raises(
        Unusable, match=r"the folder .*/slots, .*: other users may write to it: delete it, or let TMPDIR"
    ):
        HostSlots(tmp_path / "slots", 1)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives folders away")
def test_the_folder_of_another_user_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "slots").mkdir()
    os.chown(tmp_path / "slots", 65534, 65534)
    with pytest.raises(
        Unusable, match=r"the folder .*/slots, .*: it belongs to the user with the id 65534: let TMPDIR"
    ):
        HostSlots(tmp_path / "slots", 1)


SWAP = """
import pathlib, sys
from worker.lms.host_slots import HostSlots
slots = pathlib.Path(sys.argv[1])

def swap(event, args):
    if event == "open" and str(args[0]).rpartition("/")[2] == "0" and not slots.is_symlink():
        slots.rename(slots.with_name("moved"))
        slots.symlink_to(slots.with_name("theirs"))

sys.addaudithook(swap)
HostSlots(slots, 1)
"""


def test_a_link_that_takes_the_folders_place_after_it_was_checked_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    subprocess.run([sys.executable, "-c", SWAP, str(tmp_path / "slots")], check=True)
    assert (tmp_path / "slots").is_symlink()
    assert list((tmp_path / "theirs").iterdir()) == []
    assert [file.name for file in (tmp_path / "moved").iterdir()] == ["0"]


def test_to_take_a_slot_renews_its_files_times(tmp_path: Path) -> None:
    slots = HostSlots(tmp_path / "slots", 2)
    for file in (tmp_path / "slots").iterdir():
        os.utime(file, (0, 0))
    assert len(taken(slots)) == 2
    assert all(file.stat().st_mtime > 0 and file.stat().st_atime > 0 for file in (tmp_path / "slots").iterdir())
    slots.close()


@pytest.mark.parametrize("deleted", ["files", "folder"])
def test_slots_that_were_deleted_underneath_are_made_anew_and_do_not_double(deleted: str, tmp_path: Path) -> None:
    ours = HostSlots(tmp_path / "slots", 2)
    for file in (tmp_path / "slots").iterdir():
        file.unlink()
    if deleted == "folder":
        (tmp_path / "slots").rmdir()
    theirs = [HostSlots(tmp_path / "slots", 2) for _ in range(2)]
    assert [len(taken(slots)) for slots in (ours, *theirs)] == [2, 0, 0]
    for slots in (ours, *theirs):
        slots.close()


def test_a_slot_that_cannot_be_made_anew_is_told_and_not_lost(tmp_path: Path) -> None:
    slots = HostSlots(tmp_path / "slots", 1)
    (tmp_path / "slots" / "0").unlink()
    (tmp_path / "slots").rmdir()
    (tmp_path / "slots").write_text("")
    with pytest.raises(Unusable, match=r"/slots, "):
        slots.take()
    (tmp_path / "slots").unlink()
    assert taken(slots) == [0]
    slots.close()
