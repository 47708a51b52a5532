"""A simulated LMS with one enterprise, and a client of it."""

from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from support.plain_client import GOOD, Client

from simulator.lms.server import Simulator


@pytest.fixture
def lms() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def client(lms: Simulator) -> Iterator[Client]:
    client = Client(lms)
    yield client
    client.session.close()


@pytest.fixture
def enterprise(lms: Simulator) -> UUID:
    made = uuid4()
    lms.state.add_enterprise(made, [GOOD, "other@x.example"])
    return made
