"""Typed settings. Importing this package reads nothing; `load` reports all wrong settings at once.

`model` has the settings, each with its default and its rules; `urls` checks the URLs among them; `network` finds those
whose connection to another machine is unprotected; `sources` reads them.
"""

from worker.settings.model import (
    CONNECT_SECONDS as CONNECT_SECONDS,
    CONTROL_QUEUE as CONTROL_QUEUE,
    RUN_ENTERPRISE as RUN_ENTERPRISE,
    RUN_NIGHTLY as RUN_NIGHTLY,
    STEPS_QUEUE as STEPS_QUEUE,
    TRIGGERS as TRIGGERS,
    BeatSettings as BeatSettings,
    CelerySettings as CelerySettings,
    DatabaseSettings as DatabaseSettings,
    Settings as Settings,
    load_settings as load_settings,
    retry_wait as retry_wait,
)
