"""license-manager's tables as Django models, with their history, made from the record of the real tables.

A process has one Django: it is configured when first asked for, and led from one database to the next.
"""

import csv
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from typing import Any

import django
import pymysql  # type: ignore[import-untyped]
from django.apps import AppConfig
from django.conf import settings
from django.db import connections, models
from django.urls import path
from sqlalchemy import Engine

from simulator.data.schema import CSV, Row
from support.runs import LICENSE_MANAGERS

HISTORY = "historicalsubscriptionplan"
CHARS = re.compile(r"character varying\((\d+)\)")
BACKENDS = {"sqlite": "sqlite3", "postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql"}

urlpatterns: list[Any] = []  # of the admin, once there is one
Subscriptions = type("Subscriptions", (AppConfig,), {"name": __name__, "label": "subscriptions"})


@contextmanager
def django_on(engine: Engine, native_uuid: bool) -> Iterator[dict[str, Any]]:
    """Lead Django to this database; give the models by the names of their tables.

    MariaDB is taken as license-manager takes it: as one of native UUIDs, or not.
    """
    found = _models()
    url = engine.url
    where: dict[str, Any] = {
        "ENGINE": f"django.db.backends.{BACKENDS[url.get_backend_name()]}",
        "NAME": url.database,
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "HOST": url.host or "",
        "PORT": url.port or "",
    }
    connections.databases.update(connections.configure_settings({"default": where}))
    connection = connections["default"] = connections.create_connection("default")
    try:
        if connection.vendor == "mysql":
            connection.features.has_native_uuid_field = native_uuid
        yield found
    finally:
        connection.close()


def make_tables_of_the_admin() -> None:
    """Make the tables of Django's own that its admin reads, as they stand beside license-manager's."""
    from django.contrib.auth.models import Group, Permission, User
    from django.contrib.contenttypes.models import ContentType

    ContentType.objects.clear_cache()
    with connections["default"].schema_editor() as editor:
        for model in (ContentType, Permission, Group, User):
            editor.create_model(model)


def admin_page(model: Any, view: str, *pk: str) -> str:
    """What a superuser is shown by a view of a model's admin (of one row, by its key, or of all)."""
    from django.contrib import admin
    from django.contrib.auth.models import User
    from django.test import RequestFactory

    request = RequestFactory().get("/admin/")
    request.user = User(username="a test", is_active=True, is_staff=True, is_superuser=True)
    answer = getattr(admin.site.get_model_admin(model), view)(request, *pk)
    if not getattr(answer, "is_rendered", True):
        answer.render()
    assert answer.status_code == 200
    return str(answer.content.decode())


@cache
def _models() -> dict[str, Any]:
    _set_up()
    from django.contrib import admin
    from simple_history.admin import SimpleHistoryAdmin
    from simple_history.models import HistoricalRecords

    with CSV.open(newline="") as source:
        columns = {name: list(rows) for name, rows in groupby(csv.DictReader(source), key=lambda row: row["table"])}
    found: dict[str, Any] = {}
    for name in LICENSE_MANAGERS:
        if name == HISTORY:  # comes of its own, with the plan's
            continue
        attributes: dict[str, Any] = dict(_field(row) for row in columns[f"subscriptions_{name}"])
        if name == "subscriptionplan":
            attributes["history"] = HistoricalRecords()
        meta = type("Meta", (), {"managed": False, "app_label": "subscriptions"})
        found[name] = type(name, (models.Model,), {"__module__": __name__, "Meta": meta, **attributes})
    history = found[HISTORY] = found["subscriptionplan"].history.model
    there = {row["column"] for row in columns[history._meta.db_table]}
    assert {field.column for field in history._meta.fields} == there
    for name, model in found.items():
        admin.site.register(model, SimpleHistoryAdmin if name == "subscriptionplan" else admin.ModelAdmin)
    urlpatterns.append(path("admin/", admin.site.urls))
    return found


def _set_up() -> None:
    pymysql.install_as_MySQLdb()
    contrib = ("contenttypes", "auth", "messages", "admin.apps.SimpleAdminConfig")
    settings.configure(
        INSTALLED_APPS=[*(f"django.contrib.{app}" for app in contrib), "simple_history", f"{__name__}.Subscriptions"],
        USE_TZ=True,
        TIME_ZONE="UTC",
        LOGGING_CONFIG=None,
        STATIC_URL="/static/",
        ROOT_URLCONF=__name__,
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
            }
        ],
    )
    django.setup()


def _field(row: Row) -> tuple[str, Any]:
    """The name and the field of a column, as license-manager's migrations would have it."""
    name, kind, unsigned = row["column"], row["postgres_type"], "unsigned" in row["sqlite_type"]
    options: dict[str, Any] = {"null": row["nullable"] == "yes", "primary_key": row["pk"] == "yes"}
    options |= {"blank": options["null"], "unique": row["unique"] == "yes" or options["primary_key"]}
    target = row["fk"].partition(".")[0].removeprefix("subscriptions_")
    if target in LICENSE_MANAGERS:
        relation = models.OneToOneField if options.pop("unique") else models.ForeignKey
        return name.removesuffix("_id"), relation(
            f"subscriptions.{target}", models.DO_NOTHING, related_name="+", **options
        )
    if kind == "integer identity":
        return name, models.AutoField(primary_key=True)
    if length := CHARS.fullmatch(kind):
        return name, models.CharField(max_length=int(length[1]), **options)
    if kind == "timestamp with time zone":
        return name, models.DateTimeField(auto_now=name == "modified", auto_now_add=name == "created", **options)
    fields = {
        "uuid": models.UUIDField,
        "boolean": models.BooleanField,
        "interval": models.DurationField,
        "text": models.TextField,
        "integer": models.PositiveIntegerField if unsigned else models.IntegerField,
        "smallint": models.PositiveSmallIntegerField if unsigned else models.SmallIntegerField,
    }
    return name, fields[kind](**options)
