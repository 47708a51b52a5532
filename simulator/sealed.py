"""Keeps this machine's settings away from the demo and from all that it starts.

`python -m simulator.sealed celery …` and `python -m simulator.sealed license-expiry …` start the two commands with the
files in /run/secrets shut out; what they have in their environment was left to them by `environment`.
"""

import sys
from collections.abc import Mapping

from worker.settings import sources

# An allowlist: a proxy, PGHOST or CELERY_BROKER_READ_URL leads to real places as well as a setting of ours does.
HARMLESS = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LD_LIBRARY_PATH"),
    *("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"),
)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that lead nowhere: paths, the language, the terminal."""
    return {name: value for name, value in given.items() if name in HARMLESS or name.startswith("LC_")}


def close_secrets() -> None:
    """Let this process and its children read no setting from /run/secrets."""
    sources.SECRETS_FOLDER = sources.SECRETS_FOLDER / "not for the demo"


def main() -> None:
    """Start the command that the first argument names, with the arguments after it."""
    close_secrets()
    del sys.argv[0]
    if sys.argv[0] == "celery":
        from celery.__main__ import main as celery

        sys.exit(celery())
    from worker.cli.main import main as command

    command(prog_name="license-expiry")


if __name__ == "__main__":
    main()
