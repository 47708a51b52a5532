"""Makes Flower ask for a login, and listen on this machine only, when it starts on our app."""

import logging
import re
from typing import Any

import click

from worker import logs
from worker.errors import Unusable, WrongSetting, exit_with
from worker.flower import task_list
from worker.settings import CelerySettings
from worker.settings.sources import Sourced, load, setting

_LOOPBACK = "127.0.0.1"
_RANDOM = "such as this command gives: openssl rand -hex 16"


class FlowerSettings(Sourced):
    """Flower's password from /run/secrets and the YAML file, which Flower itself does not read."""

    FLOWER_BASIC_AUTH: str = setting("operator:…", "", secret=True)
    """Who may use Flower"""


def guard(**_: Any) -> None:
    """Celery's import_modules hook: give a Flower that starts its defaults, or stop it when it would let anybody in.

    Flower sends the signal when it has read all of its options and is not yet listening. Nothing happens in a worker,
    in beat or in another command. Raises SystemExit(2), with what to do on standard error.
    """
    context = click.get_current_context(silent=True)
    if context is None or context.info_name != "flower":
        return
    from tornado.options import options

    try:
        options.basic_auth = _who_may(options.basic_auth, by_oauth=bool(options.auth))
        level = logging.getLevelNamesMapping().get((options.logging or "info").upper(), logging.INFO)
        # In Flower's own form, lines are not masked.
        logs.configure(load(CelerySettings).LOG_FORMAT, level, options.log_file_prefix)
    except Unusable as error:
        exit_with(error)
    options.address = options.address or _LOOPBACK
    task_list.prepare(options)


def mount_pages() -> None:
    """Give a Flower that starts our pages: it copies its list of pages before it sends any signal."""
    context = click.get_current_context(silent=True)
    if context is not None and context.invoked_subcommand == "flower":
        from worker.flower.mount import mount

        mount()


def _who_may(given: list[str], *, by_oauth: bool) -> list[str]:
    """The user:password pairs for Flower's login; none with OAuth.

    Raises Unusable when nothing would ask, and when one is not a pair: an empty one lets an empty header in, and one
    that is not ASCII cannot be compared. Nor when a password is one that examples have.
    """
    pairs = list(filter(None, given)) or list(filter(None, load(FlowerSettings).FLOWER_BASIC_AUTH.split(",")))
    if any(pair.partition(":")[2] == "password" for pair in pairs):
        raise WrongSetting("FLOWER_BASIC_AUTH has the password of an example, password", f"Choose another, {_RANDOM}")
    if (pairs or by_oauth) and all(re.fullmatch("[ -9;-~]+:[ -~]+", pair) for pair in pairs):
        return pairs
    raise WrongSetting(
        "FLOWER_BASIC_AUTH is not set, or is not user:password in ASCII: Flower does not start without authentication",
        f"Set it in the environment or in the file /run/secrets/FLOWER_BASIC_AUTH, with a password {_RANDOM}",
    )
