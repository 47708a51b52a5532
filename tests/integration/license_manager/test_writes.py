"""What a night leaves in license-manager's tables: to the column what license-manager itself would have left."""

import re
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pytest
from sqlalchemy import Engine, Uuid, event, inspect, make_url, text
from support.one_night import lay_night, night_left, night_on_sqlite
from support.runs import (
    ON_ALL_SERVERS,
    ON_SQLITE,
    Make,
    Row,
    counts,
    lay,
    night,
    raw,
    ready,
    rows,
    snapshot,
    unlinking,
)

from simulator.data.rows import Data
from simulator.lms.server import Simulator
from worker.db.license_manager_tables import DOWNGRADED_EVENT, UNLINKED_EVENT
from worker.db.transactions import Database
from worker.errors import Unusable
from worker.ledger.order import Phase

PLAN = "subscriptions_subscriptionplan"
HISTORY = "subscriptions_historicalsubscriptionplan"
EVENT = "subscriptions_licenseevent"
# What a night may write to: two of license-manager's tables and one of their histories, and our own.
WRITTEN = {PLAN, HISTORY, EVENT}
DJANGO_ON_SQLITE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{6})?")

UuidForm = Literal["char32", "native"]


@pytest.fixture
def laid(engine: Engine, lms: Simulator) -> UUID:
    data = Data(engine)
    enterprise = lay_night(data)
    ready(data, lms)
    return enterprise


def by_uuid(found: list[Row]) -> dict[Any, Row]:
    return {row["uuid"]: row for row in found}


def test_a_marked_plan_and_its_history_are_as_license_manager_would_have_left_them(
    laid: UUID, engine: Engine, make_test_deps: Make
) -> None:
    before = by_uuid(rows(engine, "subscriptionplan"))
    deps = make_test_deps(**unlinking(laid))
    begun = deps.database.now()
    [run] = night(deps).values()
    ended = deps.database.now()
    assert counts(run)["plans"] == 2
    after = by_uuid(rows(engine, "subscriptionplan"))
    marked = [uuid for uuid in after if after[uuid] != before[uuid]]
    assert {after[uuid]["title"] for uuid in marked} == {"Old: 5%, “quoted”", "Empty"}
    for uuid in marked:
        assert begun <= after[uuid]["modified"] <= ended
        assert after[uuid] == before[uuid] | {"expiration_processed": True, "modified": after[uuid]["modified"]}
    history = rows(engine, "historicalsubscriptionplan")
    assert sorted(row["uuid"] for row in history) == sorted(marked)
    assert len({row["history_id"] for row in history}) == len(history) == len(marked)
    for row in history:
        assert begun <= row.pop("history_date") <= ended
        assert isinstance(row.pop("history_id"), int)
        own = {name: row.pop(name) for name in ("history_type", "history_user_id", "history_change_reason")}
        reason = f"license-expiry, run {run.id}"
        assert own == {"history_type": "~", "history_user_id": None, "history_change_reason": reason}
        assert row == after[row["uuid"]]


def test_events_are_as_license_manager_would_have_written_them(
    laid: UUID, engine: Engine, make_test_deps: Make
) -> None:
    there = rows(engine, "licenseevent")
    deps = make_test_deps(**unlinking(laid))
    begun = deps.database.now()
    night(deps)
    ended = deps.database.now()
    new = [row for row in rows(engine, "licenseevent") if row not in there]
    titles = {row["uuid"]: row["title"] for row in rows(engine, "subscriptionplan")}
    plans = {row["uuid"]: titles[row["subscription_plan_id"]] for row in rows(engine, "license")}
    old = "Old: 5%, “quoted”"
    assert sorted((row["event_name"], plans[row["license_id"]]) for row in new) == sorted(
        [(DOWNGRADED_EVENT, "Waiting")] * 3
        + [(UNLINKED_EVENT, "Waiting")] * 3
        + [(UNLINKED_EVENT, old)] * 5
        + [(UNLINKED_EVENT, "Done")] * 2
    )
    assert len({(row["event_name"], row["license_id"]) for row in new}) == len(new)
    for row in new:
        assert begun <= row["created"] == row["modified"] <= ended
    assert [row for row in there if row not in rows(engine, "licenseevent")] == []


def test_nothing_else_of_license_managers_is_changed(laid: UUID, engine: Engine, make_test_deps: Make) -> None:
    before = snapshot(engine)
    [run] = night(make_test_deps(**unlinking(laid))).values()
    assert run.phase == Phase.FINISHED
    after = snapshot(engine)
    assert after.keys() == before.keys()
    changed = {name for name in after if after[name] != before[name]}
    assert {name for name in changed if not name.startswith("license_expiry_")} == WRITTEN
    unmarked = [row for row in before[PLAN] if "Old: " not in row and "Empty" not in row]
    assert len(unmarked) == 3
    assert set(unmarked) < set(after[PLAN])
    assert set(before[EVENT]) < set(after[EVENT])


def test_values_are_stored_in_the_form_that_django_stores(
    laid: UUID, engine: Engine, uuid_form: UuidForm, make_test_deps: Make
) -> None:
    night(make_test_deps(**unlinking(laid)))
    question = (
        "SELECT p.uuid, p.modified, p.expiration_processed, h.uuid, h.history_date, h.modified,"
        " h.expiration_processed, h.expiration_date, p.expiration_date, h.customer_agreement_id,"
        f" p.customer_agreement_id FROM {PLAN} p JOIN {HISTORY} h ON h.uuid = p.uuid"
    )
    plans = raw(engine, question)
    events = raw(engine, f"SELECT e.license_id, e.created, e.modified FROM {EVENT} e")
    assert (len(plans), len(events)) == (2, 3 + 10 + 1)
    ids = [row[0] for row in plans + events] + [plans[0][3], plans[0][9], plans[0][10]]
    moments = [row[position] for row in plans for position in (1, 4, 5, 7, 8)]
    moments += [row[position] for row in events for position in (1, 2)]
    flags = [row[position] for row in plans for position in (2, 6)]
    if engine.dialect.name == "postgresql":
        assert {type(each) for each in ids} == {UUID}
        assert all(each.tzinfo is not None for each in moments)
        assert all(each is True for each in flags)
    elif engine.dialect.name == "sqlite":
        assert all(re.fullmatch("[0-9a-f]{32}", each) for each in ids)
        assert [each for each in moments if not DJANGO_ON_SQLITE.fullmatch(each)] == []
        assert [each for each in moments if each.endswith(".000000")] == []  # Django leaves it out
        stored = raw(engine, f"SELECT DISTINCT typeof(expiration_processed), typeof(modified) FROM {HISTORY}")
        assert stored == [("integer", "text")]
        assert flags == [1] * 4
    else:
        form = "[0-9a-f]{32}" if uuid_form == "char32" else "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
        assert all(re.fullmatch(form, str(each)) for each in ids)
        assert {type(each) for each in moments} == {datetime}
        assert all(each.tzinfo is None for each in moments)
        assert flags == [1] * 4
    for row in plans:
        assert (row[0], row[1], row[7], row[9]) == (row[3], row[5], row[8], row[10])


@ON_SQLITE
def test_a_moment_on_the_very_second_is_stored_without_a_fraction(lms: Simulator, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=1)
    deps = make_test_deps(**unlinking(laid.enterprise))

    @event.listens_for(deps.database.engine, "before_cursor_execute", retval=True)
    def on_the_second(_c: Any, _u: Any, statement: str, given: Any, _x: Any, _m: Any) -> tuple[str, Any]:
        return statement.replace("%H:%M:%f000", "%H:%M:%S.000000"), given

    night(deps)
    engine = deps.database.engine
    stored = raw(engine, f"SELECT modified, history_date FROM {HISTORY}") + raw(
        engine, f"SELECT created, modified FROM {EVENT}"
    )
    assert len(stored) == 2
    assert all(re.fullmatch(r"[-\d]{10} [\d:]{8}", each) for row in stored for each in row)


# One MariaDB server can hold both forms of UUID.

NATIVE, CHAR32 = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "[0-9a-f]{32}"


def change_form(engine: Engine, table_name: str, *names: str) -> None:
    """Give these columns of UUIDs, or all of the table's, the other form."""
    inspector = inspect(engine)
    with engine.begin() as connection:
        for key in inspector.get_foreign_keys(table_name):
            connection.execute(text(f"ALTER TABLE {table_name} DROP FOREIGN KEY {key['name']}"))
        for column in inspector.get_columns(table_name):
            name, native = column["name"], isinstance(column["type"], Uuid)
            if name in names or (not names and (native or getattr(column["type"], "length", 0) == 32)):
                null = "" if column["nullable"] else "NOT NULL"
                connection.execute(text(f"ALTER TABLE {table_name} MODIFY {name} char(36) {null}"))
                connection.execute(text(f"UPDATE {table_name} SET {name} = REPLACE({name}, '-', '')"))
                kind = "char(32)" if native else "uuid"
                connection.execute(text(f"ALTER TABLE {table_name} MODIFY {name} {kind} {null}"))


@pytest.mark.long
@pytest.mark.parametrize("engine_kind", ["mariadb", "mariadb-uuid"], indirect=True)
@pytest.mark.parametrize(
    "changed",
    [
        pytest.param([(HISTORY,)], id="the history's"),
        pytest.param([(HISTORY, "customer_agreement_id")], id="one column of the history"),
        pytest.param([(EVENT,)], id="the events'"),
        pytest.param([(HISTORY, "uuid", "enterprise_catalog_uuid"), (EVENT,)], id="some of each"),
    ],
)
def test_each_column_is_written_in_its_own_form(
    changed: list[tuple[str, ...]], laid: UUID, engine: Engine, lms: Simulator, make_test_deps: Make
) -> None:
    for table_name, *names in changed:
        change_form(engine, table_name, *names)
    native = {
        (each, column["name"])
        for each in (PLAN, HISTORY, EVENT)
        for column in inspect(engine).get_columns(each)
        if isinstance(column["type"], Uuid)
    }
    deps = make_test_deps(**unlinking(laid))
    [run] = night(deps).values()
    assert (run.phase, counts(run)["plans"], counts(run)["unlinked"]) == (Phase.FINISHED, 2, 3 + 5 + 2)
    plans = by_uuid(rows(engine, "subscriptionplan"))
    history = rows(engine, "historicalsubscriptionplan")
    assert len(history) == 2
    for row in history:
        plan = plans[row["uuid"]]
        assert row == {name: row[name] for name in row if name.startswith("history_")} | plan
    for table_name, column in [
        *((HISTORY, name) for name in ("uuid", "enterprise_catalog_uuid", "customer_agreement_id")),
        (EVENT, "license_id"),
    ]:
        form = NATIVE if (table_name, column) in native else CHAR32
        stored = [str(each) for [each] in raw(engine, f"SELECT {column} FROM {table_name}")]
        assert [each for each in stored if not re.fullmatch(form, each)] == []
    before, calls = snapshot(engine), len(lms.calls())
    assert night(deps) == {}
    assert (snapshot(engine), len(lms.calls())) == (before, calls)


# Releases of license-manager differ in their columns.


def add_columns(engine: Engine, *columns: tuple[str, str]) -> None:
    with engine.begin() as connection:
        for table_name, column in columns:
            if engine.dialect.name == "sqlite" and "NOT NULL" in column and "DEFAULT" not in column:
                [[made]] = connection.execute(text("SELECT sql FROM sqlite_master WHERE name = :t"), {"t": table_name})
                connection.execute(text(f"DROP TABLE {table_name}"))  # which it adds no such column to
                connection.execute(text(made.replace("(", f"({column}, ", 1)))
            else:
                connection.execute(text(f"ALTER TABLE {table_name} ADD COLUMN {column}"))


def test_columns_of_other_releases_are_copied_where_both_tables_have_them(
    lms: Simulator, engine: Engine, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=1)
    both, only_plan, only_history = "both_have varchar(20)", "plan_has varchar(20)", "history_has varchar(20) NULL"
    add_columns(engine, (PLAN, both), (PLAN, only_plan), (HISTORY, both), (HISTORY, only_history))
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {PLAN} SET both_have = 'copied', plan_has = 'kept'"))
    [run] = night(make_test_deps(**unlinking(laid.enterprise))).values()
    assert (run.phase, counts(run)["plans"]) == (Phase.FINISHED, 1)
    assert raw(engine, f"SELECT both_have, history_has FROM {HISTORY}") == [("copied", None)]
    assert raw(engine, f"SELECT both_have, plan_has FROM {PLAN}") == [("copied", "kept")]


def test_a_column_that_the_database_fills_is_left_to_it(lms: Simulator, engine: Engine, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=1)
    kind = "STORED" if engine.dialect.name == "postgresql" else "VIRTUAL"
    doubled = f"doubled integer GENERATED ALWAYS AS (num_revocations_applied * 2) {kind}"
    filled = "filled varchar(9) NOT NULL DEFAULT 'by them'"
    add_columns(engine, (PLAN, doubled), (HISTORY, doubled), (HISTORY, filled), (EVENT, filled))
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {PLAN} SET num_revocations_applied = 4"))
    deps = make_test_deps(**unlinking(laid.enterprise))
    deps.database.require_schema()
    [run] = night(deps).values()
    assert (run.phase, counts(run)["plans"], counts(run)["unlinked"]) == (Phase.FINISHED, 1, 1)
    assert raw(engine, f"SELECT doubled, filled FROM {HISTORY}") == [(8, "by them")]
    assert raw(engine, f"SELECT filled FROM {EVENT}") == [("by them",)]


COMPOSED = ["composed varchar(9) NOT NULL DEFAULT (concat('a', 'b'))", "at timestamp NOT NULL DEFAULT now()"]
FILLED_BY = {
    "postgresql": [
        "numbered integer GENERATED BY DEFAULT AS IDENTITY",
        "of_old serial NOT NULL",
        "known integer GENERATED ALWAYS AS (1) STORED NOT NULL",
        "at timestamptz NOT NULL DEFAULT now()",
    ],
    "mariadb": COMPOSED,
    "mysql": COMPOSED,
}


@pytest.mark.parametrize("engine_kind", list(FILLED_BY), indirect=True)
def test_a_column_may_be_filled_in_any_way_of_its_engine(
    lms: Simulator, engine: Engine, engine_kind: str, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=1)
    columns = FILLED_BY[engine_kind]
    add_columns(engine, *((name, column) for name in (HISTORY, EVENT) for column in columns))
    [run] = night(make_test_deps(**unlinking(laid.enterprise))).values()
    assert (run.phase, counts(run)["plans"], counts(run)["unlinked"]) == (Phase.FINISHED, 1, 1)
    for name in (HISTORY, EVENT):
        [row] = raw(engine, f"SELECT {', '.join(column.split()[0] for column in columns)} FROM {name}")
        assert None not in row


@ON_SQLITE
def test_a_column_that_comes_while_a_worker_runs_is_copied_from_then_on(
    lms: Simulator, engine: Engine, make_test_deps: Make
) -> None:
    first, second = (lay(lms, licenses=1, seed=seed) for seed in (1, 2))
    deps = make_test_deps()
    night(deps, first.enterprise)
    add_columns(engine, *((name, "newer varchar(9) NOT NULL DEFAULT 'unset'") for name in (PLAN, HISTORY)))
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {PLAN} SET newer = 'set'"))
    night(deps, second.enterprise)
    assert raw(engine, f"SELECT newer FROM {HISTORY} ORDER BY history_id") == [("unset",), ("set",)]


REQUIRED = [(HISTORY, "asked_for varchar(9) NOT NULL"), (EVENT, "asked_for integer NOT NULL")]


@pytest.mark.parametrize("required", [REQUIRED[:1], REQUIRED[1:], REQUIRED], ids=["history", "event", "both"])
def test_a_column_that_we_cannot_fill_is_named_before_anything_is_sent(
    required: list[tuple[str, str]], lms: Simulator, engine: Engine, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=1)
    deps = make_test_deps(**unlinking(laid.enterprise))
    add_columns(engine, *required)
    before = snapshot(engine)
    expected = [
        f"  table {name} has column asked_for, which needs a value that this release does not know: "
        "install a release of license-expiry that knows it, or give the column a default"
        for name, _ in required
    ]
    for attempt in (
        deps.database.require_schema,
        partial(deps.database.require_schema, ledger=False),
        partial(night, deps),
    ):
        with pytest.raises(Unusable) as caught:
            attempt()
        assert set(str(caught.value).splitlines()) == {"The database cannot be used:", *expected}
    assert (snapshot(engine), lms.calls()) == (before, [])


NOT_NUMBERED = {
    "postgresql": f"ALTER TABLE {HISTORY} ALTER history_id DROP IDENTITY",
    "mysql": f"ALTER TABLE {HISTORY} MODIFY history_id int NOT NULL",
    "sqlite": f"CREATE TABLE {HISTORY}"
    " (history_id char(32) NOT NULL PRIMARY KEY, uuid, modified, history_type, history_date, expiration_processed)",
}


def test_a_history_whose_key_the_database_does_not_number_is_named(engine: Engine) -> None:
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            connection.execute(text(f"DROP TABLE {HISTORY}"))
        connection.execute(text(NOT_NUMBERED[engine.dialect.name]))
    with pytest.raises(Unusable, match=rf"table {HISTORY} has column history_id, which needs a value"):
        Database(engine).require_schema()


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)  # the strictest about names
def test_a_column_may_be_called_whatever_django_allows(lms: Simulator, engine: Engine, make_test_deps: Make) -> None:
    laid = lay(lms, licenses=1)
    quote = engine.dialect.identifier_preparer.quote
    names = [quote(name) for name in ("order", "camelCase")]
    for table_name in (PLAN, HISTORY):
        add_columns(engine, *((table_name, f"{name} integer NULL") for name in names))
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE {PLAN} SET {names[0]} = 1, {names[1]} = 2"))
    [run] = night(make_test_deps(**unlinking(laid.enterprise))).values()
    assert (run.phase, counts(run)["plans"]) == (Phase.FINISHED, 1)
    assert raw(engine, f"SELECT {names[0]}, {names[1]} FROM {HISTORY}") == [(1, 2)]


# Every engine


@ON_ALL_SERVERS
def test_the_same_data_gives_the_same_calls_and_the_same_rows_on_every_engine(
    lms: Simulator, engine: Engine, engine_kind: str, tmp_path: Path, make_test_deps: Make
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    there, here = night_left(engine, lms, make_test_deps, now), night_on_sqlite(tmp_path, make_test_deps, now)
    assert there.rows == here.rows
    assert len(there.rows["licenseevent"]) == 2 * (3 + 10 + 1)
    assert there.times_sent == here.times_sent
    if engine_kind != "mariadb-uuid":  # which sorts UUIDs by their last digits first: other batches, same work
        assert there.sent == here.sent


@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_a_server_in_another_time_zone_is_left_the_same_moments(
    lms: Simulator, engine: Engine, make_test_deps: Make
) -> None:
    laid = lay(lms, licenses=2)
    elsewhere = make_url(engine.url).update_query_dict({"options": "-c timezone=America/New_York"})
    deps = make_test_deps(DATABASE_URL=elsewhere.render_as_string(hide_password=False), **unlinking(laid.enterprise))
    begun = Database(engine).now()
    [run] = night(deps).values()
    ended = Database(engine).now()
    written = [row["created"] for row in rows(engine, "licenseevent")]
    written += [
        row[name] for row in rows(engine, "historicalsubscriptionplan") for name in ("history_date", "modified")
    ]
    written += [run.opened_at, run.as_of, run.ended_at]
    assert len(written) == 2 + 2 + 3
    assert [moment for moment in written if not begun <= moment <= ended] == []
    [call] = lms.calls("downgrade")
    assert call.ignore_enrollments_modified_after is not None
    [plan] = rows(engine, "subscriptionplan")
    assert datetime.fromisoformat(call.ignore_enrollments_modified_after) == plan["expiration_date"]
