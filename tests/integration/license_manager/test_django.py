"""license-manager's own code reads every row that a night leaves, goes on from it, and would have written the same."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, text
from support.django_models import admin_page, django_on, make_tables_of_the_admin
from support.runs import LICENSE_MANAGERS, Make, Row, night, rows, unlinking

from simulator.data.rows import DAY, Data
from simulator.data.schema import create_tables, drop_tables, table
from simulator.lms.server import Simulator
from worker.db.license_manager_tables import UNLINKED_EVENT

DJANGO_ON_SQLITE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{6})?")
OLD = "Old: 5%, “quoted”"
FILLED: Row = {
    "salesforce_opportunity_id": "0061W00001abcdefGH",
    "salesforce_opportunity_line_item": "00k1W00001abcdefGH",
    "should_auto_apply_licenses": True,
    "desired_num_licenses": 12,
    "product_id": 3,
    "num_revocations_applied": 2,
    "is_revocation_cap_enabled": True,
}


def lay(engine: Engine, now: datetime) -> UUID:
    """An enterprise with two plans to be marked, one filled and one with NULLs, and with one that is current."""
    data = Data(engine, now=now)
    agreement = data.agreement()
    old = data.plan(agreement, expires=now - 120 * DAY, title=OLD, last_freeze_timestamp=now - 40 * DAY, **FILLED)
    bare = data.plan(agreement, expires=now - 100 * DAY, title="Bare", is_active=False)
    current = data.plan(agreement, expires=now + 40 * DAY, title="Current")
    data.renewal(current, None)
    for plan in (old, bare, current):
        data.license(plan, status="assigned")
        data.license(plan, status="activated")
        data.license(plan, status="unassigned")
    data.flush()
    return agreement.enterprise_customer_uuid


@pytest.fixture
def native(uuid_form: str) -> bool:
    return uuid_form == "native"


@pytest.fixture
def after_a_night(engine: Engine, lms: Simulator, make_test_deps: Make) -> None:
    enterprise = lay(engine, datetime.now(UTC))
    lms.seed()
    night(make_test_deps(**unlinking(enterprise)))


@pytest.mark.usefixtures("after_a_night")
def test_license_managers_own_code_reads_every_row_that_a_night_leaves(engine: Engine, native: bool) -> None:
    with django_on(engine, native) as models:
        for name in LICENSE_MANAGERS:
            found = {row.pk: row for row in models[name].objects.all()}
            pk = models[name]._meta.pk.column
            assert len(found) == len(rows(engine, name)) > 0
            for there in rows(engine, name):
                row = found[there[pk]]
                row.full_clean(exclude=[each.name for each in row._meta.fields if getattr(row, each.attname) is None])
                attributes = {field.column: getattr(row, field.attname) for field in row._meta.fields}
                assert attributes == there
                assert {column: type(value) for column, value in attributes.items()} == {
                    column: type(value) for column, value in there.items()
                }


@pytest.mark.long
@pytest.mark.usefixtures("after_a_night")
def test_license_managers_admin_shows_every_row_that_a_night_leaves(engine: Engine, native: bool) -> None:
    with django_on(engine, native) as models:
        make_tables_of_the_admin()
        for name in LICENSE_MANAGERS:
            model = models[name]
            keys = [str(row.pk) for row in model.objects.all()]
            listed = admin_page(model, "changelist_view")
            assert keys
            assert [key for key in keys if f"/{model.__name__.lower()}/{key}/change/" not in listed] == []
            for key in keys:
                assert f"/{key}/history/" in admin_page(model, "change_view", key)
        marked = models["subscriptionplan"].objects.filter(expiration_processed=True)
        assert len(marked) == 2
        for plan in marked:
            [record] = plan.history.all()
            history = admin_page(models["subscriptionplan"], "history_view", str(plan.pk))
            assert f"/history/{record.history_id}/" in history
            assert "Changed" in history


def test_the_history_of_a_plan_that_a_night_marked_goes_on(
    engine: Engine, native: bool, lms: Simulator, make_test_deps: Make
) -> None:
    enterprise = lay(engine, datetime.now(UTC))
    lms.seed()
    with django_on(engine, native) as models:
        plan = models["subscriptionplan"].objects.get(title=OLD)
        plan.desired_num_licenses = 13
        plan.save()
    [run] = night(make_test_deps(**unlinking(enterprise))).values()
    with django_on(engine, native) as models:
        plan = models["subscriptionplan"].objects.get(title=OLD)
        assert plan.expiration_processed
        plan.title = "Renamed by license-manager"
        plan.save()
        last, ours, first = plan.history.all()
        assert (first.next_record, ours.next_record, last.prev_record) == (ours, last, ours)
        assert set(ours.diff_against(first).changed_fields) == {"expiration_processed"}
        assert set(last.diff_against(ours).changed_fields) == {"title"}
        assert (ours.get_history_type_display(), ours.history_user, ours.history_change_reason) == (
            "Changed",
            None,
            f"license-expiry, run {run.id}",
        )
        assert ours.instance.title == OLD
        assert ours.customer_agreement == plan.customer_agreement
        assert plan.history.as_of(ours.history_date).expiration_processed
        assert not plan.history.as_of(ours.history_date - timedelta(microseconds=1)).expiration_processed


def image(engine: Engine, start: datetime) -> dict[str, list[dict[str, Any]]]:
    """All rows as the driver gives them, but for what no two nights have in common: moments, and numbers given."""
    found = {}
    with engine.connect() as connection:
        for name in LICENSE_MANAGERS:
            answer = connection.execute(text(f"SELECT * FROM {table(engine, name).name}")).mappings()
            found[name] = sorted(
                ({column: stored(column, value, start) for column, value in row.items()} for row in answer), key=repr
            )
    return found


def stored(column: str, value: Any, start: datetime) -> tuple[str, Any]:
    kind = type(value).__name__
    if column in ("id", "history_id"):
        return kind, "a number"
    moment = value
    if isinstance(value, str) and DJANGO_ON_SQLITE.fullmatch(value):
        moment = datetime.fromisoformat(value)
    if isinstance(moment, datetime):
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        value = "this night" if start <= moment <= datetime.now(UTC) else value
    return kind, value


def test_license_managers_own_code_would_have_written_the_same(
    engine: Engine, uuid_form: Any, native: bool, lms: Simulator, make_test_deps: Make
) -> None:
    now = datetime.now(UTC) - timedelta(minutes=1)
    enterprise = lay(engine, now)
    lms.seed()
    start = datetime.now(UTC) - timedelta(seconds=30)
    laid = image(engine, start)
    [run] = night(make_test_deps(**unlinking(enterprise))).values()
    ours = image(engine, start)
    drop_tables(engine)
    create_tables(engine, uuid_form)
    lay(engine, now)
    assert image(engine, start) == laid
    with django_on(engine, native) as models:
        event = models["licenseevent"]
        for plan in models["subscriptionplan"].objects.filter(expiration_date__lt=now):
            plan.expiration_processed = True
            plan._change_reason = f"license-expiry, run {run.id}"
            plan.save()
            licenses = models["license"].objects.filter(subscription_plan=plan, status__in=("assigned", "activated"))
            event.objects.bulk_create(event(license=each, event_name=UNLINKED_EVENT) for each in licenses)
    theirs = image(engine, start)
    assert ours == theirs
    changed = {name: len([row for row in ours[name] if row not in laid[name]]) for name in LICENSE_MANAGERS}
    assert {name: count for name, count in changed.items() if count} == {
        "subscriptionplan": 2,
        "licenseevent": 4,
        "historicalsubscriptionplan": 2,
    }
