"""Where settings come from: the environment, files of their names, a YAML file; and what is said of a wrong one."""

import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SecretsSettingsSource, SettingsConfigDict, YamlConfigSettingsSource

from worker.errors import SeveralWrong, Unusable, WrongSetting

CONFIG_FILE_VARIABLE = "LICENSE_EXPIRY_CFG"
SECRETS_FOLDER = Path("/run/secrets")

S = TypeVar("S", bound="Sourced")


class WrongValue(ValueError):
    """A validator's complaint with a remedy of its own; that of others is the setting's description and example."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


class _Secrets(SecretsSettingsSource):
    """Files named like the settings; an empty one is as good as none, as in the environment."""

    def __call__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__call__().items() if value != ""}


class Sourced(BaseSettings):
    """Settings from the environment, which wins; from files of their names in /run/secrets; from the YAML file."""

    model_config = SettingsConfigDict(
        case_sensitive=True, extra="ignore", env_ignore_empty=True, use_attribute_docstrings=True
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: Any, init_settings: Any, env_settings: Any, dotenv_settings: Any, file_secret_settings: Any
    ) -> tuple[Any, ...]:
        """Put the sources in their order (pydantic-settings' hook)."""
        sources = [init_settings, env_settings]
        if SECRETS_FOLDER.is_dir():
            sources.append(_Secrets(settings_cls, SECRETS_FOLDER))
        if path := os.environ.get(CONFIG_FILE_VARIABLE):
            sources.append(YamlConfigSettingsSource(settings_cls, yaml_file=Path(path)))
        return tuple(sources)


def setting(example: str, default: Any = ..., *, secret: bool = False, **limits: Any) -> Any:
    """A pydantic field with the example that error messages quote, as they do the docstring beneath it."""
    return Field(default, examples=[example], repr=not secret, **limits)


def load(model: type[S]) -> S:
    """Read `model` from its sources. Raises Unusable, naming each wrong setting with its remedy."""
    path = os.environ.get(CONFIG_FILE_VARIABLE)
    if path and not Path(path).is_file():
        what = f"{CONFIG_FILE_VARIABLE}: {path} is not a file"
        raise WrongSetting(what, "Name an existing YAML file, or unset it")
    try:
        return model()
    except ValidationError as error:
        problems = [_problem(wrong, model) for wrong in error.errors()]
    except OSError as error:
        raise Unusable(f"{error.filename} cannot be read ({error.strerror})", "let this user read it") from None
    except Exception:  # the YAML parser's errors have no common base, and their text may hold a secret
        what = f"{CONFIG_FILE_VARIABLE}: {path} is not a YAML mapping of settings"
        raise WrongSetting(what, "Write NAME: value, one on a line") from None
    raise SeveralWrong("These settings are wrong", problems)


def _problem(error: Any, model: type[BaseSettings]) -> WrongSetting:
    name = str(error["loc"][0])
    field = model.model_fields[name]
    remedy = f"{field.description}, for example {(field.examples or [''])[0]}"
    if error["type"] in ("missing", "string_too_short"):
        places = f"in the environment, in {SECRETS_FOLDER}, or in the YAML file that {CONFIG_FILE_VARIABLE} names"
        return WrongSetting(f"{name}: is not set", f"Set it {places}. {remedy}")
    what = str(error["msg"]).removeprefix("Value error, ")
    if len(error["loc"]) > 1 and isinstance(error.get("input"), str):
        what += f" ({error['input']!r})"
    own = error.get("ctx", {}).get("error")
    if isinstance(own, WrongValue):
        remedy = f"{own.remedy}. {field.description}"
    return WrongSetting(f"{name}: {what}", remedy)
