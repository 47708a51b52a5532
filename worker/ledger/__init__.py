"""The ledger: who may do what, and what was done. It, and not Celery, decides; its tables are our own.

`order` is the order of the steps; `claims` says who has a run; `runs` opens and stops runs; `stalled` finds abandoned
ones and those too old; `waits` is what all runs wait for, `nights` has the scheduled nights; `held` and
`confirmations` what became of licenses; `lms_address` says which LMS the database is of, `identity` which ledger it
has; `lms_calls` counts the calls to it and
`limits` holds them to what an operator allows; `migrations` makes the tables.
"""
