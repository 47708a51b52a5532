"""A client on a network and a clock of the test's own."""

from collections.abc import Iterator

import pytest
import requests
import tenacity
from support.wire import PATIENCE, Clock, Wire

from worker.lms import client as lms_client, transport as lms
from worker.lms.client import LmsClient


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (lms, lms_client, tenacity):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(lms, "steady", clock.monotonic)
    return clock


@pytest.fixture
def wire(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire(clock)
    monkeypatch.setattr(
        requests.adapters.HTTPAdapter, "send", lambda _, request, **how: wire.send(request, how["timeout"])
    )
    return wire


@pytest.fixture
def client(wire: Wire) -> Iterator[LmsClient]:
    client = LmsClient("https://lms.example", "https://auth.example", "key", "secret", patience=PATIENCE)
    yield client
    client.close()
