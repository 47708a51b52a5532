"""The database: types, tables, engine, transactions."""
