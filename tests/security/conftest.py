"""Attacks are made on real processes, too."""

import subprocess
from typing import Any

import pytest
from support.processes import lay
from support.real_processes import beat, broker, data, environment, flower, processes, redis_server, worker

from simulator.data.rows import Data
from simulator.lms.server import Simulator

__all__ = ["beat", "broker", "data", "environment", "flower", "processes", "redis_server", "worker"]


@pytest.fixture
def attacked(data: Data, lms: Simulator, environment: Any, worker: Any) -> subprocess.Popen[bytes]:
    """A real worker, and an enterprise with work due."""
    lay(data, lms)
    environment()
    started: subprocess.Popen[bytes] = worker(app="support.fast_app")
    return started
