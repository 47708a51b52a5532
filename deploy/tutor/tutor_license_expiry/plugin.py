"""What license-expiry adds to Tutor: its settings, its services, and the making of its account and its ledger."""

from pathlib import Path
from typing import Any

from tutor import hooks

HERE = Path(__file__).parent

DEFAULTS: dict[str, Any] = {
    "DOCKER_IMAGE": "license-expiry:0.1.0",
    "MYSQL_DATABASE": "license_manager",
    "MYSQL_USERNAME": "license_expiry",
    "REDIS_DB": 5,
    "LMS_URL": "http://lms:8000",
    "OAUTH2_KEY": "license-manager-backend-service-key",
    "OAUTH2_SECRET": "",
    "SETTINGS": {},
}
MADE_ONCE = {"MYSQL_PASSWORD": "{{ 24|random_string }}", "FLOWER_PASSWORD": "{{ 24|random_string }}"}

ROOT = """mysql -u {{ MYSQL_ROOT_USERNAME }} --password="{{ MYSQL_ROOT_PASSWORD }}" \\
  --host "{{ MYSQL_HOST }}" --port {{ MYSQL_PORT }} '{{ LICENSE_EXPIRY_MYSQL_DATABASE }}' <<'SQL'
"""
ACCOUNT = "'{{ LICENSE_EXPIRY_MYSQL_USERNAME }}'@'%'"
MAKE_ACCOUNT = f"""{ROOT}
CREATE USER IF NOT EXISTS {ACCOUNT};
ALTER USER {ACCOUNT} IDENTIFIED BY '{{{{ LICENSE_EXPIRY_MYSQL_PASSWORD }}}}';
SQL
"""
# As root: our own account may make no tables, and a right on a table can be given only once that is made.
MAKE_LEDGER = (
    "DATABASE_URL='mysql://{{ MYSQL_ROOT_USERNAME }}:{{ MYSQL_ROOT_PASSWORD|urlencode }}"
    "@{{ MYSQL_HOST }}:{{ MYSQL_PORT }}/{{ LICENSE_EXPIRY_MYSQL_DATABASE }}' license-expiry init-db"
)
GRANTS = (HERE / "grants.sql").read_text().replace("license_expiry;", f"{ACCOUNT};")
GIVE_RIGHTS = f"""{ROOT}REVOKE ALL PRIVILEGES, GRANT OPTION FROM {ACCOUNT};
{GRANTS}SQL
"""

hooks.Filters.CONFIG_DEFAULTS.add_items([(f"LICENSE_EXPIRY_{name}", value) for name, value in DEFAULTS.items()])
hooks.Filters.CONFIG_UNIQUE.add_items([(f"LICENSE_EXPIRY_{name}", value) for name, value in MADE_ONCE.items()])
hooks.Filters.ENV_PATCHES.add_items([(patch.name, patch.read_text()) for patch in HERE.glob("patches/*")])
hooks.Filters.ENV_TEMPLATE_ROOTS.add_item(str(HERE / "templates"))
hooks.Filters.ENV_TEMPLATE_TARGETS.add_item(("license-expiry", "plugins"))
# LOW: license-manager's plugin, whatever its name, makes its database first.
hooks.Filters.CLI_DO_INIT_TASKS.add_items(
    [("mysql", MAKE_ACCOUNT), ("license-expiry", MAKE_LEDGER), ("mysql", GIVE_RIGHTS)], priority=hooks.priorities.LOW
)
