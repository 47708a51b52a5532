"""What is due is the same whatever the collation of the tables and the locale of the database.

Who would be protected from the unlink, by another license under an e-mail that some databases take for the same one.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine
from support.databases import with_tables
from support.oracle import Reading, World, answers_of, counts_of, lay_down
from support.services import new_database

from simulator.data.rows import DAY, DOWNGRADED_EVENT, Data
from worker.due.scope import Scope

NOW = datetime(2026, 6, 1, 2, 0, tzinfo=UTC)

MARIADB = [
    "utf8mb4_general_ci",
    "utf8mb4_unicode_ci",  # takes é for e, and ß for ss
    "utf8mb4_uca1400_ai_ci",
    "utf8mb4_bin",
    "utf8mb4_turkish_ci",  # lower() makes of I an i without its dot
    "utf8mb3_general_ci",  # not even the character set of the connection
]
MYSQL = [
    "utf8mb4_0900_ai_ci",  # the default: takes é for e, and an address with spaces behind it for another one
    "utf8mb4_0900_as_cs",
    "utf8mb4_0900_bin",
    "utf8mb4_unicode_ci",
    "utf8mb4_tr_0900_ai_ci",
    "utf8mb3_general_ci",
]
POSTGRESQL = {
    "C": "ENCODING 'UTF8' LOCALE 'C'",  # lower() leaves É alone
    "C.UTF-8": "ENCODING 'UTF8' LOCALE 'C.UTF-8'",
    "turkish": "ENCODING 'UTF8' LOCALE 'C.UTF-8' LOCALE_PROVIDER icu ICU_LOCALE 'tr'",  # as on MariaDB
    "ascii": "ENCODING 'SQL_ASCII' LOCALE 'C'",  # which takes any bytes for a text
}
FOLDS_ASCII_ONLY = ("C", "ascii")

SAME = [
    ("ann@example.org", "Ann@Example.ORG"),
    ("WILLIAM@EXAMPLE.ORG", " william@example.org\t"),
    ("rené@example.org", "René@Example.org\r\n"),
]
ANOTHER = [
    ("rene@example.org", "rené@example.org"),
    ("strasse@example.org", "straße@example.org"),
    ("oe@example.org", "ö@example.org"),
    ("ann@example.org", "an@example.org"),
]
BEYOND_ASCII = ("rené@example.org", "RENÉ@example.org")


EACH = {"mariadb": MARIADB, "mysql": MYSQL, "postgresql": POSTGRESQL}


@pytest.fixture(params=[f"{kind} {collation}" for kind, those in EACH.items() for collation in those])
def collated(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database whose tables, license-manager's and the ledger's, have this collation or locale."""
    kind, _, collation = request.param.partition(" ")
    how = f"TEMPLATE template0 {POSTGRESQL[collation]}" if kind == "postgresql" else f"COLLATE {collation}"
    with new_database(kind, tmp_path, how) as url, with_tables(url) as engine:
        yield engine


def with_both(world: World, expired: str, current: str) -> None:
    """A customer of whom a learner has an expired license under one e-mail, and one a current license under another."""
    customer = world.customer()
    world.license(world.plan(customer, processed=True), expired)
    world.license(world.plan(customer, -10 * DAY), current)


def test_what_is_due_is_the_same(collated: Engine, request: pytest.FixtureRequest) -> None:
    world = World(Data(collated, now=NOW), NOW)
    for expired, current in [*SAME, *ANOTHER]:
        with_both(world, expired, current)
    customer = world.customer()
    held, due, downgraded = (world.plan(customer, ago * DAY) for ago in (92, 93, 94))
    world.hold(world.license(held, "Held@Example.org"))
    world.license(due, "held@example.org")
    world.event(world.license(downgraded, "hêld@example.org"), DOWNGRADED_EVENT)
    world.confirm(world.license(downgraded, "heldt@example.org"))
    beyond_ascii = World(world.data, NOW)
    with_both(beyond_ascii, *BEYOND_ASCII)
    lay_down(collated, world, beyond_ascii)
    scopes = [Scope(NOW, 90 * DAY, frozenset(each.agreements), now=NOW) for each in (world, beyond_ascii)]
    with collated.connect() as connection:
        found, beyond = (answers_of(connection, scope) for scope in scopes)

    assert found == Reading(world, scopes[0]).answers()
    assert counts_of(collated, scopes[0]) == Reading(world, scopes[0]).counts()
    counted = counts_of(collated, scopes[1])
    assert len(found["protected"]) == len(SAME)
    assert len(found["due_unlinks"]) == len(ANOTHER) + 2
    # Where it cannot, they are two learners; lms_user_id tells whether they are one.
    folded = request.node.callspec.params["collated"] not in [f"postgresql {each}" for each in FOLDS_ASCII_ONLY]
    assert [len(beyond["protected"]), len(beyond["due_unlinks"])] == ([1, 0] if folded else [0, 1])
    assert [name for _, name in counted if name in ("protected", "unlinks")] == (
        ["protected"] if folded else ["unlinks"]
    )
