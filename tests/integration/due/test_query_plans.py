"""At 1,000,000 licenses every named query uses license-manager's own indexes: what the database says of its plan.

On MySQL there are 200,000, which takes minutes to fill a table of a million; LICENSES says otherwise.

Each query is explained for a night with every customer on the unlink list, and for a run of the biggest one. For a
shorter list it is carried out too: a plan can go through a whole table in an index as well.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, event
from support.databases import with_tables
from support.million_licenses import DUE, LICENSES, WAITING, Customer, lay_down_a_million
from support.services import new_database

from simulator.data.rows import DAY
from simulator.data.schema import table
from worker.db import sql
from worker.due import downgrades, enterprises, fates, plans, unlinks
from worker.due.scope import Scope

pytestmark = pytest.mark.timeout(600)

AS_OF = datetime(2026, 6, 1, 2, 0, tzinfo=UTC)
RUN = UUID("0000bbbb-0000-4000-8000-00000000bbbb")
MIDDLE = UUID(int=1 << 127)
ENOUGH = {"mysql": int(os.environ.get("LICENSES", "200000"))}
SHORT_PAGE = 1  # the shorter, the more a database is tempted to go through all licenses in order

BIG_TABLES = (
    "subscriptions_license",
    "subscriptions_licenseevent",
    "subscriptions_historicallicense",
    "license_expiry_downgrade",
)
# Who is the same learner is looked for among all licenses of the customers; of all customers, that is all there are.
ALL_READ = ("waiting_plans", "waiting_downgrades", "due_unlinks", "rehearsed unlinks", "protected")
EXPLAIN = {"postgresql": "EXPLAIN (FORMAT JSON)", "mariadb": "EXPLAIN FORMAT=JSON", "mysql": "EXPLAIN FORMAT=JSON"}
CARRY_OUT = {
    "postgresql": "EXPLAIN (FORMAT JSON, ANALYZE, TIMING OFF)",
    "mariadb": "ANALYZE FORMAT=JSON",
    "mysql": "EXPLAIN ANALYZE FORMAT=JSON",
}

Queries = dict[str, sql.Rows]


@dataclass(frozen=True)
class Million:
    """A database of a million licenses, or of as many as are enough."""

    kind: str
    engine: Engine
    licenses: int
    customers: list[Customer]


@dataclass(frozen=True)
class Access:
    """How a plan reads a table: by which index, if it looks something up in one; and how many rows, if carried out."""

    table: str
    index: str | None
    rows: float


@pytest.fixture(scope="module", params=["postgresql", "mariadb", "mysql"])
def million(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Million]:
    kind, licenses = request.param, ENOUGH.get(request.param, LICENSES)
    with new_database(kind, tmp_path_factory.mktemp("million")) as url, with_tables(url) as engine:
        yield Million(kind, engine, licenses, lay_down_a_million(engine, AS_OF, licenses))


def of_a_night(scope: Scope) -> Queries:
    """The queries that are put for all customers and for one."""
    return {
        "due_plans": plans.due_plans(scope),
        "done_plans": plans.done_plans(scope),
        "waiting_plans": downgrades.waiting_plans(scope),
        "plans_waiting_for_renewal": plans.plans_waiting_for_renewal(scope),
        "due_downgrades": downgrades.due_downgrades(scope),
        "waiting_downgrades": downgrades.waiting_downgrades(scope),
        "due_unlinks": unlinks.due_unlinks(scope),
        "rehearsed unlinks": unlinks.due_unlinks(scope, downgraded=False),
        "protected": unlinks.protected(scope),
        "agreements_with_candidates": fates.agreements_with_candidates(scope),
        "perhaps_due_enterprises": enterprises.perhaps_due_enterprises(scope),
        "known_enterprises": enterprises.known_enterprises(scope.unlink_enabled),
    }


def of_a_run(scope: Scope, customer: Customer) -> Queries:
    """The queries that are put for one customer."""
    due, waiting = customer.plans[DUE], customer.plans[WAITING]
    forced = replace(scope, force=True)
    queries = of_a_night(scope) | {
        "forced due_plans": plans.due_plans(forced),
        "forced due_downgrades": downgrades.due_downgrades(forced),
        "plans_of_run": plans.plans_of_run(scope),
        "first_unconfirmed": downgrades.first_unconfirmed(scope),
        "plans_of": enterprises.plans_of(frozenset({customer.uuid}), (due, waiting)),
        "plans of agreements": fates.plans_of_agreements(scope, [customer.agreement]),
        "licenses of agreements": fates.licenses_of_agreements(scope, [customer.agreement], alone=True, holding=True),
    }
    for page, after in (("first", None), ("later", MIDDLE)):
        queries[f"{page} downgrade_page, due"] = downgrades.downgrade_page(scope, due, False, SHORT_PAGE, after)
        queries[f"{page} downgrade_page, waiting"] = downgrades.downgrade_page(scope, waiting, True, SHORT_PAGE, after)
        queries[f"{page} unlink_page"] = unlinks.unlink_page(scope, SHORT_PAGE, after)
    return queries


def a_scope(listed: Sequence[Customer], enterprise: UUID | None = None) -> Scope:
    enabled = frozenset(customer.uuid for customer in listed)
    return Scope(AS_OF, 90 * DAY, enabled, enterprise, run_id=RUN)


def plan_of(connection: Connection, kind: str, how: dict[str, str], query: sql.Rows) -> list[Access]:
    """What the database says of this query's plan, asked with these words."""

    def explain(_: Connection, __: Any, statement: str, parameters: Any, *rest: Any) -> tuple[str, Any]:
        return f"{how[kind]} {statement}", parameters

    event.listen(connection, "before_cursor_execute", explain, retval=True)
    try:
        (plan,) = connection.execute(query).cursor.fetchone()  # type: ignore[misc]
    finally:
        event.remove(connection, "before_cursor_execute", explain)
    if kind == "postgresql":
        return list(of_postgresql(plan[0]["Plan"]))
    read = json.loads(plan, strict=False)  # MariaDB leaves a tab in a string as it is
    return list(of_mariadb(read) if kind == "mariadb" else of_mysql(read["query_plan"]))


def of_postgresql(node: dict[str, Any]) -> Iterator[Access]:
    # A set that is not hashed is gone through for each license at hand.
    assert (node["Node Type"], node.get("Parent Relationship")) != ("Materialize", "SubPlan")
    if "Relation Name" in node:
        rows = node.get("Actual Rows", 0) + node.get("Rows Removed by Filter", 0)
        yield Access(node["Relation Name"], next(looked_up(node), None), rows * node.get("Actual Loops", 0))
    for each in node.get("Plans", ()):
        yield from of_postgresql(each)


def looked_up(node: dict[str, Any]) -> Iterator[str]:
    """The indexes in which it looks something up; to read one from end to end is no look-up."""
    if "Index Cond" in node:
        yield node["Index Name"]
    for each in node.get("Plans", ()):
        if node["Node Type"].startswith("Bitmap"):
            yield from looked_up(each)


def of_mariadb(plan: Any) -> Iterator[Access]:
    if isinstance(plan, dict) and "access_type" in plan:
        index = None if plan["access_type"] in ("ALL", "index") else plan.get("key")
        yield Access(own_name(plan), index, (plan.get("r_rows") or 0) * plan.get("r_loops", 0))
    for each in plan.values() if isinstance(plan, dict) else plan if isinstance(plan, list) else ():
        yield from of_mariadb(each)


def of_mysql(node: dict[str, Any]) -> Iterator[Access]:
    """Of the form that 9.7 gives; 8.x gives one of its own."""
    if "table_name" in node:
        looked_up = node["access_type"] == "index" and node["index_access_type"] != "index_scan"
        rows = (node.get("actual_rows") or 0) * (node.get("actual_loops") or 0)
        yield Access(own_name(node), node["index_name"] if looked_up else None, rows)
    for each in node.get("inputs", ()):
        yield from of_mysql(each)


def own_name(node: dict[str, Any]) -> str:
    """The name of the table itself: several of one table are numbered."""
    return re.sub(r"(_\d+)+$", "", node["table_name"])


def their_indexes(engine: Engine) -> set[str]:
    """The names of license-manager's indexes, and of the ledger's primary keys."""
    tables = table(engine, "license").metadata.tables.values()
    named: list[Any] = [each for made in tables for each in (*made.indexes, *made.constraints)]
    return {str(each.name) for each in named} | {"PRIMARY", "license_expiry_downgrade_pkey"}


@pytest.mark.parametrize("whose", ["a night", "a run"])
def test_licenses_and_events_are_looked_up(million: Million, whose: str, subtests: pytest.Subtests) -> None:
    biggest = million.customers[0]
    queries = of_a_night(a_scope(million.customers))
    if whose == "a run":
        queries = of_a_run(a_scope(million.customers, biggest.uuid), biggest)
    indexes = their_indexes(million.engine)
    seen = set()
    with million.engine.connect() as connection:
        for name, query in queries.items():
            with subtests.test(name):
                found = [each for each in plan_of(connection, million.kind, EXPLAIN, query) if each.table in BIG_TABLES]
                scanned = {each.table for each in found if each.index not in indexes}
                assert scanned <= ({"subscriptions_license"} if whose == "a night" and name in ALL_READ else set())
                seen |= {each.table for each in found}
    assert seen == set(BIG_TABLES)


def test_a_small_part_of_the_licenses_is_read(million: Million, subtests: pytest.Subtests) -> None:
    with million.engine.connect() as connection:
        for name, query in of_a_night(a_scope(million.customers[40::40])).items():
            with subtests.test(name):
                found = plan_of(connection, million.kind, CARRY_OUT, query)
                of_licenses = sum(each.rows for each in found if each.table == "subscriptions_license")
                assert of_licenses < million.licenses / 7  # each customer's, read up to five times
                # Nor is any set gone through again and again.
                assert sum(each.rows for each in found) < million.licenses


def test_mysql_goes_through_no_set_for_each_license(tmp_path: Path, subtests: pytest.Subtests) -> None:
    """It did, to make sure that a license without a user id is in no set: 13,564 times at 20,000 licenses."""
    with new_database("mysql", tmp_path) as url, with_tables(url) as engine:
        customers = lay_down_a_million(engine, AS_OF, licenses := 20_000)
        with engine.connect() as connection:
            for name, query in of_a_night(a_scope(customers)).items():
                with subtests.test(name):
                    found = plan_of(connection, "mysql", CARRY_OUT, query)
                    assert sum(each.rows for each in found) < 10 * licenses
