"""Reads settings from the environment, secret files and a YAML file; words the complaint about a wrong one."""

import os
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from worker.errors import SeveralWrong, Unusable, WrongSetting

CONFIG_FILE_VARIABLE = "LICENSE_EXPIRY_CFG"
SECRETS_FOLDER = Path("/run/secrets")
_WRONG = "These settings are wrong"
_ALIKE = 0.8  # difflib's ratio from which an unknown name counts as one of ours misspelled
# Names in license-manager's own file that resemble ours as closely.
_OF_LICENSE_MANAGER = {
    "BACKEND_SERVICE_EDX_OAUTH2_PROVIDER_URL",
    "BULK_ENROLL_REQUEST_TIMEOUT_SECONDS",
    "CELERY_BROKER_USER",
    "CMS_URL",
    "SOCIAL_AUTH_EDX_OAUTH2_ISSUER",
    "SOCIAL_AUTH_EDX_OAUTH2_KEY",
    "SOCIAL_AUTH_EDX_OAUTH2_LOGOUT_URL",
    "SOCIAL_AUTH_EDX_OAUTH2_PUBLIC_URL_ROOT",
    "SOCIAL_AUTH_EDX_OAUTH2_SECRET",
}

# Pydantic's own words speak of Python and of its parser.
_IN_WORDS = {
    "bool": "must be a boolean, true or false",
    "extra": "is not an argument",
    "float": "must be a number",
    "frozen": "must be a list",
    "int": "must be an integer",
    "string_type": "must be a string",
    "tuple": "must be a list",
    "uuid": "must be a UUID",
}

S = TypeVar("S", bound="Sourced")


class WrongValue(ValueError):
    """A validator's complaint with its own remedy. Other complaints show the setting's description and example."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what)
        self.remedy = remedy


class _Secrets(SecretsSettingsSource):
    """Files named like the settings; an empty file counts as not set, as in the environment."""

    def __call__(self) -> dict[str, Any]:
        """Read the settings that have a file (pydantic-settings' hook). Raises Unusable if a file is unreadable."""
        found, problems = {}, []
        for name in self.settings_cls.model_fields:
            path = SECRETS_FOLDER / name
            try:
                found[name] = path.read_text().strip()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
                what = f"{name}: the file {path} cannot be read by user {os.getuid()} ({why})"
                problems.append(WrongSetting(what, "Let this user read it, or remove it"))
        if problems:
            raise SeveralWrong(_WRONG, problems)
        return {name: value for name, value in found.items() if value}


class _Yaml(YamlConfigSettingsSource):
    """The YAML file; null counts as not set. It may be license-manager's own: most keys are not ours."""

    def __call__(self) -> dict[str, Any]:
        """The settings in it (pydantic-settings' hook). Raises Unusable for a misspelled name."""
        given = self.yaml_data
        ours = {name for model in _models(Sourced) for name in model.model_fields}
        problems = []
        for key in sorted(given.keys() - ours - _OF_LICENSE_MANAGER):
            if nearest := get_close_matches(key.upper(), sorted(ours), 1, _ALIKE):
                what = f"{key}: in {self.yaml_file_path} is not a setting"
                problems.append(WrongSetting(what, f"Correct its name, perhaps to {nearest[0]}, or remove it"))
        if problems:
            raise SeveralWrong(_WRONG, problems)
        return {name: value for name, value in super().__call__().items() if value is not None}


class Sourced(BaseSettings):
    """Settings from three sources: the environment wins, then files in /run/secrets, then the YAML file."""

    model_config = SettingsConfigDict(
        case_sensitive=True, extra="ignore", env_ignore_empty=True, use_attribute_docstrings=True
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: Any, init_settings: Any, env_settings: Any, dotenv_settings: Any, file_secret_settings: Any
    ) -> tuple[Any, ...]:
        """Put the sources in their order (pydantic-settings' hook)."""
        return init_settings, env_settings, *_files(settings_cls).values()


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
    except Unusable:
        raise
    except OSError as error:
        raise Unusable(f"{error.filename} cannot be read ({error.strerror})", "let this user read it") from None
    except Exception:  # the YAML parser's errors have no common base, and their text may hold a secret
        what = f"{CONFIG_FILE_VARIABLE}: {path} is not a YAML mapping of settings"
        raise WrongSetting(what, "Write one NAME: value on each line") from None
    raise SeveralWrong(_WRONG, problems)


def origins(model: type[Sourced]) -> dict[str, list[str]]:
    """Which settings of `model` come from where: the environment, the folder of secrets, the YAML file, or the default.

    Call `load` first. Raises Unusable as it does.
    """
    places = {"the environment": EnvSettingsSource(model), **_files(model)}
    left, found = list(model.model_fields), {}
    for place, source in places.items():
        given = source().keys()
        found[place] = [name for name in left if name in given]
        left = [name for name in left if name not in given]
    return found | {"the default": left}


def _files(model: type[BaseSettings]) -> dict[str, PydanticBaseSettingsSource]:
    """The sources that are files, by path; the first wins."""
    files: dict[str, PydanticBaseSettingsSource] = {}
    if SECRETS_FOLDER.is_dir():
        files[str(SECRETS_FOLDER)] = _Secrets(model, SECRETS_FOLDER)
    if path := os.environ.get(CONFIG_FILE_VARIABLE):
        files[path] = _Yaml(model, yaml_file=Path(path))
    return files


def _models(model: type[Sourced]) -> Iterator[type[Sourced]]:
    yield model
    for below in model.__subclasses__():
        yield from _models(below)


def in_words(error: Any) -> str:
    """A pydantic error in our words, to follow the name of the setting or argument."""
    kind = str(error["type"])
    for begins, words in _IN_WORDS.items():
        if kind.startswith(begins):
            return words
    message = str(error["msg"]).removeprefix("Value error, ").partition(" after validation")[0]
    return re.sub("^(Input|String|Tuple) should", "must", message)


def _problem(error: Any, model: type[BaseSettings]) -> WrongSetting:
    name = str(error["loc"][0])
    field = model.model_fields[name]
    remedy = f"{field.description}, for example {(field.examples or [''])[0]}"
    if error["type"] in ("missing", "string_too_short"):
        places = f"in the environment, in {SECRETS_FOLDER}, or in the YAML file that {CONFIG_FILE_VARIABLE} names"
        return WrongSetting(f"{name}: is not set", f"Set it {places}. {remedy}")
    what = in_words(error)
    if error["type"] != "value_error" and field.repr:  # a secret, and the parts of a URL, are never shown
        what += f" (given {error['input']!r})"
    own = error.get("ctx", {}).get("error")
    if isinstance(own, WrongValue):
        remedy = f"{own.remedy}. {field.description}"
    return WrongSetting(f"{name}: {what}", remedy)
