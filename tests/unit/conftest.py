"""An environment without settings of ours."""

from pathlib import Path

import pytest
from support.settings import GOOD, Env, Yaml

from worker.settings import Settings
from worker.settings.sources import CONFIG_FILE_VARIABLE


@pytest.fixture(autouse=True)
def no_settings_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*Settings.model_fields, CONFIG_FILE_VARIABLE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Env:
    """Set the environment to what is good, with changes; None leaves one out."""

    def set_all(**changes: str | None) -> None:
        for name, value in (GOOD | changes).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return set_all


@pytest.fixture
def yaml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Yaml:
    """Write the YAML file and name it."""

    def write(content: str) -> Path:
        path = tmp_path / "settings.yml"
        path.write_text(content)
        monkeypatch.setenv(CONFIG_FILE_VARIABLE, str(path))
        return path

    return write
