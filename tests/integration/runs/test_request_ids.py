"""Each call to the LMS tells who calls, and has an id by which its line in the LMS's log is found."""

import logging
import re
from importlib.metadata import version
from typing import Any

import pytest
import requests
from support.runs import ON_SQLITE, Make, batches_of, finish, lay, open_one, unlinking

from simulator.lms.faults import Fault
from simulator.lms.server import Simulator

pytestmark = ON_SQLITE


@pytest.fixture
def headers(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The headers of each request, as they are sent."""
    seen: list[Any] = []
    send = requests.adapters.HTTPAdapter.send

    def listen(adapter: Any, request: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(request.headers)
        return send(adapter, request, *arguments, **options)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", listen)
    return seen


def test_each_call_bears_our_name_and_an_id_with_its_run_and_batch(
    lms: Simulator, make_test_deps: Make, headers: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    laid = lay(lms, licenses=4)
    deps = make_test_deps(**unlinking(laid.enterprise), **batches_of(2))
    lms.faults(Fault(kind="downgrade", status=503, times=1))
    with caplog.at_level(logging.DEBUG, "worker.lms.transport"):
        run = finish(deps, laid.enterprise, open_one(deps, laid.enterprise))
    assert {sent["User-Agent"] for sent in headers} == {f"license-expiry/{version('license-expiry')}"}
    ids = [sent["X-Request-ID"] for sent in headers]
    assert len(set(ids)) == len(ids)
    form = re.compile(rf"{run.id}-(downgrade|unlink)-\d+-\d+-\d+")
    assert all(form.fullmatch(one) for one in ids), ids
    first, again = [one.rpartition("-") for one in ids if one.startswith(f"{run.id}-downgrade")][:2]
    assert first[0] == again[0], "a repeat has a number of its own in the same batch"
    batches = {one.rpartition("-")[0] for one in ids}
    assert len(batches) == 4
    assert all(one in caplog.text for one in ids)


def test_a_call_of_no_batch_has_an_id_of_its_own(lms: Simulator, make_test_deps: Make, headers: list[Any]) -> None:
    deps = make_test_deps()
    deps.lms.check_downgrades(lambda: float("inf"))
    ids = [sent["X-Request-ID"] for sent in headers]
    assert len(set(ids)) == len(ids) == 2
