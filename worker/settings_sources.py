"""Where settings come from, and how a wrong one is told: the environment, files of their names, a YAML file."""

import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from worker.errors import Unusable

CONFIG_FILE_VARIABLE = "LICENSE_EXPIRY_CFG"
SECRETS_FOLDER = Path("/run/secrets")

S = TypeVar("S", bound="Sourced")


class _Secrets(SecretsSettingsSource):
    """Files named like the settings; an empty one is as good as none, as in the environment."""

    def __call__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__call__().items() if value != ""}


class Sourced(BaseSettings):
    """Settings from the environment, which wins; from files of their names in /run/secrets; from the YAML file."""

    model_config = SettingsConfigDict(case_sensitive=True, extra="ignore", env_ignore_empty=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the sources in their order (pydantic-settings' hook)."""
        sources = [init_settings, env_settings]
        if SECRETS_FOLDER.is_dir():
            sources.append(_Secrets(settings_cls, SECRETS_FOLDER))
        if path := os.environ.get(CONFIG_FILE_VARIABLE):
            sources.append(YamlConfigSettingsSource(settings_cls, yaml_file=Path(path)))
        return tuple(sources)


def setting(description: str, example: str, default: Any = ..., *, secret: bool = False, **limits: Any) -> Any:
    """A field that an error message can explain: what it is, and how it may look."""
    return Field(default, description=description, examples=[example], repr=not secret, **limits)


def load(model: type[S]) -> S:
    """Read `model` from its sources. Raises Unusable with one line for each wrong setting."""
    path = os.environ.get(CONFIG_FILE_VARIABLE)
    if path and not Path(path).is_file():
        raise Unusable(f"{CONFIG_FILE_VARIABLE}: {path} is not a file. Name an existing YAML file, or unset it")
    try:
        return model()
    except ValidationError as error:
        problems = [_problem(each, model) for each in error.errors()]
    except OSError as error:
        raise Unusable(f"{error.filename} cannot be read ({error.strerror}): let this user read it") from None
    except Exception:  # the YAML parser's errors have no common base, and their text may hold a secret
        raise Unusable(
            f"{CONFIG_FILE_VARIABLE}: {path} is not a YAML mapping of settings. Write NAME: value, one on a line"
        ) from None
    raise Unusable("\n".join(["These settings are wrong:", *(f"  {problem}" for problem in problems)]))


def _problem(error: Any, model: type[BaseSettings]) -> str:
    name = str(error["loc"][0])
    field = model.model_fields[name]
    if error["type"] in ("missing", "string_too_short"):
        places = f"in the environment, in {SECRETS_FOLDER}, or in the YAML file that {CONFIG_FILE_VARIABLE} names"
        what = f"is not set. Set it {places}"
    else:
        what = str(error["msg"]).removeprefix("Value error, ")
        if len(error["loc"]) > 1 and isinstance(error.get("input"), str):
            what += f" ({error['input']!r})"
    return f"{name}: {what}. {field.description}, for example {(field.examples or [''])[0]}"
