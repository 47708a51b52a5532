"""Database access for all other packages: PostgreSQL, MySQL, MariaDB and SQLite.

`engine` connects; `sessions` has the settings of each session; `transactions` runs and retries transactions; `types`
stores values as Django does; `sql` has the SQL that differs by dialect. `license_manager_tables` and `ledger_tables`
are the tables; `schema_check` finds missing tables and columns; `writes` checks that the server accepts writes.
"""
