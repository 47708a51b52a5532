"""The slots of a host: as many calls in flight as the setting says, whoever has them, and none lost with a process."""

import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.eventually import eventually
from support.runs import ON_SQLITE, Make, batches_of, finish, lay, start, unlinking

from simulator.lms.faults import Fault
from simulator.lms.server import Simulator
from worker.deps import Deps
from worker.errors import Unusable
from worker.ledger.order import Phase
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


@ON_SQLITE
def test_the_limit_holds_over_the_workers_of_a_host_and_is_used_to_the_full(
    lms: Simulator, make_test_deps: Make
) -> None:
    """Two workers, each with more to send than the host may have in flight."""
    laid = [lay(lms, licenses=12, seed=seed) for seed in (1, 2)]
    many = batches_of(1, parallel=6) | unlinking(*(each.enterprise for each in laid))
    workers = [make_test_deps(LMS_PARALLEL_REQUESTS_PER_HOST=4, **many) for _ in laid]
    runs = start(workers[0])
    lms.faults(Fault(kind="downgrade", delay=60))
    with ThreadPoolExecutor() as threads:
        nights = [
            threads.submit(finish, deps, run.enterprise, run.run_id) for deps, run in zip(workers, runs, strict=True)
        ]
        eventually(lambda: lms.journal.in_flight == 4)
        lms.faults()
        lms.lms.latency = 0.01
        lms.release()
        assert [each.result(60).phase for each in nights] == [Phase.FINISHED] * 2
    assert lms.journal.most_in_flight == 4


@ON_SQLITE
def test_a_large_enterprise_does_not_hold_up_a_small_one(lms: Simulator, make_test_deps: Make) -> None:
    """While the calls of a large one, as many as a run may have, are answered by nobody, a small one is done."""
    large, small = lay(lms, licenses=40, seed=1), lay(lms, licenses=2, seed=2)
    settings = batches_of(1, parallel=2) | unlinking(large.enterprise, small.enterprise)
    workers: list[Deps] = [make_test_deps(LMS_PARALLEL_REQUESTS_PER_HOST=3, **settings) for _ in range(2)]
    runs = {run.enterprise: run.run_id for run in start(workers[0])}
    lms.faults(Fault(kind="downgrade", enterprise=str(large.enterprise), delay=600))
    with ThreadPoolExecutor() as threads:
        held_up = threads.submit(finish, workers[0], large.enterprise, runs[large.enterprise])
        eventually(lambda: lms.journal.in_flight == 2)
        assert finish(workers[1], small.enterprise, runs[small.enterprise]).phase == Phase.FINISHED
        assert not held_up.done()
        lms.faults()
        lms.release()
        assert held_up.result(60).phase == Phase.FINISHED
