"""Tests with real processes have more time than others."""

from pathlib import Path

import pytest
from support.real_processes import beat, broker, data, environment, flower, processes, reconciled, redis_server, worker

__all__ = ["beat", "broker", "data", "environment", "flower", "processes", "reconciled", "redis_server", "worker"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests with real processes more time than others."""
    for item in items:
        if "acceptance" in Path(item.path).parts:
            item.add_marker(pytest.mark.timeout(300))
