"""Typed settings. Importing this module reads nothing; `load_settings` reports all wrong settings at once."""

import json
from collections.abc import Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID
from zoneinfo import ZoneInfo

from pydantic import PositiveFloat, PositiveInt, ValidationInfo, field_validator
from pydantic_settings import NoDecode

from worker.settings import urls
from worker.settings.sources import Sourced, WrongValue, load, setting

CONNECT_SECONDS = 10
STEPS_QUEUE = "license_expiry"
CONTROL_QUEUE = "license_expiry.control"
RUN_NIGHTLY, RUN_ENTERPRISE = "license_expiry.run_nightly", "license_expiry.run_enterprise"
TRIGGERS = (RUN_NIGHTLY, RUN_ENTERPRISE, "license_expiry.reconcile")
_BROKER_EXAMPLE = "redis://:password@redis:6379/5"


def retry_wait(first: int, attempt: int) -> int:
    """Seconds before the retry that follows attempt number `attempt` (from 0), without jitter: doubled, up to 900."""
    return min(first * (1 << min(attempt, 16)), max(900, first))


def _in_order(value: int, info: ValidationInfo, above: Sequence[str], below: Sequence[str] = ()) -> int:
    """Raise ValueError unless `value` lies between these settings (those that are not wrong by themselves).

    CONNECT_SECONDS above the lower ones: a call takes that much more than its time-out.
    """
    for names, word, edge in ((above, "more", max), (below, "less", min)):
        known = {name: info.data[name] for name in names if name in info.data}
        limit = edge(known.values(), default=None)
        if limit is not None and (value <= limit + CONNECT_SECONDS if word == "more" else value >= limit):
            told = " and ".join(known) + (f" by {CONNECT_SECONDS} s" if word == "more" else "")
            what = f"is {value}, but must be {word} than {told}, {limit}"
            raise WrongValue(what, "Raise the one or lower the other")
    return value


class CelerySettings(Sourced):
    """The settings of celeryconfig.py: enough by themselves, so that `celery -A worker report` works anywhere."""

    CELERY_BROKER_URL: str = setting(_BROKER_EXAMPLE, "", secret=True)
    """Where tasks are queued: a Redis or a RabbitMQ"""
    CELERY_RESULT_BACKEND: str = setting(_BROKER_EXAMPLE, "", secret=True)
    """Where task results are kept; the broker when that is a Redis, else nowhere"""
    NIGHTLY_SCHEDULE: str = setting("0 2 * * *", "0 2 * * *")
    """When beat starts the night: five cron fields, in TIME_ZONE"""
    TIME_ZONE: str = setting("Europe/Paris", "UTC")
    """The time zone of NIGHTLY_SCHEDULE, a name from the tz database"""
    TASK_TIME_LIMIT_SECONDS: PositiveInt = setting("3000", 3000)
    """Celery kills a task after this time; a step publishes the rest of its work after half of it"""
    VISIBILITY_TIMEOUT_SECONDS: PositiveInt = setting("4200", 4200)
    """Redis redelivers a task that was not acknowledged after this time"""
    LOG_FORMAT: Literal["keyvalue", "json"] = setting("json", "keyvalue")
    """The format of log lines: keyvalue for people, json for a log store"""

    @field_validator("*", mode="before")
    @classmethod
    def _no_yes_or_no(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and wanted is not bool:  # from YAML; it would be read as 1 or 0
            raise ValueError("must not be yes or no")
        return value

    @field_validator("CELERY_BROKER_URL", "CELERY_RESULT_BACKEND")
    @classmethod
    def _where_messages_go(cls, value: str, info: ValidationInfo) -> str:
        return value and (urls.broker if info.field_name == "CELERY_BROKER_URL" else urls.backend)(value)

    @field_validator("NIGHTLY_SCHEDULE")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        if len(value.split()) != 5:
            raise ValueError("must have five fields: minute, hour, day of month, month, day of week")
        return value

    @field_validator("TIME_ZONE")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError("is not a time zone that this machine knows") from error
        return value

    @field_validator("VISIBILITY_TIMEOUT_SECONDS")
    @classmethod
    def _above_the_tasks(cls, value: int, info: ValidationInfo) -> int:
        return _in_order(value, info, above=["TASK_TIME_LIMIT_SECONDS"])

    @property
    def result_backend(self) -> str | None:
        """The result backend's URL, or None when results are not kept."""
        if self.CELERY_RESULT_BACKEND:
            return self.CELERY_RESULT_BACKEND
        return self.CELERY_BROKER_URL if self.CELERY_BROKER_URL.startswith("redis") else None


class DatabaseSettings(CelerySettings):
    """The settings for reading the database: enough to show past work and due work."""

    DATABASE_URL: str = setting("mysql://user:password@mysql/license_manager", secret=True)
    """license-manager's database, as a SQLAlchemy URL"""
    CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED: Annotated[frozenset[UUID], NoDecode] = setting(
        "378d5bf0-f67d-4bf7-8b2a-cbbc53d0f772,7f2c0b53-3b0c-4b0e-9d4e-0b8f3c7d2a11", frozenset()
    )
    """The enterprise customers whose learners are unlinked: UUIDs with commas, or a YAML list"""
    UNLINK_AFTER_DAYS: int = setting("90", 90, ge=0, le=36500)
    """A learner is unlinked when the license expired more than this many days ago"""
    UNLINK_LIMIT: int = setting("1000", 1000, ge=0, le=2**31 - 1)
    """The most learners that one run unlinks without approval; 0 is no limit"""
    FLOWER_URL: str = setting("http://flower:5555", "")
    """Flower's address for operators' browsers; serve's pages then link to it to start a run again"""
    SERVE_URL: str = setting("http://license-expiry:8001", "")
    """The address of license-expiry serve for operators' browsers; Flower's pages of runs then link to it"""

    @property
    def judged_by(self) -> str:
        """A fingerprint of the settings that decide who is due.

        A preview holds only for a worker with the same fingerprint.
        """
        listed = sorted(map(str, self.CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED))
        known = json.dumps([listed, self.UNLINK_AFTER_DAYS, self.UNLINK_LIMIT])
        return sha256(known.encode()).hexdigest()[:16]

    @field_validator("DATABASE_URL")
    @classmethod
    def _known_driver(cls, value: str) -> str:
        return urls.database(value)

    @field_validator("FLOWER_URL", "SERVE_URL")
    @classmethod
    def _http_or_none(cls, value: str) -> str:
        return value and urls.http(value)

    @field_validator("CUSTOMERS_WITH_EXPIRED_LICENSES_UNLINKING_ENABLED", mode="before")
    @classmethod
    def _commas(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [part for part in (part.strip() for part in value.split(",")) if part]
        return value or ()


class Settings(DatabaseSettings):
    """Everything that a worker needs."""

    ALLOW_HTTP: bool = setting("false", False)
    """Allow http:// in LMS_URL to another machine, as within a cluster: secrets and addresses go unencrypted"""
    LMS_URL: str = setting("https://courses.example.com", min_length=1)
    """The LMS's root address"""
    SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT: str = setting("https://courses.example.com", "")
    """The root address that issues tokens; LMS_URL when not set"""
    BACKEND_SERVICE_EDX_OAUTH2_KEY: str = setting("license-manager-backend-service-key", min_length=1)
    """The client id of license-manager's backend service application in the LMS"""
    BACKEND_SERVICE_EDX_OAUTH2_SECRET_FILE: Path | None = setting("/run/secrets/lms_oauth2_secret", None)
    """A file whose content is BACKEND_SERVICE_EDX_OAUTH2_SECRET"""
    BACKEND_SERVICE_EDX_OAUTH2_SECRET: str = setting("(a secret)", "", secret=True)
    """That application's secret; or name a file with BACKEND_SERVICE_EDX_OAUTH2_SECRET_FILE"""
    LICENSE_EXPIRATION_BATCH_SIZE: PositiveInt = setting("100", 100, le=1000)
    """Licenses in one downgrade call"""
    BULK_UNLINK_BATCH_SIZE: PositiveInt = setting("100", 100, le=1000)
    """Learners in one unlink call"""
    BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS: PositiveInt = setting("120", 120)
    """How long to wait for the answer to a downgrade call"""
    BULK_UNLINK_REQUEST_TIMEOUT_SECONDS: PositiveInt = setting("120", 120)
    """How long to wait for the answer to an unlink call"""
    LMS_PARALLEL_REQUESTS: PositiveInt = setting("8", 8, le=64)
    """The most LMS calls in flight at once, over all workers on all hosts"""
    LMS_DOWNGRADES_PER_MINUTE: PositiveFloat | None = setting("800", None)
    """The most downgrade calls a minute, over all workers, as the LMS's throttle allows; no limit when not set"""
    LMS_UNLINKS_PER_MINUTE: PositiveFloat | None = setting("2000", None)
    """The same for unlink calls and the queries before them"""
    LMS_REQUESTS_PER_MINUTE: PositiveFloat | None = setting("800", None)
    """The default of LMS_DOWNGRADES_PER_MINUTE and LMS_UNLINKS_PER_MINUTE"""
    LEASE_SECONDS: PositiveInt = setting("300", 300)
    """A worker that is silent for this time loses its run to another worker"""
    TASK_MAX_RETRIES: int = setting("5", 5, ge=0, le=100)
    """The most retries of a step whose own calls fail; waits for an LMS that is down do not count"""
    TASK_RETRY_SECONDS: PositiveInt = setting("60", 60)
    """The wait before the first retry, doubled each time up to 15 minutes; an LMS that is down is tried as often"""
    LEDGER_KEEP_DAYS: int = setting("400", 400, ge=32, le=36500)
    """The ledger keeps ended runs for this number of days; `reconcile` deletes older ones"""
    SEGMENT_KEY: str = setting("(a secret)", "", secret=True)
    """Segment's write key, for license-manager's lifecycle events; none are sent when not set"""
    SEGMENT_INCLUDE_EMAIL: bool = setting("false", False)
    """Whether these events carry the learner's e-mail address"""

    @property
    def calls_per_minute(self) -> dict[str, float | None]:
        """How many calls of each kind all workers together may send in a minute; None is no limit."""
        unlinks = self.LMS_UNLINKS_PER_MINUTE or self.LMS_REQUESTS_PER_MINUTE
        downgrades = self.LMS_DOWNGRADES_PER_MINUTE or self.LMS_REQUESTS_PER_MINUTE
        return {"downgrade": downgrades, "unlink": unlinks, "learners": unlinks}

    @field_validator("LMS_URL", "SOCIAL_AUTH_EDX_OAUTH2_URL_ROOT")
    @classmethod
    def _an_lms(cls, value: str, info: ValidationInfo) -> str:
        if not value:
            return value
        value = urls.http(value)
        beside = info.data.get("LMS_URL", "")
        if value.startswith("http:") and beside.startswith("https:"):
            raise WrongValue("is http:// beside an LMS_URL with https://", "Begin both with https://")
        if value.startswith("http:") and not urls.read(value).is_local and not info.data.get("ALLOW_HTTP"):
            what = "is http:// to another machine: secrets and e-mail addresses would go unencrypted"
            raise WrongValue(what, "Begin it with https://; or, within a network of your own, set ALLOW_HTTP=true")
        urls.require_bundle(value)
        return value

    @field_validator("BACKEND_SERVICE_EDX_OAUTH2_SECRET")
    @classmethod
    def _secret_from_file(cls, value: str, info: ValidationInfo) -> str:
        path: Path | None = info.data.get("BACKEND_SERVICE_EDX_OAUTH2_SECRET_FILE")
        if not value and path is not None:
            try:
                value = path.read_text().strip()
            except OSError as error:
                raise ValueError(f"{path} cannot be read ({error.strerror})") from error
        if not value:
            raise ValueError("is not set")
        return value

    @field_validator("SEGMENT_KEY")
    @classmethod
    def _with_its_library(cls, value: str) -> str:
        value = value.strip()
        if value and not (find_spec("segment") and find_spec("segment.analytics")):
            raise WrongValue("needs Segment's library", "In the release's folder, run: pip install '.[segment]'")
        return value

    @field_validator("LEASE_SECONDS")
    @classmethod
    def _between_the_calls_and_the_tasks(cls, value: int, info: ValidationInfo) -> int:
        calls = ["BULK_EXPIRATION_REQUEST_TIMEOUT_SECONDS", "BULK_UNLINK_REQUEST_TIMEOUT_SECONDS"]
        return _in_order(value, info, above=calls, below=["TASK_TIME_LIMIT_SECONDS"])

    @field_validator("TASK_RETRY_SECONDS")
    @classmethod
    def _well_under_the_visibility_timeout(cls, value: int, info: ValidationInfo) -> int:
        wait = retry_wait(value, info.data.get("TASK_MAX_RETRIES", 0)) * 6 // 5  # with the jitter of a retry
        limit, visibility = (info.data.get(f"{name}_SECONDS") for name in ("TASK_TIME_LIMIT", "VISIBILITY_TIMEOUT"))
        if limit is not None and visibility is not None and wait + limit > visibility:
            what = (
                f"is {value}, which leads to a wait of {wait} s; that and TASK_TIME_LIMIT_SECONDS, {limit}, must be at "
            )
            raise WrongValue(
                f"{what}most VISIBILITY_TIMEOUT_SECONDS, {visibility}", "Lower it, or raise VISIBILITY_TIMEOUT_SECONDS"
            )
        return value


class BeatSettings(CelerySettings):
    """The settings of beat: a broker, and no database and no LMS."""

    CELERY_BROKER_URL: str = setting(_BROKER_EXAMPLE, secret=True, min_length=1)
    """Where tasks are queued: a Redis or a RabbitMQ"""


class _SettingsWithBroker(BeatSettings, Settings):
    pass


def load_settings(*, broker: bool = False) -> Settings:
    """Read all settings; with `broker`, CELERY_BROKER_URL is required. Raises Unusable."""
    return load(_SettingsWithBroker if broker else Settings)
