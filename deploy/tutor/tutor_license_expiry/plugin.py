"""Adds license-expiry to Tutor: settings, services, its image, and the jobs that create its accounts and ledger."""

import re
from pathlib import Path
from typing import Any

from tutor import config as tutor_config, hooks
from tutor.types import Config

HERE = Path(__file__).parent

DEFAULTS: dict[str, Any] = {
    "DOCKER_IMAGE": "{{ DOCKER_REGISTRY }}license-expiry:0.1.0",
    "SOURCE": "",
    "MYSQL_DATABASE": "license_manager",
    "MYSQL_USERNAME": "license_expiry",
    "REDIS_DB": 5,
    "LMS_URL": "http://lms:8000",
    "OAUTH2_KEY": "license-manager-backend-service-key",
    "OAUTH2_SECRET": "",
    "SEGMENT_KEY": "",
    "SETTINGS": {},
}
ACCOUNTS = ("", "_init", "_flower", "_serve")
PASSWORDS = [f"MYSQL{which.upper()}_PASSWORD" for which in ACCOUNTS]
MADE_ONCE = dict.fromkeys([*PASSWORDS, "FLOWER_PASSWORD"], "{{ 24|random_string }}")

ROOT = """mysql -u {{ MYSQL_ROOT_USERNAME }} --password="{{ MYSQL_ROOT_PASSWORD }}" \\
  --host "{{ MYSQL_HOST }}" --port {{ MYSQL_PORT }} '{{ LICENSE_EXPIRY_MYSQL_DATABASE }}' <<'SQL'
"""


def _account(which: str) -> str:
    """One of our accounts as a GRANT names it: "" is the workers', "_init", "_flower" and "_serve" the others'."""
    return f"'{{{{ LICENSE_EXPIRY_MYSQL_USERNAME }}}}{which}'@'%'"


def _made(which: str) -> str:
    """The statements that create an account, or set its password again."""
    password = f"LICENSE_EXPIRY_MYSQL{which.upper()}_PASSWORD"
    return f"""CREATE USER IF NOT EXISTS {_account(which)};
ALTER USER {_account(which)} IDENTIFIED BY '{{{{ {password} }}}}';
"""


def _rights(file: str, *accounts: str) -> str:
    """The statements that give these accounts the rights of a file, and take all others away."""
    revoked = "".join(f"REVOKE ALL PRIVILEGES, GRANT OPTION FROM {_account(which)};\n" for which in accounts)
    given = re.sub(r"'license_expiry(\w*)'@'%'", lambda found: _account(found[1]), (HERE / file).read_text())
    return revoked + given


MAKE_ACCOUNTS = f"{ROOT}{''.join(map(_made, ACCOUNTS))}{_rights('init.sql', '_init')}SQL\n"
# Between the two: a right on a table can be given only once that is made.
MAKE_LEDGER = "license-expiry init-db"
GIVE_RIGHTS = f"{ROOT}{_rights('rights.sql', '', '_flower', '_serve')}SQL\n"

hooks.Filters.CONFIG_DEFAULTS.add_items([(f"LICENSE_EXPIRY_{name}", value) for name, value in DEFAULTS.items()])
hooks.Filters.CONFIG_UNIQUE.add_items([(f"LICENSE_EXPIRY_{name}", value) for name, value in MADE_ONCE.items()])
hooks.Filters.ENV_PATCHES.add_items([(patch.name, patch.read_text()) for patch in HERE.glob("patches/*")])
hooks.Filters.ENV_TEMPLATE_ROOTS.add_item(str(HERE / "templates"))
hooks.Filters.ENV_TEMPLATE_TARGETS.add_item(("license-expiry", "plugins"))
# LOW: license-manager's plugin, whatever its name, makes its database first.
hooks.Filters.CLI_DO_INIT_TASKS.add_items(
    [("mysql", MAKE_ACCOUNTS), ("license-expiry", MAKE_LEDGER), ("mysql", GIVE_RIGHTS)], priority=hooks.priorities.LOW
)

NAME, IMAGE = "license-expiry", "{{ LICENSE_EXPIRY_DOCKER_IMAGE }}"
hooks.Filters.IMAGES_PULL.add_item((NAME, IMAGE))
hooks.Filters.IMAGES_PUSH.add_item((NAME, IMAGE))


@hooks.Filters.IMAGES_BUILD.add()
def _image(images: list[Any], config: Config) -> list[Any]:
    """Let `tutor images build license-expiry` build from the release's folder, if that is set."""
    source = tutor_config.get_typed(config, "LICENSE_EXPIRY_SOURCE", str, "")
    return [*images, (NAME, source, IMAGE, ())] if source else images
