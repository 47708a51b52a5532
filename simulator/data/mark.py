"""Marks a database as made by the demo, with a table, and recognizes it later."""

from enum import Enum, auto

from sqlalchemy import Column, Engine, Integer, MetaData, Table, inspect, select

from simulator.data.schema import table
from simulator.data.showcase import CASES

# An operator who finds the table in a database sees from its name what it is.
MARK = Table("license_expiry_demo_made_this", MetaData(), Column("id", Integer, primary_key=True))
TAKEN = ("subscriptions_", "license_expiry_")
_AGREEMENTS = "subscriptions_customeragreement"


class Whose(Enum):
    """Who made the tables in a database."""

    NOBODYS = auto()
    """It has no table of license-manager or license-expiry"""
    DEMOS = auto()
    """The demo made them, and they contain only its own customers"""
    OTHERS = auto()


def whose(engine: Engine) -> Whose:
    """Return who made the tables in a database, without changing it."""
    here, elsewhere = _names(engine)
    if MARK.name not in here:
        return Whose.OTHERS if any(name.startswith(TAKEN) for name in here | elsewhere) else Whose.NOBODYS
    if any(name.startswith(TAKEN) for name in elsewhere):
        return Whose.OTHERS
    if _AGREEMENTS not in here:
        return Whose.OTHERS if any(name.startswith("subscriptions_") for name in here) else Whose.NOBODYS
    customer = table(engine, "customeragreement").c.enterprise_customer_uuid
    with engine.connect() as connection:
        customers = set(connection.execute(select(customer)).scalars())
    return Whose.DEMOS if customers <= {case.uuid for case in CASES} else Whose.OTHERS


def mark(engine: Engine) -> None:
    """Mark a database as the demo's. Call it before creating any other table, in case the demo is killed meanwhile."""
    MARK.create(engine, checkfirst=True)


def _names(engine: Engine) -> tuple[set[str], set[str]]:
    """Return the tables and views of the default schema, and those of the other schemas."""
    look = inspect(engine)
    here = {*look.get_table_names(), *look.get_view_names()}
    elsewhere = set[str]()
    if engine.dialect.name == "postgresql":  # on the others a schema is another database
        for schema in look.get_schema_names():
            if schema not in ("information_schema", look.default_schema_name):
                elsewhere |= {*look.get_table_names(schema), *look.get_view_names(schema)}
    return {name.lower() for name in here}, {name.lower() for name in elsewhere}
