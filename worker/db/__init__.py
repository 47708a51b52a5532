"""The database, for every package that reads or writes it: this is its door.

`engine` connects, and `sessions` says what each session sets; `transactions` runs whole transactions, and again when
needed; `types` and `sql` say how values are stored and how dialects differ; `license_manager_tables` and
`ledger_tables` are the tables; `schema_check` says what is wrong with them, and `writes` whether rows are taken.
"""
