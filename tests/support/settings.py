"""Settings that are good, and what is said of those that are not."""

from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest

from worker.errors import Unusable
from worker.settings import load_settings

GOOD = {
    "DATABASE_URL": "mysql://user:database-password@mysql/license_manager",
    "CELERY_BROKER_URL": "redis://:broker-password@redis:6379/5",
    "LMS_URL": "https://courses.example.com",
    "BACKEND_SERVICE_EDX_OAUTH2_KEY": "a-key",
    "BACKEND_SERVICE_EDX_OAUTH2_SECRET": "the-lms-secret",
}


ONE, OTHER = UUID("378d5bf0-f67d-4bf7-8b2a-cbbc53d0f772"), UUID("7f2c0b53-3b0c-4b0e-9d4e-0b8f3c7d2a11")
UNLINKING = "CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED"
SECRET = "BACKEND_SERVICE_EDX_OAUTH2_SECRET"
Env = Callable[..., None]
Yaml = Callable[[str], Path]


def refused(broker: bool = True) -> str:
    with pytest.raises(Unusable) as caught:
        load_settings(broker=broker)
    return str(caught.value)


def complaints(message: str) -> dict[str, str]:
    """The name of each setting that is complained about, and what is said of it."""
    first, *lines = message.splitlines()
    assert first == "These settings are wrong:"
    return dict(line.strip().split(": ", 1) for line in lines)
