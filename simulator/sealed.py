"""Keeps the demo and its processes from reading this machine's settings.

`python -m simulator.sealed celery …` and `python -m simulator.sealed license-expiry …` start the two commands without
the files in /run/secrets. Their environment is the one that `environment` returns, with the demo's settings.
"""

import sys
from collections.abc import Mapping

from worker.settings import sources

# An allowlist, because variables such as a proxy, PGHOST or CELERY_BROKER_READ_URL lead to real places too.
HARMLESS = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LANG", "LANGUAGE", "LD_LIBRARY_PATH"),
    *("TERM", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"),
)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that lead to no other service: paths, language, terminal."""
    return {name: value for name, value in given.items() if name in HARMLESS or name.startswith("LC_")}


def close_secrets() -> None:
    """Let this process read no setting from /run/secrets."""
    sources.SECRETS_FOLDER = sources.SECRETS_FOLDER / "not for the demo"


def main() -> None:
    """Start the command named by the first argument, with the remaining arguments."""
    close_secrets()
    del sys.argv[0]
    if sys.argv[0] == "celery":
        from celery.__main__ import main as celery

        sys.exit(celery())
    from worker.cli.main import main as command

    command(prog_name="license-expiry")


if __name__ == "__main__":
    main()
